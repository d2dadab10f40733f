/** Lengths of the grid, in CSS pixels; the style sheets get them as custom properties. */

const TILE = 96;

export const SIZE = {
  tile: TILE, // longer side of an image
  row: TILE + 40,
  cell: TILE + 10,
  side: 370,
  about: 234,
  head: 46,
};
