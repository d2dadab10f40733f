/** The outline of an object, by the pixels on which it is drawn. */

/**
 * @typedef {Object} Outline
 * @property {Uint32Array} white indices of the pixels just outside the object
 * @property {Uint32Array} black those around them: white on black shows on any image
 */

/** Find the outline of a mask.
 *
 * @param {Uint8Array} mask 1 on the object, row by row
 * @param {number} width of the mask
 * @param {number} thickness of each of its two lines, in pixels
 * @returns {Outline}
 */
export function findOutline(mask, width, thickness) {
  const inner = grow(mask, width, thickness);
  const outer = grow(inner, width, thickness);
  return { white: difference(inner, mask), black: difference(outer, inner) };
}

/** Draw an outline.
 *
 * @param {Uint8ClampedArray} pixels RGBA
 * @param {Outline} outline
 */
export function drawOutline(pixels, { white, black }) {
  for (const pixel of white) pixels.fill(255, 4 * pixel, 4 * pixel + 3);
  for (const pixel of black) pixels.fill(0, 4 * pixel, 4 * pixel + 3);
}

/** Add all pixels that are at most `by` away, along either axis.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} by
 */
function grow(mask, width, by) {
  const height = mask.length / width;
  const rows = new Uint8Array(mask.length);
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue;
    const [x, start] = [i % width, i - (i % width)];
    rows.fill(1, start + Math.max(0, x - by), start + Math.min(width - 1, x + by) + 1);
  }
  const grown = new Uint8Array(mask.length);
  for (let y = 0; y < height; y++) {
    for (let other = Math.max(0, y - by); other <= Math.min(height - 1, y + by); other++) {
      for (let x = 0; x < width; x++) grown[y * width + x] |= rows[other * width + x];
    }
  }
  return grown;
}

/**
 * @param {Uint8Array} mask
 * @param {Uint8Array} without
 */
function difference(mask, without) {
  return Uint32Array.from([...mask.keys()].filter((i) => mask[i] && !without[i]));
}
