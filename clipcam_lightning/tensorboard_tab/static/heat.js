/** Raw maps as pixels: bilinear between the centres of the cells, as in the images that the callback logs. */

const [DARKEST, CONTRAST] = [0.08, 0.6]; // of an image under heat, as in the logged images
const [FAINTEST, DENSEST] = [0.05, 0.65]; // share of the image that heat covers: it stays visible where all is hot
const [DIM, LIGHT] = [0.15, 0.4]; // of an image under a change
const DENSEST_CHANGE = 0.8; // share of the image that the largest change covers
const USUAL = 0.85; // opacity at which heat covers these shares

/**
 * @typedef {{width: number, height: number, data: Uint8ClampedArray<ArrayBuffer>}} Pixels RGBA
 *
 * @typedef {Object} PaintOptions
 * @property {string} view "overlay", "heat", "change" or "input"
 * @property {number} opacity 0 to 1, of an overlay or change
 * @property {Uint8Array} heatColors 256 RGB colours
 * @property {Uint8Array} changeColors 256 RGB colours, the middle one for no change
 */

/** Largest finite value of a map, at least the smallest number to divide by.
 *
 * @param {Float32Array} map
 */
export function maxValue(map) {
  let largest = 1e-37;
  for (const value of map) if (value > largest && value !== Infinity) largest = value;
  return largest;
}

/** Divide a map by `largest` and clip it to 0 to 1; a value that is not finite becomes 0.
 *
 * @param {Float32Array} map
 * @param {number} [largest]
 */
export function normalize(map, largest = maxValue(map)) {
  return map.map((value) => (value > 0 && value !== Infinity ? Math.min(1, value / largest) : 0));
}

/** Paint one view of a probe.
 *
 * @param {Pixels} image the model's input
 * @param {number[]} shape of the maps, `[h, w]`
 * @param {Float32Array | null} heat normalized map
 * @param {Float32Array | null} baseline normalized map of the baseline, for the view "change"
 * @param {PaintOptions} options
 * @returns {Uint8ClampedArray<ArrayBuffer> | null} RGBA at the size of the image; null if the view needs a map that is
 *     missing
 */
export function paint(image, shape, heat, baseline, options) {
  if (options.view === "input") return image.data.slice();
  if (!heat) return null;
  const { width, height, data } = image;
  const out = new Uint8ClampedArray(4 * width * height);
  if (options.view === "change") {
    if (!baseline) return null;
    const difference = heat.map((value, i) => value - baseline[i]);
    paintChange(resize(difference, shape, [height, width]), data, out, options);
  } else {
    const paintHeat = options.view === "heat" ? paintPlain : paintOverlay;
    paintHeat(resize(heat, shape, [height, width]), data, out, options);
  }
  for (let i = 3; i < out.length; i += 4) out[i] = 255;
  return out;
}

/** Paint heat over the grey, darkened image: hotter cells cover more of it.
 *
 * @param {Float32Array} heat
 * @param {Uint8ClampedArray} image
 * @param {Uint8ClampedArray} out
 * @param {PaintOptions} options
 */
function paintOverlay(heat, image, out, { opacity, heatColors }) {
  for (let i = 0, p = 0; i < heat.length; i++, p += 4) {
    const level = Math.round(255 * heat[i]);
    const cover = (opacity / USUAL) * (FAINTEST + ((DENSEST - FAINTEST) * level) / 255);
    const grey = Math.round(0.299 * image[p] + 0.587 * image[p + 1] + 0.114 * image[p + 2]);
    mix(out, p, heatColors, 3 * level, Math.min(1, cover), 255 * DARKEST + CONTRAST * grey);
  }
}

/**
 * @param {Float32Array} heat
 * @param {Uint8ClampedArray} _image
 * @param {Uint8ClampedArray} out
 * @param {PaintOptions} options
 */
function paintPlain(heat, _image, out, { heatColors }) {
  for (let i = 0; i < heat.length; i++) mix(out, 4 * i, heatColors, 3 * Math.round(255 * heat[i]), 1, 0);
}

/** Paint red where a map gained and blue where it lost; elsewhere the dim, grey image shows.
 *
 * @param {Float32Array} difference
 * @param {Uint8ClampedArray} image
 * @param {Uint8ClampedArray} out
 * @param {PaintOptions} options
 */
function paintChange(difference, image, out, { opacity, changeColors }) {
  for (let i = 0, p = 0; i < difference.length; i++, p += 4) {
    const cover = (opacity / USUAL) * DENSEST_CHANGE * Math.sqrt(Math.abs(difference[i]));
    const dim = 255 * DIM + (LIGHT * (image[p] + image[p + 1] + image[p + 2])) / 3;
    mix(out, p, changeColors, 3 * Math.round(255 * (difference[i] / 2 + 0.5)), Math.min(1, cover), dim);
  }
}

/**
 * @param {Uint8ClampedArray} out which rounds
 * @param {number} p index of the pixel in `out`
 * @param {Uint8Array} colors
 * @param {number} c index of the colour in `colors`
 * @param {number} cover share of the colour
 * @param {number} grey level of the rest
 */
function mix(out, p, colors, c, cover, grey) {
  for (let channel = 0; channel < 3; channel++) {
    out[p + channel] = cover * colors[c + channel] + (1 - cover) * grey;
  }
}

/**
 * @param {Float32Array} values
 * @param {number[]} from `[h, w]`
 * @param {number[]} to `[height, width]`
 */
function resize(values, [h, w], [height, width]) {
  const down = interpolation(h, height);
  const across = interpolation(w, width);
  const line = new Float32Array(w);
  const out = new Float32Array(width * height);
  for (let y = 0, i = 0; y < height; y++) {
    const [above, below, t] = [down.first[y] * w, down.second[y] * w, down.weight[y]];
    for (let x = 0; x < w; x++) line[x] = (1 - t) * values[above + x] + t * values[below + x];
    for (let x = 0; x < width; x++, i++) {
      const s = across.weight[x];
      out[i] = (1 - s) * line[across.first[x]] + s * line[across.second[x]];
    }
  }
  return out;
}

/** @typedef {{first: Uint16Array, second: Uint16Array, weight: Float32Array}} Interpolation */

/** @type {Map<string, Interpolation>} */
const interpolations = new Map();

/** The two of `cells` between whose centres each of `pixels` lies, and the weight of the second.
 *
 * @param {number} cells
 * @param {number} pixels
 */
function interpolation(cells, pixels) {
  const key = `${cells} ${pixels}`;
  const cached = interpolations.get(key);
  if (cached) return cached;
  const made = { first: new Uint16Array(pixels), second: new Uint16Array(pixels), weight: new Float32Array(pixels) };
  for (let i = 0; i < pixels; i++) {
    const place = Math.max(0, ((i + 0.5) * cells) / pixels - 0.5);
    made.first[i] = Math.min(cells - 1, Math.floor(place));
    made.second[i] = Math.min(cells - 1, made.first[i] + 1);
    made.weight[i] = place - made.first[i];
  }
  interpolations.set(key, made);
  return made;
}
