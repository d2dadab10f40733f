/** Sentences about where the mass of a map is in an image, and where it moved. */

import { formatPercent } from "./format.js";

const VERTICAL = ["top", "", "bottom"];
const HORIZONTAL = ["left", "", "right"];
export const MIN_GAIN = 0.05; // of the mass; a smaller shift stays within the same place
const SPREAD = 0.3; // of the cells: a map of which so many hold half of the mass is spread over the image

/**
 * @typedef {Object} Shift
 * @property {string} gained name of the ninth of the image that gained most
 * @property {number} gain its gain, as a share of the mass
 * @property {string} lost name of the ninth that lost most
 * @property {number} loss its loss, as a share of the mass
 * @property {boolean} isNotable whether the gain is at least `MIN_GAIN`
 */

/** Say where a map lies and, if it moved, from where; never empty.
 *
 * @param {Float32Array | null} before raw map; null if it is not known
 * @param {Float32Array} now raw map
 * @param {number[]} shape `[h, w]`
 */
export function describeLocation(before, now, shape) {
  const place = describeFocus(now, shape);
  if (!place) return "no positive evidence";
  const shift = before && findShift(before, now, shape);
  if (!shift) return before ? `${place}; no positive evidence at the baseline` : place;
  if (!shift.isNotable) return before?.every((value, i) => value === now[i]) ? place : `still ${place}`;
  const { gained, gain, lost, loss } = shift;
  return `moved to the ${gained} (+${formatPercent(gain)}) from the ${lost} (−${formatPercent(loss)})`;
}

/** Say where most of a map is; empty if it has no positive value.
 *
 * @param {Float32Array} map raw
 * @param {number[]} shape `[h, w]`
 */
function describeFocus(map, shape) {
  const mass = shares(map);
  if (!mass) return "";
  const half = mass.toSorted((a, b) => b - a);
  let [cells, sum] = [0, 0];
  while (sum < 0.5 && cells < half.length) sum += half[cells++];
  if (cells > SPREAD * mass.length) return "spread over the image";
  const ninths = sumNinths(mass, shape);
  const most = ninths.indexOf(Math.max(...ninths));
  return `at the ${placeName(most)} (${formatPercent(ninths[most])})`;
}

/** Find the ninth of the image that gained most of a map's mass and the one that lost most.
 *
 * @param {Float32Array} before raw map
 * @param {Float32Array} now raw map
 * @param {number[]} shape `[h, w]`
 * @returns {Shift | null} null if one of the maps has no positive value
 */
export function findShift(before, now, shape) {
  const [sharesBefore, sharesNow] = [shares(before), shares(now)];
  if (!sharesBefore || !sharesNow) return null;
  const changes = sumNinths(
    sharesNow.map((share, i) => share - sharesBefore[i]),
    shape,
  );
  const gained = changes.indexOf(Math.max(...changes));
  const lost = changes.indexOf(Math.min(...changes));
  return {
    gained: placeName(gained),
    gain: changes[gained],
    lost: placeName(lost),
    loss: -changes[lost],
    isNotable: changes[gained] >= MIN_GAIN,
  };
}

/** Sum values over each ninth of the image, row by row.
 *
 * @param {Float32Array} values
 * @param {number[]} shape `[h, w]`
 */
function sumNinths(values, [h, w]) {
  const sums = new Float64Array(9);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const ninth = 3 * Math.floor((3 * (y + 0.5)) / h) + Math.floor((3 * (x + 0.5)) / w);
      sums[ninth] += values[y * w + x];
    }
  }
  return sums;
}

/** @param {number} ninth */
function placeName(ninth) {
  return [VERTICAL[Math.floor(ninth / 3)], HORIZONTAL[ninth % 3]].filter(Boolean).join(" ") || "centre";
}

/** Each cell's share of the positive mass of a map; null if there is none.
 *
 * @param {Float32Array} map
 */
function shares(map) {
  const mass = map.map((value) => (value > 0 && value !== Infinity ? value : 0));
  const sum = mass.reduce((total, value) => total + value, 0);
  return sum > 0 ? mass.map((value) => value / sum) : null;
}
