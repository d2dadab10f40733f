/** The large view of one probe at one evaluation: all views of its map, metrics, where the map went, and evidence. */

import { badge } from "./badge.js";
import { canvasOf, context, element, explained } from "./dom.js";
import { cropSheet, groundSheet, listCrops, listGrounds } from "./evidence.js";
import { formatNumber, formatPercent } from "./format.js";
import { METRICS } from "./metrics.js";
import { describeLocation } from "./places.js";
import { nameOf } from "./sources.js";
import { Sparkline } from "./sparkline.js";
import { checkView, viewGroup } from "./views.js";

/**
 * @typedef {import("./row_data.js").RowData} RowData
 * @typedef {import("./run.js").Run} Run
 *
 * @typedef {import("./row_data.js").Ground} Ground
 *
 * @typedef {Object} Stage a canvas with the baseline to the left of the wipe and now to the right
 * @property {HTMLCanvasElement} canvas
 * @property {ImageData | null | undefined} before
 * @property {ImageData | null | undefined} now
 * @property {HTMLElement[]} captions of either side
 */

const [STAGE, SMALL] = [420, 140]; // CSS pixels
const CROPPED = 0.99; // share of an image below which it is called a crop

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
    this.crop = element("p", { class: "quiet" });
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
        element("div", {}, this.title, this.prompt, this.crop),
        button("↑", "Probe above (up arrow)", () => go(-1)),
        button("↓", "Probe below (down arrow)", () => go(1)),
        button("✕", "Close (escape)", () => this.node.close()),
      ),
      element("div", { class: "evaluation" }, this.evaluation, "baseline", this.wipe, "now"),
      this.panes,
    );
    this.node.addEventListener("keydown", (event) => {
      const by = KEYS[event.key];
      if (by === undefined || event.defaultPrevented) return;
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
      for (const run of this.board.runs) run.wantBeside([]);
      return;
    }
    const { board } = this;
    const [first] = board.runs;
    this.title.textContent = first.names[indices[0]];
    this.prompt.textContent = first.prompts[indices[0]];
    this.crop.textContent = describeCrop(first.visibleShares[indices[0]]);
    this.wipe.disabled = !hasSides(board.state.values.view);
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
    const focused = [...this.panes.children].findIndex((pane) => pane.querySelector("[role=radio]:focus"));
    this.panes.replaceChildren(...panes.map(({ node }) => node));
    /** @type {HTMLElement | null | undefined} */
    const radio = this.panes.children[focused]?.querySelector("[role=radio][aria-checked=true]");
    radio?.focus();
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
    const [crops, grounds] = [listCrops(run, probe, evaluation), listGrounds(run, probe, evaluation)];
    const beside = [...crops, ...grounds.map((ground) => ground.probe)].filter((each) => each < run.names.length);
    run.wantBeside(beside);
    if (!beside.every((each) => run.rows.has(each))) this.isWaiting = true;
    const [stage, views, sheet, evidence] = await Promise.all([
      this.#stage(run, probe, evaluation, row),
      this.#views(run, probe, evaluation, row),
      cropSheet(run, crops, evaluation, baseline),
      alarmEvidence(run, evaluation, grounds),
    ]);
    const { method, target, layers } = run.settings;
    node.append(
      element(
        "div",
        { class: "large" },
        stage.canvas,
        element("div", { class: "names" }, ...stage.captions),
        chart(run, probe, evaluation),
      ),
      views,
      element(
        "div",
        { class: "facts" },
        summary(run, probe, evaluation, row, baseline),
        table(row, evaluation),
        element("p", { class: "quiet", text: `Maps: ${method}, ${target}, ${layers.join(", ")}` }),
      ),
      element(
        "div",
        { class: "evidence" },
        element("h3", { text: "What the map looked at, at the baseline and now" }),
        sheet,
        ...evidence,
      ),
    );
    return { node, stage };
  }

  /** The chosen view is the large one.
   *
   * @param {Run} run
   * @param {number} probe
   * @param {number} evaluation
   * @param {RowData} row
   */
  async #views(run, probe, evaluation, row) {
    const { board } = this;
    const ground = await row.ground(Math.round(SMALL * Math.min(2, devicePixelRatio)));
    const group = viewGroup(
      (view, text) => [
        canvasOf(board.image(run, probe, evaluation, { ground, view })),
        element("span", { text: withState(text, board.stateText(run, probe, evaluation, view)) }),
      ],
      (view) => board.state.set({ view }),
    );
    checkView(group, board.state.values.view);
    return group;
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
    const { baseline, view } = board.state.values;
    const ground = await row.ground(Math.round(STAGE * Math.min(2, devicePixelRatio)));
    const now = board.image(run, probe, evaluation, { ground, view });
    const label = `${run.names[probe]}, ${hasSides(view) ? "baseline beside now" : view}`;
    const canvas = element("canvas", { class: "stage", role: "img", "aria-label": label });
    canvas.addEventListener("pointerdown", (event) => this.#drag(canvas, event));
    canvas.addEventListener("pointermove", (event) => event.buttons && this.#drag(canvas, event));
    return {
      canvas,
      before: hasSides(view) ? board.image(run, probe, evaluation, { ground, view, before: true }) : now,
      now,
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
      if (before !== now && edge > 0 && edge < width) drawing.fillRect(edge - 1, 0, 2, height);
    }
  }
}

/** Whether a view shows one map, so that the baseline and now are beside each other.
 *
 * @param {string} view
 */
function hasSides(view) {
  return view === "overlay" || view === "heat";
}

/** Say which part of its image the model sees; empty if it sees all.
 *
 * @param {number | undefined} share
 */
function describeCrop(share) {
  if (share === undefined || share >= CROPPED) return "";
  return `The model sees a centre crop: the middle ${formatPercent(share)} of the image.`;
}

/** Why the evaluation is an alarm, with images; nothing if it is none.
 *
 * @param {Run} run
 * @param {number} evaluation
 * @param {import("./wire.js").Ground[]} grounds
 */
async function alarmEvidence(run, evaluation, grounds) {
  const reason = run.reasons[evaluation];
  if (!reason) return [];
  const sheets = await Promise.all(grounds.map((ground) => groundSheet(run, ground)));
  return [
    element("h3", { text: "Evidence of the alarm" }),
    element("p", { text: `${reason[0].toUpperCase()}${reason.slice(1)}.` }),
    ...sheets.flat(),
  ];
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
  const state = run.stateText(probe, evaluation);
  const place = state || (now ? describeLocation(before, now, row.shape) : "no map");
  const note = run.notes[evaluation][row.metric(evaluation, "note")];
  const node = element("p", { class: "summary", text: `${place[0].toUpperCase()}${place.slice(1)}. ` });
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
      {},
      element("th", { scope: "row" }, explained(label, meaning)),
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
