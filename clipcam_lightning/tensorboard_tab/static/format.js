/** Numbers as text. */

/**
 * @param {number} value
 * @param {number} [digits] after the point
 */
export function formatNumber(value, digits = 2) {
  return Number.isNaN(value) ? "unknown" : value.toFixed(digits);
}

/** @param {number} share 1 is 100 % */
export function formatPercent(share) {
  return `${Math.round(100 * share)}\u00a0%`;
}
