/** The slider that moves all probes through time. */

import { element, labelled, setOptions } from "./dom.js";
import { SPEEDS } from "./state.js";

const PAUSE = 250; // milliseconds between two evaluations at the usual speed

export class Player {
  /** @param {import("./board.js").Board} board */
  constructor(board) {
    this.board = board;
    /** @type {ReturnType<typeof setInterval> | null} while it plays */
    this.timer = null;
    this.slider = element("input", {
      type: "range",
      min: 0,
      step: 1,
      "aria-label": "Evaluation shown",
      on: { input: () => board.go(Number(this.slider.value)) },
    });
    this.button = element("button", { class: "play", on: { click: () => this.#toggle() } });
    this.speed = element("select");
    this.speed.addEventListener("change", () => board.state.set({ speed: this.speed.value }));
    this.title = element("output", { class: "title", "aria-live": "polite" });
    this.marks = element("div", { class: "marks", "aria-hidden": "true" });
    /** @type {(text: string, by: number, label: string) => HTMLElement} */
    const step = (text, by, label) =>
      element("button", { text, "aria-label": label, title: label, on: { click: () => this.#go(by) } });
    this.node = element(
      "div",
      { class: "player", role: "group", "aria-label": "Player" },
      step("‹", -1, "Previous evaluation (left arrow)"),
      this.button,
      step("›", 1, "Next evaluation (right arrow)"),
      element("div", { class: "track" }, this.slider, this.marks),
      labelled("Speed", this.speed),
      this.title,
    );
    board.state.listen((changed) => {
      if (changed.has("speed") && this.timer) this.#start();
    });
    document.addEventListener("keydown", (event) => this.#key(event));
    this.update();
  }

  /** Move by some evaluations, and stop playing.
   *
   * @param {number} by
   */
  #go(by) {
    this.#stop();
    this.board.go(this.board.current + by);
  }

  #toggle() {
    if (this.timer) {
      this.#stop();
    } else {
      if (this.board.current === this.board.last) this.board.go(0);
      this.#start();
    }
    this.update();
  }

  #start() {
    this.#stop();
    this.timer = setInterval(() => this.#next(), PAUSE / Number(this.board.state.values.speed));
  }

  #next() {
    this.board.go(this.board.current + 1);
    if (this.board.current === this.board.last) {
      this.#stop();
      this.update();
    }
  }

  #stop() {
    if (this.timer) clearInterval(this.timer);
    this.timer = null;
  }

  /** Show the state of the board. */
  update() {
    const { board } = this;
    const last = Math.max(0, board.last);
    const speeds = SPEEDS.map((speed) => [speed, `${speed}×`]);
    setOptions(this.speed, speeds, board.state.values.speed);
    const label = this.timer ? "Pause (space)" : "Play (space)";
    this.title.setAttribute("aria-live", this.timer ? "off" : "polite"); // four announcements a second are too many
    this.button.textContent = this.timer ? "❚❚" : "▶";
    this.button.title = label;
    this.button.setAttribute("aria-label", label);
    this.slider.max = String(last);
    if (!board.columns.length) return;
    const title = board.title(board.current);
    this.slider.value = String(board.current);
    this.slider.setAttribute("aria-valuetext", title);
    this.title.textContent = `${title} (${board.current + 1} of ${last + 1})`;
    const alarms = [...board.columns.keys()].filter((column) => board.hasAlarm(column));
    this.marks.replaceChildren(
      ...alarms.map((column) => {
        const mark = element("span");
        mark.style.left = `${(100 * column) / Math.max(1, last)}%`;
        return mark;
      }),
    );
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const target = event.target instanceof Element ? event.target : null;
    const control = target?.closest("input, select, textarea"); // these use the keys themselves
    const isOthers = control && control !== this.slider;
    if (isOthers || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key === "ArrowLeft") this.#go(-1);
    else if (event.key === "ArrowRight") this.#go(1);
    else if (event.key === " " && !target?.closest("button, summary")) this.#toggle();
    else return;
    event.preventDefault();
  }
}
