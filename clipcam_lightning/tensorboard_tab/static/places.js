/** Where attention went, in words. */

const DOWN = ["top", "", "bottom"];
export const LEAST = 0.05; // of the mass; less is a map that moved within its place
const ACROSS = ["left", "", "right"];

/** Which ninth of the picture gained most of a map's mass and which lost most.
 *
 * @param {Float32Array} before raw map
 * @param {Float32Array} now raw map
 * @param {number[]} shape `[h, w]`
 * @returns {?{gained: string, gain: number, lost: string, loss: number, far: boolean}} shares of the mass, and whether
 *     they are worth a word; null if a map has no mass
 */
export function moved(before, now, [h, w]) {
  const [was, is] = [shares(before), shares(now)];
  if (!was || !is) return null;
  const ninths = new Float64Array(9);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const ninth = 3 * Math.floor((3 * (y + 0.5)) / h) + Math.floor((3 * (x + 0.5)) / w);
      ninths[ninth] += is[y * w + x] - was[y * w + x];
    }
  }
  const gained = ninths.indexOf(Math.max(...ninths));
  const lost = ninths.indexOf(Math.min(...ninths));
  return {
    gained: name(gained),
    gain: ninths[gained],
    lost: name(lost),
    loss: -ninths[lost],
    far: ninths[gained] >= LEAST,
  };
}

function name(ninth) {
  return [DOWN[Math.floor(ninth / 3)], ACROSS[ninth % 3]].filter(Boolean).join(" ") || "centre";
}

function shares(map) {
  const mass = map.map((value) => (value > 0 && value !== Infinity ? value : 0));
  const sum = mass.reduce((total, value) => total + value, 0);
  return sum > 0 ? mass.map((value) => value / sum) : null;
}

export const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
