/** Where in an image the mass of a map moved, in words. */

const VERTICAL = ["top", "", "bottom"];
const HORIZONTAL = ["left", "", "right"];
export const MIN_GAIN = 0.05; // of the mass; a smaller shift stays within the same place

/**
 * @typedef {Object} Shift
 * @property {string} gained name of the ninth of the image that gained most
 * @property {number} gain its gain, as a share of the mass
 * @property {string} lost name of the ninth that lost most
 * @property {number} loss its loss, as a share of the mass
 * @property {boolean} isNotable whether the gain is at least `MIN_GAIN`
 */

/** Find the ninth of the image that gained most of a map's mass and the one that lost most.
 *
 * @param {Float32Array} before raw map
 * @param {Float32Array} now raw map
 * @param {number[]} shape `[h, w]`
 * @returns {Shift | null} null if one of the maps has no positive value
 */
export function findShift(before, now, [h, w]) {
  const [sharesBefore, sharesNow] = [shares(before), shares(now)];
  if (!sharesBefore || !sharesNow) return null;
  const changes = new Float64Array(9); // row by row
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const ninth = 3 * Math.floor((3 * (y + 0.5)) / h) + Math.floor((3 * (x + 0.5)) / w);
      changes[ninth] += sharesNow[y * w + x] - sharesBefore[y * w + x];
    }
  }
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
