/** One slider moves all probes through time. */

import { element } from "./dom.js";

const PAUSE = 250; // milliseconds between two looks

export class Player {
  /** @param {import("./board.js").Board} board */
  constructor(board) {
    this.board = board;
    this.slider = element("input", {
      type: "range",
      min: 0,
      step: 1,
      "aria-label": "Look that is shown",
      on: { input: () => board.go(Number(this.slider.value)) },
    });
    this.button = element("button", { class: "play", on: { click: () => this.toggle() } });
    this.title = element("output", { class: "title", "aria-live": "polite" });
    this.marks = element("div", { class: "marks", "aria-hidden": "true" });
    const step = (text, by, label) =>
      element("button", { text, "aria-label": label, title: label, on: { click: () => this.go(by) } });
    this.node = element(
      "div",
      { class: "player", role: "group", "aria-label": "Player" },
      step("‹", -1, "Look before (left arrow)"),
      this.button,
      step("›", 1, "Next look (right arrow)"),
      element("div", { class: "track" }, this.slider, this.marks),
      this.title,
    );
    document.addEventListener("keydown", (event) => this.#key(event));
    this.update();
  }

  /** Move by some looks, and stop playing. */
  go(by) {
    this.#stop();
    this.board.go(this.board.now + by);
  }

  toggle() {
    if (this.timer) {
      this.#stop();
    } else {
      if (this.board.now === this.board.columns.length - 1) this.board.go(0);
      this.timer = setInterval(() => this.#next(), PAUSE);
    }
    this.update();
  }

  #next() {
    this.board.go(this.board.now + 1);
    if (this.board.now === this.board.columns.length - 1) {
      this.#stop();
      this.update();
    }
  }

  #stop() {
    clearInterval(this.timer);
    this.timer = null;
  }

  update() {
    const { board } = this;
    const last = Math.max(0, board.columns.length - 1);
    const label = this.timer ? "Pause (space)" : "Play (space)";
    this.title.setAttribute("aria-live", this.timer ? "off" : "polite"); // four times a second nobody can listen
    this.button.textContent = this.timer ? "❚❚" : "▶";
    this.button.title = label;
    this.button.setAttribute("aria-label", label);
    this.slider.max = last;
    if (!board.columns.length) return;
    this.slider.value = board.now;
    this.slider.setAttribute("aria-valuetext", board.title(board.now));
    this.title.textContent = `${board.title(board.now)} (${board.now + 1} of ${last + 1})`;
    const alarms = board.columns.flatMap((_, column) => (board.alarmed(column) ? [column] : []));
    this.marks.replaceChildren(
      ...alarms.map((column) => {
        const mark = element("span");
        mark.style.left = `${(100 * column) / Math.max(1, last)}%`;
        return mark;
      }),
    );
  }

  #key(event) {
    const control = event.target.closest?.("input, select, textarea"); // which has a use for these keys itself
    if (
      (control && control !== this.slider) ||
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      event.defaultPrevented
    )
      return;
    if (event.key === "ArrowLeft") this.go(-1);
    else if (event.key === "ArrowRight") this.go(1);
    else if (event.key === " " && !event.target.closest?.("button, summary")) this.toggle();
    else return;
    event.preventDefault();
  }
}
