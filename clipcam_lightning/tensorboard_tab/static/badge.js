/** The letter that stands for a run where two are compared. */

import { element } from "./dom.js";
import { nameOf } from "./sources.js";

/**
 * @param {number} side 0 for the first run, 1 for the second
 * @param {string} [title]
 */
export function letter(side, title = "") {
  return element("span", { class: `run side-${side}`, text: "AB"[side], title });
}

/** The letter of a run, if there is another run.
 *
 * @param {import("./run.js").Run[]} runs
 * @param {number} side
 */
export function badge(runs, side) {
  return runs.length > 1 ? [letter(side, nameOf(runs[side].source))] : [];
}
