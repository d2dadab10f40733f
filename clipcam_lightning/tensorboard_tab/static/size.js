/** Lengths of the grid, in CSS pixels; the style sheets get them as custom properties. */

export const [SMALLEST, LARGEST] = [64, 256]; // tiles that can be chosen
const LEAST = 96; // tile that fills the width
const NARROW = 900;

export const SIZE = {
  tile: LEAST, // longer side of an image
  about: 234,
  head: 46,
  get row() {
    return Math.max(LEAST, this.tile) + 40;
  },
  get cell() {
    return this.tile + 10;
  },
  /** With the baseline and the current evaluation beside the name. */
  get side() {
    return this.about + 2 * this.cell + 40;
  },
};

/** Choose lengths for a window.
 *
 * @param {number} width of the grid
 * @param {number} columns
 * @param {string} choice "fit" for tiles that fill the width, or the size of a tile
 * @returns {{tile: number, about: number}}
 */
export function chooseLengths(width, columns, choice) {
  const isNarrow = width < NARROW;
  const about = isNarrow ? 140 : 234;
  if (choice !== "fit") return { tile: Number(choice), about };
  const tile = Math.floor((width - about - 40) / (columns + 2)) - 10;
  return { tile: Math.max(isNarrow ? SMALLEST : LEAST, Math.min(LARGEST, tile)), about };
}
