/** One row of the grid: a probe of one run, with a cell for each evaluation in sight. */

import { badge } from "./badge.js";
import { element } from "./dom.js";
import { formatNumber } from "./format.js";
import { DRIFT } from "./metrics.js";
import { describeLocation } from "./places.js";
import { SIZE } from "./size.js";
import { Sparkline } from "./sparkline.js";
import { Strip } from "./strip.js";

/** @type {Strip[][]} strips of removed rows: new canvases are slower than anything else in a row */
const spareStrips = [];

export class GridRow {
  /**
   * @param {import("./board.js").Board} board
   * @param {number} number of the row, from 0
   * @param {(column: number) => void} open
   */
  constructor(board, number, open) {
    this.board = board;
    this.number = number;
    this.open = open;
    this.side = number % board.runs.length;
    this.run = board.runs[this.side];
    this.probe = board.probes[Math.floor(number / board.runs.length)][this.side];
    /** @type {Map<number, HTMLElement>} by column */
    this.cells = new Map();
    const strips = spareStrips.pop() ?? [new Strip(), new Strip(), new Strip()];
    const [strip, baselineStrip, currentStrip] = strips;
    this.strips = strips;
    this.strip = strip;
    this.baselineStrip = baselineStrip;
    this.currentStrip = currentStrip;
    this.sparkline = new Sparkline(this.run, this.probe, SIZE.about, 30);
    this.place = element("div", { class: "place" });
    this.baselineName = element("div", { class: "metric" });
    this.baseline = this.#pinned("baseline", this.baselineStrip, this.baselineName);
    this.metric = element("div", { class: "metric", title: DRIFT.meaning });
    this.current = this.#pinned("current", this.currentStrip, this.metric);
    /** @type {number | null} the column that is shown beside the name */
    this.shown = null;
    this.node = element(
      "div",
      { class: "row", role: "row", "aria-rowindex": number + 2 },
      this.#header(),
      this.strip.canvas,
    );
    this.node.classList.toggle("second", this.side > 0);
    this.node.style.top = `${number * SIZE.row}px`;
  }

  /** A tile that stays in sight while the evaluations scroll.
   *
   * @param {string} name
   * @param {Strip} strip
   * @param {HTMLElement} caption
   */
  #pinned(name, strip, caption) {
    return element(
      "div",
      { class: `pinned ${name}`, on: { click: () => this.open(this.board.current) } },
      element("div", { class: "frame" }, strip.canvas, element("div", { class: "state" })),
      caption,
    );
  }

  #header() {
    const { run, probe } = this;
    const [name, prompt] = [run.names[probe], run.prompts[probe]];
    return element(
      "div",
      { class: "side", role: "rowheader", "aria-colindex": 1 },
      element(
        "div",
        { class: "about" },
        element("div", { class: "name", title: name }, ...badge(this.board.runs, this.side), name),
        element("div", { class: "prompt", text: prompt, title: prompt }),
        this.sparkline.node,
        this.place,
      ),
      this.baseline,
      this.current,
    );
  }

  /** Remove the row from the page, for good. */
  remove() {
    this.node.remove();
    for (const strip of this.strips) strip.clear();
    spareStrips.push(this.strips);
  }

  /** The run's evaluation in a column, if it has one.
   *
   * @param {number} column
   */
  evaluation(column) {
    return this.board.columns[column].evaluations[this.side];
  }

  /** @param {number} [evaluation] */
  #image(evaluation) {
    return evaluation === undefined ? null : this.board.image(this.run, this.probe, evaluation);
  }

  /** @param {number} [evaluation] */
  #stateText(evaluation) {
    return evaluation === undefined ? "" : this.board.stateText(this.run, this.probe, evaluation);
  }

  /** Show the columns `from` to `to`.
   *
   * @param {number} from
   * @param {number} to
   * @param {boolean} repaint whether to paint all, and not only what is new
   */
  update(from, to, repaint) {
    for (const [column, cell] of this.cells) {
      if (column < from || column > to) {
        cell.remove();
        this.cells.delete(column);
      }
    }
    this.strip.move(from, to, repaint);
    for (let column = to; column >= from; column--) {
      const cell = this.cells.get(column) ?? this.#addCell(column);
      if (!this.strip.has(column)) {
        const image = this.#image(this.evaluation(column));
        this.strip.paint(column, image);
        mark(cell, image, this.#stateText(this.evaluation(column)));
      }
    }
    if (repaint || this.shown !== this.board.current) this.#showCurrent();
  }

  /** @param {number} column */
  #addCell(column) {
    const metric = element("div", { class: "metric", title: DRIFT.meaning });
    const cell = element(
      "div",
      {
        class: "cell",
        role: "gridcell",
        tabIndex: -1,
        "aria-colindex": column + 2,
        on: { click: () => this.open(column) },
      },
      element("div", { class: "frame" }, element("div", { class: "state" })),
      metric,
    );
    Object.assign(cell.dataset, { row: this.number, column });
    cell.style.left = `${SIZE.side + column * SIZE.cell}px`;
    const evaluation = this.evaluation(column);
    const label = `${this.run.names[this.probe]}, ${this.board.title(column)}`;
    if (evaluation === undefined) {
      cell.setAttribute("aria-label", `${label}: this run has no evaluation at this step`);
    } else {
      const drift = formatNumber(this.run.drift(this.probe, evaluation));
      const isFlagged = this.run.flagged(this.probe, evaluation);
      metric.textContent = drift;
      cell.classList.toggle("flagged", isFlagged);
      cell.title = isFlagged ? "This probe is flagged at this evaluation." : "";
      const state = this.run.stateText(this.probe, evaluation);
      const remarks = `${isFlagged ? ", flagged" : ""}${state ? `, ${state}` : ""}`;
      cell.setAttribute("aria-label", `${label}: drift ${drift}${remarks}`);
    }
    this.node.insertBefore(cell, this.cells.get(column + 1) ?? null); // in the order in which a screen reader reads
    this.cells.set(column, cell);
    return cell;
  }

  /** Show beside the name the current evaluation, or the last one before it, and its baseline. */
  #showCurrent() {
    const column = this.board.current;
    const evaluation = this.board.evaluationUntil(column, this.side);
    const image = this.#image(evaluation);
    show(this.current, this.currentStrip, image, this.#stateText(evaluation));
    this.#showBaseline(evaluation);
    if (image !== undefined) this.shown = column;
    this.sparkline.mark(evaluation);
    this.metric.textContent = this.#driftText(column, evaluation);
    this.node.classList.toggle("flagged", evaluation !== undefined && this.run.flagged(this.probe, evaluation));
    this.place.textContent = evaluation === undefined ? "no evaluation up to this step" : this.#placeText(evaluation);
    this.place.title = this.place.textContent;
  }

  /** @param {number} [evaluation] */
  #showBaseline(evaluation) {
    const { run, probe } = this;
    const { baseline, view } = this.board.state.values;
    if (evaluation === undefined) {
      show(this.baseline, this.baselineStrip, null, "");
      this.baselineName.textContent = "";
      return;
    }
    const shown = view === "change" ? "overlay" : view; // of a baseline there is no change
    const image = this.board.image(run, probe, evaluation, { view: shown, before: true });
    const stateText = view === "input" ? "" : run.baselineStateText(probe, evaluation, baseline);
    show(this.baseline, this.baselineStrip, image, stateText);
    this.baselineName.textContent = run.baselineName(evaluation, baseline);
  }

  /**
   * @param {number} column
   * @param {number} [evaluation]
   */
  #driftText(column, evaluation) {
    if (evaluation === undefined) return "no evaluation";
    const drift = formatNumber(this.run.drift(this.probe, evaluation));
    const isEarlier = this.evaluation(column) !== evaluation;
    return isEarlier ? `${drift}, step ${this.run.steps[evaluation]}` : `drift ${drift}`;
  }

  /** @param {number} evaluation */
  #placeText(evaluation) {
    const { run, probe } = this;
    const { baseline } = this.board.state.values;
    const row = run.rows.get(probe);
    if (!row) return "…";
    const now = row.map(evaluation);
    if (!now) return "no map";
    const state = run.stateText(probe, evaluation);
    return state || describeLocation(run.baselineMap(probe, evaluation, baseline), now, row.shape);
  }
}

/** Show one image in a tile of its own.
 *
 * @param {HTMLElement} tile
 * @param {Strip} strip of the tile
 * @param {ImageData | null | undefined} image as of {@link Strip#paint}
 * @param {string} stateText
 */
function show(tile, strip, image, stateText) {
  strip.move(0, 0, true);
  strip.paint(0, image);
  mark(tile, image, stateText);
}

/** Show in a cell whether it has an image and what the state of its map says, and give its frame the image's shape.
 *
 * @param {HTMLElement} cell
 * @param {ImageData | null | undefined} image as of {@link Strip#paint}
 * @param {string} stateText empty for a map that is not degenerate
 */
function mark(cell, image, stateText) {
  const frame = /** @type {HTMLElement} */ (cell.querySelector(".frame"));
  cell.classList.toggle("waiting", image === undefined);
  cell.classList.toggle("missing", image === null);
  frame.title = image === null ? "There is no map to show here." : "";
  /** @type {HTMLElement} */ (frame.querySelector(".state")).textContent = image ? stateText : "";
  const longer = image ? Math.max(image.width, image.height) : 1;
  frame.style.width = image ? `${(SIZE.tile * image.width) / longer}px` : "";
  frame.style.height = image ? `${(SIZE.tile * image.height) / longer}px` : "";
}
