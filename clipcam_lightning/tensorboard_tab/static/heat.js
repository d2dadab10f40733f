/** Raw maps as pixels. Bilinear between the centres of the cells, as the pictures in the Images tab. */

const [DARKEST, CONTRAST] = [0.08, 0.6]; // of a picture under heat, as in the pictures in the Images tab

/** Largest value of a map, at least the smallest number that can divide. */
export function top(map) {
  let largest = 1e-37;
  for (const value of map) if (value > largest && value !== Infinity) largest = value;
  return largest;
}

/** Map divided by `largest`; what is negative or not finite is 0. */
export function shown(map, largest = top(map)) {
  return map.map((value) => (value > 0 && value !== Infinity ? Math.min(1, value / largest) : 0));
}

/** Paint one view of a probe.
 *
 * @param {ImageData} picture what the model saw
 * @param {number[]} shape of the maps, `[h, w]`
 * @param {?Float32Array} heat 0 to 1, see {@link shown}
 * @param {?Float32Array} before the same of the baseline
 * @param {{view: string, opacity: number, heatColors: Uint8Array, changeColors: Uint8Array}} how
 * @returns {?ImageData} null if a map that the view needs is missing
 */
export function painted(picture, shape, heat, before, how) {
  if (how.view === "input") return picture;
  if (!heat || (how.view === "change" && !before)) return null;
  const { width, height, data: seen } = picture;
  const out = new ImageData(width, height);
  const paint = { overlay, heat: heatAlone, change }[how.view];
  const values = how.view === "change" ? heat.map((value, i) => value - before[i]) : heat;
  paint(resized(values, shape, [height, width]), seen, out.data, how);
  for (let i = 3; i < out.data.length; i += 4) out.data[i] = 255;
  return out;
}

/** Heat over the greyed, subdued picture: the hotter, the more colour covers it. */
function overlay(heat, seen, out, { opacity, heatColors }) {
  for (let i = 0, p = 0; i < heat.length; i++, p += 4) {
    const level = Math.round(255 * heat[i]);
    const cover = (opacity / 0.85) * (0.1 + (0.75 * level) / 255);
    const grey = Math.round(0.299 * seen[p] + 0.587 * seen[p + 1] + 0.114 * seen[p + 2]);
    mix(out, p, heatColors, 3 * level, Math.min(1, cover), 255 * DARKEST + CONTRAST * grey);
  }
}

function heatAlone(heat, _seen, out, { heatColors }) {
  for (let i = 0; i < heat.length; i++) mix(out, 4 * i, heatColors, 3 * Math.round(255 * heat[i]), 1, 0);
}

/** Red where there is more than before, blue where there is less; where nothing changed the faint picture shows. */
function change(difference, seen, out, { opacity, changeColors }) {
  for (let i = 0, p = 0; i < difference.length; i++, p += 4) {
    const cover = (opacity / 0.85) * Math.sqrt(Math.abs(difference[i]));
    const faint = 255 * 0.55 + (0.45 * (seen[p] + seen[p + 1] + seen[p + 2])) / 3;
    mix(out, p, changeColors, 3 * Math.round(255 * (difference[i] / 2 + 0.5)), Math.min(1, cover), faint);
  }
}

function mix(out, p, colors, c, cover, grey) {
  for (let channel = 0; channel < 3; channel++) {
    out[p + channel] = cover * colors[c + channel] + (1 - cover) * grey; // a clamped array rounds
  }
}

function resized(values, [h, w], [height, width]) {
  const down = axis(h, height);
  const across = axis(w, width);
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

const axes = new Map();

/** Between which two of `cells` each of `pixels` lies, and how far from the first. */
function axis(cells, pixels) {
  const key = `${cells} ${pixels}`;
  if (!axes.has(key)) {
    const made = { first: new Uint16Array(pixels), second: new Uint16Array(pixels), weight: new Float32Array(pixels) };
    for (let i = 0; i < pixels; i++) {
      const place = Math.max(0, ((i + 0.5) * cells) / pixels - 0.5);
      made.first[i] = Math.min(cells - 1, Math.floor(place));
      made.second[i] = Math.min(cells - 1, made.first[i] + 1);
      made.weight[i] = place - made.first[i];
    }
    axes.set(key, made);
  }
  return axes.get(key);
}
