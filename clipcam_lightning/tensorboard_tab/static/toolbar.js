/** The controls: what can be chosen. */

import { letter } from "./badge.js";
import { context, element, labelled, setOptions } from "./dom.js";
import { LARGEST, SIZE, SMALLEST } from "./size.js";
import { keyOf, nameOf } from "./sources.js";
import { checkView, viewGroup } from "./views.js";

/** @typedef {import("./state.js").Choices} Choices */

const SORTS = [
  ["flagged", "flagged first"],
  ["drift", "drift, largest first"],
  ["similarity", "similarity, lowest first"],
  ["name", "name"],
];
const SCALES = [
  ["map", "each map by itself"],
  ["probe", "all evaluations of a probe"],
];

/** Controls without an effect on the grid, by view.
 *
 * @type {Record<string, ("opacity" | "colors" | "scale")[]>}
 */
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
    this.compare = this.#select("compare");
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
    this.size = element("input", {
      type: "range",
      min: SMALLEST,
      max: LARGEST,
      step: 8,
      on: { input: () => state.set({ size: this.size.value }) },
    });
    this.fit = element("button", {
      text: "Fit",
      title: "Fill the width of the window",
      on: { click: () => state.set({ size: "fit" }) },
    });
    this.views = viewGroup(
      (_, text) => [document.createTextNode(text)],
      (view) => state.set({ view }),
    );
    this.letters = [0, 1].map((side) => letter(side));
    this.ramp = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
    this.least = element("span");
    this.most = element("span");
    this.legend = element("span", { class: "legend" }, this.least, this.ramp, this.most);
    this.node = element(
      "div",
      { class: "toolbar", role: "toolbar", "aria-label": "What is shown" },
      this.letters[0],
      labelled("Run", this.run),
      this.letters[1],
      labelled("Compare with", this.compare),
      labelled("Sort", this.sort),
      labelled("Filter", this.filter),
      this.legend,
      element("span", { class: "break" }),
      this.views,
      labelled("Opacity", this.opacity),
      labelled("Colours", this.colors),
      labelled("Baseline", this.baseline),
      labelled("Scale", this.scale),
      labelled("Size", this.size),
      this.fit,
    );
  }

  /** @param {keyof Choices} key */
  #select(key) {
    const select = element("select");
    select.addEventListener("change", () => this.state.set({ [key]: select.value }));
    return select;
  }

  /** Show the state.
   *
   * @param {import("./wire.js").Source[]} sources
   */
  update(sources) {
    const { values } = this.state;
    const names = sources.map((source) => [keyOf(source), `${nameOf(source)}${source.alarm ? " (alarm)" : ""}`]);
    setOptions(this.run, names, values.run);
    setOptions(this.compare, [["", "none"], ...names.filter(([key]) => key !== values.run)], values.compare);
    for (const node of this.letters) node.hidden = !values.compare;
    setOptions(this.sort, SORTS, values.sort);
    const colors = this.board.colors.about.heat.map((name) => [name, name]);
    setOptions(this.colors, colors, values.colors);
    setOptions(this.scale, SCALES, values.scale);
    setOptions(this.baseline, this.#baselines(), values.baseline);
    if (document.activeElement !== this.filter) this.filter.value = values.filter;
    this.opacity.value = values.opacity;
    this.size.value = String(SIZE.tile);
    this.fit.setAttribute("aria-pressed", String(values.size === "fit"));
    checkView(this.views, values.view);
    for (const name of WITHOUT_EFFECT.input) this[name].disabled = WITHOUT_EFFECT[values.view].includes(name);
    this.#updateLegend();
  }

  #baselines() {
    const { baseline } = this.state.values;
    const steps = this.board.columns.map(({ step }) => String(step));
    const others = ["callback", "previous", ...steps].includes(baseline) ? [] : [baseline]; // a step of another run
    return [
      ["callback", "the callback's own"],
      ["previous", "the previous evaluation"],
      ...[...steps, ...others].map((step) => [step, `step ${step}`]),
    ];
  }

  #updateLegend() {
    const { board } = this;
    const { view } = this.state.values;
    const isChange = view === "change";
    const colors = isChange ? board.changeColors : board.heatColors;
    const ramp = new ImageData(256, 1);
    for (let i = 0; i < 256; i++) ramp.data.set([...colors.subarray(3 * i, 3 * i + 3), 255], 4 * i);
    context(this.ramp).putImageData(ramp, 0, 0);
    this.legend.style.visibility = view === "input" ? "hidden" : "";
    this.least.textContent = isChange ? "less than the baseline" : "0";
    this.most.textContent = isChange ? "more" : "highest";
  }
}
