/** One row of the grid: a probe of one run, with a cell for each look that is in sight. */

import { element } from "./dom.js";
import { moved, percent } from "./places.js";
import { nameOf, TILE } from "./run.js";
import { sparkline } from "./sparkline.js";

export const SIZE = { row: TILE + 40, cell: TILE + 10, side: 248 + TILE + 26, head: 46 };

/** Draw the picture of a look into a cell's canvas.
 *
 * @returns {boolean} whether there is something to see, or it is known that there is nothing
 */
export function drawInto(canvas, image) {
  canvas.classList.toggle("waiting", image === undefined);
  canvas.classList.toggle("missing", image === null);
  if (!image) {
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    return image === null;
  }
  if (canvas.width !== image.width || canvas.height !== image.height) {
    [canvas.width, canvas.height] = [image.width, image.height];
    const ratio = TILE / Math.max(image.width, image.height);
    canvas.style.width = `${image.width * ratio}px`;
    canvas.style.height = `${image.height * ratio}px`;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return true;
}

export function figure(value, digits = 2) {
  return Number.isNaN(value) ? "unknown" : value.toFixed(digits);
}

export class GridRow {
  /**
   * @param {import("./board.js").Board} board
   * @param {number} number of the row, from 0
   * @param {number} side which run
   * @param {(column: number) => void} open
   */
  constructor(board, number, side, open) {
    this.board = board;
    this.number = number;
    this.side = side;
    this.open = open;
    this.run = board.runs[side];
    this.probe = board.probes[Math.floor(number / board.runs.length)][side];
    this.cells = new Map(); // by column
    this.node = element("div", { class: "row", role: "row", "aria-rowindex": number + 2 });
    this.node.classList.toggle("second", side > 0);
    this.node.style.top = `${number * SIZE.row}px`;
    this.node.append(this.#header());
  }

  #header() {
    const { run, probe, board } = this;
    const prompt = run.prompts[probe];
    this.line = sparkline(run, probe, 234, 30);
    this.went = element("div", { class: "went" });
    this.tile = element("canvas", { width: TILE, height: TILE, "aria-hidden": "true" });
    this.figure = element("div", { class: "figure" });
    const label = board.runs.length > 1 ? [element("span", { class: `run side-${this.side}`, text: "AB"[this.side], title: nameOf(run.source) })] : [];
    return element(
      "div",
      { class: "side", role: "rowheader" },
      element(
        "div",
        { class: "about" },
        element("div", { class: "name", title: run.names[probe] }, ...label, run.names[probe]),
        element("div", { class: "prompt", text: prompt, title: prompt }),
        this.line,
        this.went,
      ),
      element("div", { class: "present" }, this.tile, this.figure),
    );
  }

  look(column) {
    return this.board.columns[column].looks[this.side];
  }

  /** Show the columns `from` to `to`, painting what is new, or all. */
  update(from, to, all) {
    for (const [column, cell] of this.cells) {
      if (column < from || column > to) {
        cell.remove();
        this.cells.delete(column);
      }
    }
    for (let column = from; column <= to; column++) {
      const isNew = !this.cells.has(column);
      if (isNew) this.cells.set(column, this.#cell(column));
      const cell = this.cells.get(column);
      const waits = cell.firstChild.classList.contains("waiting");
      if ((isNew || all || waits) && this.look(column) !== undefined) this.#paint(cell, column);
    }
    if (all || this.tile.classList.contains("waiting") || this.shown !== this.board.now) this.#present();
  }

  #cell(column) {
    const cell = element(
      "div",
      { class: "cell", role: "gridcell", tabIndex: -1, "aria-colindex": column + 2, on: { click: () => this.open(column) } },
      element("canvas", { width: TILE, height: TILE, "aria-hidden": "true" }),
      element("div", { class: "figure" }),
    );
    cell.dataset.row = this.number;
    cell.dataset.column = column;
    cell.style.left = `${SIZE.side + column * SIZE.cell}px`;
    const look = this.look(column);
    const label = `${this.run.names[this.probe]}, ${this.board.title(column)}`;
    cell.classList.toggle("absent", look === undefined);
    if (look === undefined) {
      cell.setAttribute("aria-label", `${label}: this run has no look there`);
    } else {
      const drift = figure(this.run.drift(this.probe, look));
      const alarm = this.run.alarm(this.probe, look);
      cell.lastChild.textContent = drift;
      cell.classList.toggle("alarm", alarm > 0);
      cell.setAttribute("aria-label", `${label}: drift ${drift}${alarm ? ", breaks the rule" : ""}`);
    }
    this.node.append(cell);
    return cell;
  }

  #paint(cell, column) {
    const image = this.board.image(this.run, this.probe, this.look(column));
    drawInto(cell.firstChild, image);
    cell.title = image === null ? "There is no map to show here." : "";
  }

  /** The look that is shown now, beside the name. */
  #present() {
    const column = this.board.now;
    const look = this.look(column);
    const image = look === undefined ? null : this.board.image(this.run, this.probe, look);
    if (drawInto(this.tile, image)) this.shown = column;
    this.line.mark(look);
    this.figure.textContent = look === undefined ? "no look" : `drift ${figure(this.run.drift(this.probe, look))}`;
    this.node.classList.toggle("alarm", look !== undefined && this.run.alarm(this.probe, look) > 0);
    const row = this.run.rows.get(this.probe);
    const before = row && look !== undefined && this.run.baselineMap(this.probe, look, this.board.state.values.baseline);
    const now = before && row.map(look);
    const way = now ? moved(before, now, row.shape) : null;
    this.went.textContent = way && way.gain > 0.02 ? `→ ${way.gained} +${percent(way.gain)}, ${way.lost} −${percent(way.loss)}` : "";
  }
}
