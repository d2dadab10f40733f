/** The large view of one probe at one evaluation: baseline and now under a wipe, metrics, and where the map went. */

import { badge } from "./badge.js";
import { drawCrop } from "./crop.js";
import { context, element } from "./dom.js";
import { formatNumber, formatPercent } from "./format.js";
import { METRICS } from "./metrics.js";
import { findShift } from "./places.js";
import { nameOf } from "./sources.js";
import { Sparkline } from "./sparkline.js";

/**
 * @typedef {import("./row_data.js").RowData} RowData
 * @typedef {import("./run.js").Run} Run
 *
 * @typedef {Object} Stage a canvas with the baseline to the left of the wipe and now to the right
 * @property {HTMLCanvasElement} canvas
 * @property {ImageData | null | undefined} before
 * @property {ImageData | null | undefined} now
 * @property {HTMLElement[]} captions of either side
 */

const [STAGE, SMALL] = [420, 144]; // CSS pixels

/** Movement from probe to probe.
 *
 * @type {Record<string, number | undefined>}
 */
const KEYS = { ArrowUp: -1, ArrowDown: 1 };

export class Detail {
  /**
   * @param {import("./board.js").Board} board
   * @param {(by: number) => void} go to another probe
   */
  constructor(board, go) {
    this.board = board;
    /** @type {(Stage | null)[]} of each run */
    this.stages = [];
    this.isWaiting = false; // for a row
    this.shown = Symbol("newest update");
    this.title = element("h2", { id: "detail-title" });
    this.prompt = element("p", { class: "prompt" });
    this.evaluation = element("output", { "aria-live": "polite" });
    this.panes = element("div", { class: "panes" });
    this.wipe = element("input", {
      type: "range",
      min: 0,
      max: 1,
      step: 0.01,
      value: 0.5,
      "aria-label": "Wipe between baseline and now",
      on: { input: () => this.#draw() },
    });
    /** @type {(text: string, label: string, click: () => void) => HTMLElement} */
    const button = (text, label, click) =>
      element("button", { text, title: label, "aria-label": label, on: { click } });
    this.node = element(
      "dialog",
      {
        class: "detail",
        tabIndex: -1,
        "aria-labelledby": "detail-title",
        on: { close: () => board.state.set({ open: "" }) },
      },
      element(
        "header",
        {},
        element("div", {}, this.title, this.prompt),
        button("↑", "Probe above (up arrow)", () => go(-1)),
        button("↓", "Probe below (down arrow)", () => go(1)),
        button("✕", "Close (escape)", () => this.node.close()),
      ),
      element("div", { class: "evaluation" }, this.evaluation, "wipe", this.wipe),
      this.panes,
    );
    this.node.addEventListener("keydown", (event) => {
      const by = KEYS[event.key];
      if (by === undefined) return;
      go(by);
      event.preventDefault();
    });
    this.node.addEventListener("click", (event) => {
      if (event.target === this.node) this.node.close(); // the backdrop
    });
  }

  /** Show a probe.
   *
   * @param {number[] | undefined} indices of the probe in each run; undefined closes the view
   */
  async update(indices) {
    if (!indices) {
      if (this.node.open) this.node.close();
      return;
    }
    const { board } = this;
    const [first] = board.runs;
    this.title.textContent = first.names[indices[0]];
    this.prompt.textContent = first.prompts[indices[0]];
    this.evaluation.textContent = board.title(board.current);
    if (!this.node.open) {
      this.node.showModal();
      this.node.focus(); // not the first button, which the space key would press
    }
    this.isWaiting = false;
    const shown = (this.shown = Symbol("newest update")); // an older one may still wait for its images
    const panes = await Promise.all(board.runs.map((run, side) => this.#pane(run, indices[side], side)));
    if (shown !== this.shown) return;
    this.stages = panes.map(({ stage }) => stage);
    this.panes.classList.toggle("two", panes.length > 1);
    this.panes.replaceChildren(...panes.map(({ node }) => node));
    this.#draw();
  }

  /**
   * @param {Run} run
   * @param {number} probe
   * @param {number} side
   */
  async #pane(run, probe, side) {
    const { board } = this;
    const evaluation = board.evaluationUntil(board.current, side);
    const row = run.rows.get(probe);
    const heading = board.runs.length > 1 ? [element("h3", {}, ...badge(board.runs, side), nameOf(run.source))] : [];
    const node = element("section", {}, ...heading);
    if (!row) this.isWaiting = true;
    if (!row || evaluation === undefined) {
      const text = row ? "This run has no evaluation up to this step." : "Loading.";
      node.append(element("p", { class: "quiet", text }));
      return { node, stage: null };
    }
    const { baseline } = board.state.values;
    const stage = await this.#stage(run, probe, evaluation, row);
    const small = await row.image(Math.round(SMALL * Math.min(2, devicePixelRatio)));
    const tiles = ["change", "input"].map((view) =>
      element(
        "figure",
        { class: "tile" },
        canvasOf(board.image(run, probe, evaluation, { image: small, view })),
        element("figcaption", { text: withState(view, board.stateText(run, probe, evaluation, view)) }),
      ),
    );
    const input = board.image(run, probe, evaluation, { image: small, view: "input" });
    /** @type {[string, Float32Array | null][]} */
    const looked = [
      ["looked at, baseline", run.baselineMap(probe, evaluation, baseline)],
      ["looks at, now", row.map(evaluation)],
    ];
    const crops = looked.map(([caption, map]) =>
      element(
        "figure",
        { class: "tile" },
        input && map ? drawCrop(input, map, row.shape) : canvasOf(null),
        element("figcaption", { text: caption }),
      ),
    );
    const { method, target, layers } = run.settings;
    node.append(
      element(
        "div",
        {},
        stage.canvas,
        element("div", { class: "names" }, ...stage.captions),
        chart(run, probe, evaluation),
      ),
      element(
        "div",
        {},
        element("div", { class: "tiles" }, ...tiles),
        element("div", { class: "tiles" }, ...crops),
        summary(run, probe, evaluation, row, baseline),
        table(row, evaluation),
        element("p", { class: "quiet", text: `Maps: ${method}, ${target}, ${layers.join(", ")}` }),
      ),
    );
    return { node, stage };
  }

  /**
   * @param {Run} run
   * @param {number} probe
   * @param {number} evaluation
   * @param {RowData} row
   * @returns {Promise<Stage>}
   */
  async #stage(run, probe, evaluation, row) {
    const { board } = this;
    const { baseline, view: chosen } = board.state.values;
    const image = await row.image(Math.round(STAGE * Math.min(2, devicePixelRatio)));
    const view = chosen === "heat" ? "heat" : "overlay";
    const label = `${run.names[probe]}, baseline beside now`;
    const canvas = element("canvas", { class: "stage", role: "img", "aria-label": label });
    canvas.addEventListener("pointerdown", (event) => this.#drag(canvas, event));
    canvas.addEventListener("pointermove", (event) => event.buttons && this.#drag(canvas, event));
    return {
      canvas,
      before: board.image(run, probe, evaluation, { image, view, before: true }),
      now: board.image(run, probe, evaluation, { image, view }),
      captions: [
        element("span", {
          text: withState(
            `baseline: ${run.baselineName(evaluation, baseline)}`,
            run.baselineStateText(probe, evaluation, baseline),
          ),
        }),
        element("span", {
          text: withState(`now: step ${run.steps[evaluation]}`, run.stateText(probe, evaluation)),
        }),
      ],
    };
  }

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {PointerEvent} event
   */
  #drag(canvas, { clientX }) {
    const { left, width } = canvas.getBoundingClientRect();
    this.wipe.value = String(Math.max(0, Math.min(1, (clientX - left) / width)));
    this.#draw();
  }

  /** Draw the baseline to the left of the wipe and now to the right. */
  #draw() {
    for (const stage of this.stages) {
      const whole = stage?.now ?? stage?.before;
      if (!stage || !whole) continue;
      const { canvas, before, now, captions } = stage;
      const { width, height } = whole;
      [canvas.width, canvas.height] = [width, height];
      const drawing = context(canvas);
      const edge = Math.round(Number(this.wipe.value) * width);
      captions[0].style.visibility = edge > 0 ? "" : "hidden"; // a side that is covered needs no caption
      captions[1].style.visibility = edge < width ? "" : "hidden";
      if (before) drawing.putImageData(before, 0, 0, 0, 0, edge, height);
      if (now) drawing.putImageData(now, 0, 0, edge, 0, width - edge, height);
      drawing.fillStyle = "#fff";
      if (edge > 0 && edge < width) drawing.fillRect(edge - 1, 0, 2, height);
    }
  }
}

/**
 * @param {Run} run
 * @param {number} probe
 * @param {number} evaluation
 */
function chart(run, probe, evaluation) {
  const sparkline = new Sparkline(run, probe, STAGE, 64);
  sparkline.mark(evaluation);
  const highest = formatNumber(sparkline.highest, sparkline.highest > 1 ? 2 : 0);
  const caption = element("figcaption", { text: `drift, 0 to ${highest}, at all evaluations` });
  return element("figure", { class: "chart" }, sparkline.node, caption);
}

/** Where the map went, and why the probe is flagged or its drift unknown.
 *
 * @param {Run} run
 * @param {number} probe
 * @param {number} evaluation
 * @param {RowData} row
 * @param {string} baseline the chosen one
 */
function summary(run, probe, evaluation, row, baseline) {
  const [before, now] = [run.baselineMap(probe, evaluation, baseline), row.map(evaluation)];
  const shift = before && now ? findShift(before, now, row.shape) : null;
  const note = run.notes[evaluation][row.metric(evaluation, "note")];
  const node = element("p", { class: "summary" });
  if (shift?.isNotable) {
    const { gained, gain, lost, loss } = shift;
    node.append(`The ${gained} gained ${formatPercent(gain)} of the map, the ${lost} lost ${formatPercent(loss)}. `);
  }
  if (note) {
    const isFlagged = run.flagged(probe, evaluation);
    const text = `${isFlagged ? "Flagged: " : ""}${note}.`;
    node.append(element("strong", { class: isFlagged ? "flagged" : "", text }));
  }
  return node;
}

/**
 * @param {RowData} row
 * @param {number} evaluation
 */
function table(row, evaluation) {
  const available = METRICS.filter(({ name }) => !Number.isNaN(row.metric(evaluation, name)));
  const lines = available.map(({ name, label, digits, meaning }) =>
    element(
      "tr",
      { title: meaning },
      element("th", { scope: "row", text: label }),
      element("td", { text: formatNumber(row.metric(evaluation, name), digits) }),
    ),
  );
  return element("table", {}, element("tbody", {}, ...lines));
}

/** Add to a caption what the state of its map says, if the map is degenerate.
 *
 * @param {string} caption
 * @param {string} stateText
 */
function withState(caption, stateText) {
  return stateText ? `${caption}: ${stateText}` : caption;
}

/** @param {ImageData | null | undefined} image */
function canvasOf(image) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  if (image) {
    [canvas.width, canvas.height] = [image.width, image.height];
    context(canvas).putImageData(image, 0, 0);
  }
  return canvas;
}
