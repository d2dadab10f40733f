/** What speaks for an alarm: what the maps of the flagged probes look at, and what other objects are called on a ground. */

import { drawCrop, gain } from "./crop.js";
import { canvasOf, element } from "./dom.js";

/**
 * @typedef {import("./run.js").Run} Run
 * @typedef {import("./wire.js").Ground} Ground
 */

const MAX_CROPS = 8; // pairs, the one of the probe itself included
const SIDE = 216; // of the images from which crops are cut, in pixels of the screen: a crop is a third of it

/** List the probes whose crops are shown: the probe itself and, if it is flagged, others that are, its own prompt first.
 *
 * @param {Pick<Run, "names" | "prompts" | "flagged">} run
 * @param {number} probe
 * @param {number} evaluation
 */
export function listCrops(run, probe, evaluation) {
  if (!run.flagged(probe, evaluation)) return [probe];
  const others = [...run.names.keys()].filter((other) => other !== probe && run.flagged(other, evaluation));
  /** @param {number} other */
  const isOther = (other) => Number(run.prompts[other] !== run.prompts[probe]);
  return [probe, ...others.sort((a, b) => isOther(a) - isOther(b) || a - b)].slice(0, MAX_CROPS);
}

/** List the grounds that the alarm rests on, that of the probe itself first.
 *
 * @param {Pick<Run, "grounds">} run
 * @param {number} probe
 * @param {number} evaluation
 * @returns {Ground[]}
 */
export function listGrounds(run, probe, evaluation) {
  const grounds = run.grounds[evaluation];
  return grounds.toSorted((a, b) => Number(b.probe === probe) - Number(a.probe === probe));
}

/** Draw the hottest place of baselines, and the place where maps gained most since, side by side.
 *
 * @param {Run} run
 * @param {number[]} probes
 * @param {number} evaluation
 * @param {string} baseline the chosen one
 */
export async function cropSheet(run, probes, evaluation, baseline) {
  const pairs = await Promise.all(
    probes.map(async (probe) => {
      const row = run.rows.get(probe);
      if (!row) return [];
      const { image } = await row.ground(SIDE);
      const before = run.baselineMap(probe, evaluation, baseline);
      const now = row.map(evaluation);
      /** @type {[Float32Array | null, string][]} */
      const maps = [
        [before, run.baselineStateText(probe, evaluation, baseline)],
        [now && gain(before, now), run.stateText(probe, evaluation)],
      ];
      const crops = maps.map(([map, state]) =>
        state || !map
          ? element("span", { class: "crop", text: state || "no map" })
          : element("span", { class: "crop" }, drawCrop(image, map, row.shape)),
      );
      const name = run.names[probe];
      return [element("figure", { class: "pair" }, ...crops, element("figcaption", { text: name, title: name }))];
    }),
  );
  return element("div", { class: "crops" }, ...pairs.flat());
}

/** Draw a ground without its object and with those of other probes, and what each is called.
 *
 * @param {Run} run
 * @param {Ground} ground
 * @returns {Promise<HTMLElement[]>} empty until the images arrive
 */
export async function groundSheet(run, { probe, called, called_before: calledBefore }) {
  const [empty, ...tiles] = (await run.rows.get(probe)?.groundTiles(1 + called.length)) ?? [];
  if (!empty) return [];
  const own = run.prompts[probe];
  const objects = tiles.map((tile, i) => {
    const now = run.prompts[called[i]] ?? "unknown";
    const before = calledBefore[i] < 0 ? "not tried" : (run.prompts[calledBefore[i]] ?? "unknown");
    return element(
      "figure",
      { class: now === own ? "tile follows" : "tile" },
      canvasOf(tile),
      element(
        "figcaption",
        {},
        element("span", { class: "called", text: now, title: now }),
        element("span", { class: "before", text: now === before ? "as before" : `before: ${before}`, title: before }),
      ),
    );
  });
  const caption = element("figcaption", {}, element("span", { text: "without its object" }));
  return [
    element(
      "div",
      { class: "ground" },
      element("h4", {}, "On the background of ", element("bdi", { text: own }), ` (${run.names[probe]})`),
      element("div", { class: "objects" }, element("figure", { class: "tile" }, canvasOf(empty), caption), ...objects),
    ),
  ];
}
