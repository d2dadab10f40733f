/** What a map looks at: the part of the image around its hottest place. */

import { context, element } from "./dom.js";
import { normalize } from "./heat.js";

const SHARE = 1 / 3; // of the shorter side of the image, as in the reports

/** Find a square around the hottest place of a map, in pixels.
 *
 * @param {Float32Array} map raw
 * @param {number[]} shape of the map, `[h, w]`
 * @param {{width: number, height: number}} image
 */
export function findCrop(map, [h, w], { width, height }) {
  const side = Math.max(1, Math.round(SHARE * Math.min(width, height)));
  const hottest = hottestCell(map, h, w);
  /** @type {(cell: number, cells: number, pixels: number) => number} */
  const start = (cell, cells, pixels) => {
    const middle = ((cell + 0.5) * pixels) / cells;
    return Math.min(Math.max(0, Math.round(middle - side / 2)), pixels - side);
  };
  return { x: start(hottest % w, w, width), y: start(Math.floor(hottest / w), h, height), side };
}

/** What a map gained, relative to the largest value of each; the map itself where it gained nothing.
 *
 * @param {Float32Array | null} before raw
 * @param {Float32Array} now raw
 */
export function gain(before, now) {
  if (!before) return now;
  const [low, high] = [normalize(before), normalize(now)];
  const gained = high.map((value, i) => Math.max(0, value - low[i]));
  return gained.some((value) => value > 0) ? gained : now;
}

/** Cut out what a map looks at.
 *
 * @param {ImageData} image
 * @param {Float32Array} map raw
 * @param {number[]} shape of the map, `[h, w]`
 */
export function drawCrop(image, map, shape) {
  const { x, y, side } = findCrop(map, shape, image);
  const canvas = element("canvas", { "aria-hidden": "true" });
  [canvas.width, canvas.height] = [side, side];
  context(canvas).putImageData(image, -x, -y, x, y, side, side);
  return canvas;
}

/** Index of the cell whose own value and mean over its neighbours add up to most: a large spot before a small one.
 *
 * @param {Float32Array} map
 * @param {number} h
 * @param {number} w
 */
function hottestCell(map, h, w) {
  /** @type {(y: number, x: number) => number} */
  const value = (y, x) => (y < 0 || x < 0 || y >= h || x >= w ? 0 : Math.max(0, map[y * w + x]));
  let [best, highest] = [0, -1];
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      let sum = 9 * value(y, x);
      for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) sum += value(y + dy, x + dx);
      if (sum > highest) [best, highest] = [y * w + x, sum];
    }
  }
  return best;
}
