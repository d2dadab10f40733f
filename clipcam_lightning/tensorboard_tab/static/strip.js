/** The images of neighbouring columns on one canvas: a browser cannot scroll hundreds of canvases smoothly. */

import { context, element } from "./dom.js";
import { SIZE } from "./size.js";

export class Strip {
  constructor() {
    this.canvas = element("canvas", { class: "strip", width: 0, height: 0, "aria-hidden": "true" });
    /** @type {Set<number>} columns */
    this.painted = new Set();
    this.from = 0;
  }

  /** Remove everything, so that another row can use the strip. */
  clear() {
    const { width, height } = this.canvas;
    if (width) context(this.canvas).clearRect(0, 0, width, height);
    this.painted.clear();
  }

  /** @param {number} column */
  has(column) {
    return this.painted.has(column);
  }

  /** Left edge of a column, in pixels of the screen.
   *
   * @param {number} column
   */
  #left(column) {
    return Math.round((column - this.from) * SIZE.cell * devicePixelRatio);
  }

  /** Make room for the columns `from` to `to`.
   *
   * @param {number} from
   * @param {number} to
   * @param {boolean} repaint whether to drop what is painted
   */
  move(from, to, repaint) {
    const { canvas } = this;
    const shift = (this.from - from) * SIZE.cell * devicePixelRatio;
    this.from = from;
    const [width, height] = [this.#left(to + 1), Math.round(SIZE.tile * devicePixelRatio)];
    if (canvas.width < width || canvas.height !== height) {
      [canvas.width, canvas.height] = [width, height]; // this clears it
      canvas.style.width = `${width / devicePixelRatio}px`;
      this.painted.clear();
    } else if (repaint || !Number.isInteger(shift)) {
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

  /** Paint a column.
   *
   * @param {number} column
   * @param {ImageData | null | undefined} image null if there is none, undefined if it has not arrived
   */
  paint(column, image) {
    const left = this.#left(column);
    const drawing = context(this.canvas);
    drawing.clearRect(left, 0, this.#left(column + 1) - left, this.canvas.height);
    if (image) drawing.putImageData(image, left, 0);
    if (image !== undefined) this.painted.add(column);
  }
}
