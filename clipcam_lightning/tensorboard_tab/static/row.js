/** One row of the grid: a probe of one run, with a cell for each look that is in sight. */

import { context, element } from "./dom.js";
import { moved, percent } from "./places.js";
import { TILE, nameOf } from "./run.js";
import { sparkline } from "./sparkline.js";

export const SIZE = { tile: TILE, row: TILE + 40, cell: TILE + 10, side: 370, about: 234, head: 46 }; // CSS pixels

export function figure(value, digits = 2) {
  return Number.isNaN(value) ? "unknown" : value.toFixed(digits);
}

/** What stands for the first or the second run where two are compared. */
export const letter = (side, title = "") => element("span", { class: `run side-${side}`, text: "AB"[side], title });

/** The letter of a run, if there is another. */
export const badge = (runs, side) => (runs.length > 1 ? [letter(side, nameOf(runs[side].source))] : []);

const spare = []; // strips of rows that are gone: a browser may wait for new canvases longer than for all else

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
    this.cells = new Map(); // by column
    [this.strip, this.present] = spare.pop() ?? [new Strip(), new Strip()];
    this.node = element(
      "div",
      { class: "row", role: "row", "aria-rowindex": number + 2 },
      this.#header(),
      this.strip.canvas,
    );
    this.node.classList.toggle("second", this.side > 0);
    this.node.style.top = `${number * SIZE.row}px`;
  }

  #header() {
    const { run, probe } = this;
    const [name, prompt] = [run.names[probe], run.prompts[probe]];
    this.line = sparkline(run, probe, SIZE.about, 30);
    this.went = element("div", { class: "went" });
    this.presentFrame = element("div", { class: "frame" }, this.present.canvas);
    this.figure = element("div", { class: "figure" });
    return element(
      "div",
      { class: "side", role: "rowheader", "aria-colindex": 1 },
      element(
        "div",
        { class: "about" },
        element("div", { class: "name", title: name }, ...badge(this.board.runs, this.side), name),
        element("div", { class: "prompt", text: prompt, title: prompt }),
        this.line,
        this.went,
      ),
      element(
        "div",
        { class: "present", on: { click: () => this.open(this.board.now) } },
        this.presentFrame,
        this.figure,
      ),
    );
  }

  /** Take it off the page; it is not used again. */
  remove() {
    this.node.remove();
    for (const strip of [this.strip, this.present]) strip.clear();
    spare.push([this.strip, this.present]);
  }

  /** The number of the look in a column, if this run has one. */
  look(column) {
    return this.board.columns[column].looks[this.side];
  }

  #image(look) {
    return look === undefined ? null : this.board.image(this.run, this.probe, look);
  }

  /** Show the columns `from` to `to`, painting what is new, or all. */
  update(from, to, all) {
    for (const [column, cell] of this.cells) {
      if (column < from || column > to) {
        cell.remove();
        this.cells.delete(column);
      }
    }
    this.strip.move(from, to, all);
    for (let column = to; column >= from; column--) {
      if (!this.cells.has(column)) this.cells.set(column, this.#cell(column));
      if (!this.strip.has(column))
        mark(this.cells.get(column), this.strip.paint(column, this.#image(this.look(column))));
    }
    if (all || this.shown !== this.board.now) this.#showNow(all);
  }

  #cell(column) {
    const cell = element(
      "div",
      {
        class: "cell",
        role: "gridcell",
        tabIndex: -1,
        "aria-colindex": column + 2,
        on: { click: () => this.open(column) },
      },
      element("div", { class: "frame" }),
      element("div", { class: "figure" }),
    );
    Object.assign(cell.dataset, { row: this.number, column });
    cell.style.left = `${SIZE.side + column * SIZE.cell}px`;
    const look = this.look(column);
    const label = `${this.run.names[this.probe]}, ${this.board.title(column)}`;
    if (look === undefined) {
      cell.setAttribute("aria-label", `${label}: this run has no look there`);
    } else {
      const drift = figure(this.run.drift(this.probe, look));
      const alarm = this.run.alarm(this.probe, look) > 0;
      cell.lastChild.textContent = drift;
      cell.classList.toggle("alarm", alarm);
      cell.title = alarm ? "This probe breaks the rule at this look." : "";
      cell.setAttribute("aria-label", `${label}: drift ${drift}${alarm ? ", breaks the rule" : ""}`);
    }
    this.node.insertBefore(cell, this.cells.get(column + 1) ?? null); // a screen reader meets them in their order
    return cell;
  }

  #told(look, isEarlier) {
    const drift = figure(this.run.drift(this.probe, look));
    return isEarlier ? `${drift}, step ${this.run.steps[look]}` : `drift ${drift}`;
  }

  /** The look that is shown now, or the last before it, beside the name. */
  #showNow() {
    const column = this.board.now;
    const look = this.board.lookUntil(column, this.side);
    this.present.move(0, 0, true);
    mark(this.presentFrame.parentNode, this.present.paint(0, this.#image(look)));
    if (this.present.has(0)) this.shown = column;
    this.line.mark(look);
    this.figure.textContent = look === undefined ? "no look" : this.#told(look, this.look(column) !== look);
    this.node.classList.toggle("alarm", look !== undefined && this.run.alarm(this.probe, look) > 0);
    const row = this.run.rows.get(this.probe);
    const before =
      row && look !== undefined && this.run.baselineMap(this.probe, look, this.board.state.values.baseline);
    const now = before && row.map(look);
    const way = now ? moved(before, now, row.shape) : null;
    this.went.textContent = way?.far ? `→ ${way.gained} +${percent(way.gain)}, ${way.lost} −${percent(way.loss)}` : "";
  }
}

/** Say of a cell what {@link Strip#paint} found, and give its frame the shape of the picture. */
function mark(cell, image) {
  const frame = cell.querySelector(".frame");
  cell.classList.toggle("waiting", image === undefined);
  cell.classList.toggle("missing", image === null);
  frame.title = image === null ? "There is no map to show here." : "";
  const longer = image ? Math.max(image.width, image.height) : 1;
  frame.style.width = image ? `${(TILE * image.width) / longer}px` : "";
  frame.style.height = image ? `${(TILE * image.height) / longer}px` : "";
}

/** The pictures of neighbouring columns in one canvas: a browser cannot move hundreds of canvases smoothly. */
class Strip {
  constructor() {
    this.canvas = element("canvas", { class: "strip", width: 0, height: 0, "aria-hidden": "true" });
    this.painted = new Set();
    this.from = 0;
  }

  /** For another row, with nothing of this one. */
  clear() {
    const { width, height } = this.canvas;
    if (width) context(this.canvas).clearRect(0, 0, width, height);
    this.painted.clear();
  }

  has(column) {
    return this.painted.has(column);
  }

  /** Where a column begins, in pixels of the screen. */
  #left(column) {
    return Math.round((column - this.from) * SIZE.cell * devicePixelRatio);
  }

  /** Make room for the columns `from` to `to`, keeping what is painted unless it is to be painted anew. */
  move(from, to, anew) {
    const { canvas } = this;
    const shift = (this.from - from) * SIZE.cell * devicePixelRatio;
    this.from = from;
    const size = [this.#left(to + 1), Math.round(TILE * devicePixelRatio)];
    if (canvas.width < size[0] || canvas.height !== size[1]) {
      [canvas.width, canvas.height] = size; // which clears it
      canvas.style.width = `${canvas.width / devicePixelRatio}px`;
      this.painted.clear();
    } else if (anew || !Number.isInteger(shift)) {
      this.painted.clear();
    } else if (shift) {
      const drawing = context(canvas);
      drawing.globalCompositeOperation = "copy";
      drawing.drawImage(canvas, shift, 0);
      drawing.globalCompositeOperation = "source-over";
    }
    canvas.style.left = `${SIZE.side + from * SIZE.cell}px`;
    for (const column of this.painted) if (column < from || column > to) this.painted.delete(column);
  }

  /** Paint a column; `undefined` stands for a picture that is still to come, `null` for none. Returns the picture. */
  paint(column, image) {
    const left = this.#left(column);
    const drawing = context(this.canvas);
    drawing.clearRect(left, 0, this.#left(column + 1) - left, this.canvas.height);
    if (image) drawing.putImageData(image, left, 0);
    if (image !== undefined) this.painted.add(column);
    return image;
  }
}
