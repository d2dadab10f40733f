/** What can be chosen. */

import { element, labelled, setOptions } from "./dom.js";
import { letter } from "./row.js";
import { keyOf, nameOf } from "./run.js";

const VIEWS = [
  ["overlay", "Overlay"],
  ["heat", "Heat"],
  ["change", "Change"],
  ["input", "Input"],
];
const SORTS = [
  ["drift", "drift, largest first"],
  ["similarity", "similarity, lowest first"],
  ["name", "name"],
];
const SCALES = [
  ["map", "each map by itself"],
  ["probe", "all looks of a probe"],
];
const WITHOUT_EFFECT = { overlay: [], heat: ["opacity"], change: ["colors"], input: ["opacity", "colors", "scale"] };

export class Toolbar {
  /**
   * @param {import("./state.js").State} state
   * @param {import("./board.js").Board} board
   */
  constructor(state, board) {
    this.state = state;
    this.board = board;
    this.run = this.#select("run");
    this.beside = this.#select("beside");
    this.sort = this.#select("sort");
    this.colors = this.#select("colors");
    this.baseline = this.#select("baseline");
    this.scale = this.#select("scale");
    this.filter = element("input", {
      type: "search",
      placeholder: "name or prompt",
      on: { input: () => state.set({ filter: this.filter.value }) },
    });
    this.opacity = element("input", {
      type: "range",
      min: 0,
      max: 1,
      step: 0.05,
      on: { input: () => state.set({ opacity: this.opacity.value }) },
    });
    this.views = VIEWS.map(([value, text]) =>
      element("button", { text, value, role: "radio", on: { click: (event) => this.#look(event, value) } }),
    );
    this.letters = [0, 1].map((side) => letter(side));
    this.ramp = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    this.least = element("span");
    this.most = element("span");
    this.node = element(
      "div",
      { class: "toolbar", role: "toolbar", "aria-label": "What is shown" },
      this.letters[0],
      labelled("Run", this.run),
      this.letters[1],
      labelled("Beside", this.beside),
      labelled("Sort", this.sort),
      labelled("Filter", this.filter),
      element("span", { class: "break" }),
      element("span", { class: "views", role: "radiogroup", "aria-label": "View" }, ...this.views),
      labelled("Opacity", this.opacity),
      labelled("Colours", this.colors),
      labelled("Baseline", this.baseline),
      labelled("Scale", this.scale),
      element("span", { class: "legend" }, this.least, this.ramp, this.most),
    );
    this.#arrowKeys();
  }

  #select(key) {
    return element("select", { on: { change: (event) => this.state.set({ [key]: event.target.value }) } });
  }

  /** Another view; the mouse leaves the keys to the player. */
  #look({ target, detail }, view) {
    if (detail) target.blur();
    this.state.set({ view });
  }

  /** A group of radio buttons is one stop of the tab key; the arrows move in it. */
  #arrowKeys() {
    this.views[0].parentNode.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (by === undefined) return;
      const next = this.views[(this.views.indexOf(event.target) + by + this.views.length) % this.views.length];
      next.focus();
      next.click();
      event.preventDefault();
    });
  }

  /** @param {{run: string, root: string, problem: string}[]} sources */
  update(sources) {
    const { values } = this.state;
    const names = sources.map((source) => [keyOf(source), nameOf(source)]);
    setOptions(this.run, names, values.run);
    setOptions(this.beside, [["", "none"], ...names.filter(([key]) => key !== values.run)], values.beside);
    for (const node of this.letters) node.hidden = !values.beside;
    setOptions(this.sort, SORTS, values.sort);
    setOptions(
      this.colors,
      this.board.colors.about.heats.map((name) => [name, name]),
      values.colors,
    );
    setOptions(this.scale, SCALES, values.scale);
    const steps = this.board.columns.map(({ step }) => String(step));
    const named = ["callback", "previous", ...steps].includes(values.baseline) ? [] : [values.baseline]; // of another run
    const baselines = [...steps, ...named].map((step) => [step, `step ${step}`]);
    setOptions(
      this.baseline,
      [["callback", "the callback's own"], ["previous", "the look before"], ...baselines],
      values.baseline,
    );
    if (document.activeElement !== this.filter) this.filter.value = values.filter;
    this.opacity.value = values.opacity;
    for (const button of this.views) {
      const chosen = button.value === values.view;
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
    }
    for (const name of WITHOUT_EFFECT.input) this[name].disabled = WITHOUT_EFFECT[values.view].includes(name);
    this.#legend(values);
  }

  #legend({ view }) {
    const change = view === "change";
    const { arrays, about } = this.board.colors;
    const table = change ? arrays[about.change].data : this.board.heatColors;
    const ramp = new ImageData(256, 1);
    for (let i = 0; i < 256; i++) ramp.data.set([...table.subarray(3 * i, 3 * i + 3), 255], 4 * i);
    this.ramp.getContext("2d").putImageData(ramp, 0, 0);
    this.ramp.parentNode.style.visibility = view === "input" ? "hidden" : "";
    this.least.textContent = change ? "less than the baseline" : "0";
    this.most.textContent = change ? "more" : "hottest";
  }
}
