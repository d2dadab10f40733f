/** Runs made of plain numbers, as the server would send them. */

import { RowData } from "../../../clipcam_lightning/tensorboard_tab/static/row_data.js";
import { Run } from "../../../clipcam_lightning/tensorboard_tab/static/run.js";

/** Bits of some half floats. */
export const BITS = { 0: 0x0000, 0.25: 0x3400, 0.5: 0x3800, 1: 0x3c00, NaN: 0x7e00 };

/** @typedef {import("../../../clipcam_lightning/tensorboard_tab/static/wire.js").Evaluations} Evaluations */

export const NO_FILES = { image: new Uint8Array(), mask: new Uint8Array(), ground: new Uint8Array() };

export const SOURCE = { run: "run", root: "clipcam", problem: "", alarm: false, wall_time: 1 };

/** Make what the server responds for a run, without rows.
 *
 * @param {Object} [values] whatever differs from two probes at three evaluations
 * @param {string[]} [values.names]
 * @param {string[]} [values.prompts]
 * @param {string[]} [values.digests]
 * @param {number[]} [values.visible] share of each image
 * @param {number[]} [values.steps]
 * @param {number[]} [values.baselineStep]
 * @param {number[]} [values.baseline] indices
 * @param {number[]} [values.alarm]
 * @param {number[][]} [values.drift] one list per probe
 * @param {number[][]} [values.similarity] one list per probe
 * @param {number[][]} [values.flagged] one list per probe
 * @param {Record<string, string>[]} [values.states] one object per evaluation
 * @param {Record<string, string>[]} [values.baselineStates] one object per evaluation
 * @param {import("../../../clipcam_lightning/tensorboard_tab/static/wire.js").Ground[][]} [values.grounds]
 * @param {Record<string, number>} [values.leftOut]
 * @returns {Evaluations}
 */
export function makeResponse({
  names = ["cat", "dog"],
  prompts = names.map((probe) => `a photo of a ${probe}`),
  digests = names.map((probe) => `digest of ${probe}`),
  visible = names.map(() => 1),
  steps = [0, 10, 20],
  baselineStep = steps.map(() => steps[0]),
  baseline = steps.map(() => 0),
  alarm = steps.map(() => 0),
  drift = names.map(() => steps.map(() => 0)),
  similarity = names.map(() => steps.map(() => 0.5)),
  flagged = names.map(() => steps.map(() => 0)),
  states = steps.map(() => ({})),
  baselineStates = steps.map(() => ({})),
  grounds = steps.map(() => []),
  leftOut = {},
} = {}) {
  const table = [names.length, steps.length];
  return {
    about: {
      probes: { names, prompts, digests, visible },
      rule: "drift above 0.5",
      settings: { method: "hirescam", target: "similarity", layers: ["visual.ln_1"] },
      metrics: ["drift", "scale"],
      reasons: steps.map(() => ""),
      notes: steps.map(() => []),
      states,
      baseline_states: baselineStates,
      state_words: { "all zero": "nothing raises the similarity" },
      grounds,
      left_out: leftOut,
      rows: [],
    },
    arrays: {
      epoch: { shape: [steps.length], data: Float64Array.from(steps.keys()) },
      baseline_step: { shape: [steps.length], data: Float64Array.from(baselineStep) },
      baseline: { shape: [steps.length], data: Int32Array.from(baseline) },
      alarm: { shape: [steps.length], data: Uint8Array.from(alarm) },
      drift: { shape: table, data: Float32Array.from(drift.flat()) },
      similarity: { shape: table, data: Float32Array.from(similarity.flat()) },
      flagged: { shape: table, data: Uint8Array.from(flagged.flat()) },
      ...makeRows([], steps).arrays,
    },
  };
}

/** Make what the server responds for some rows: empty maps of one cell, and no images.
 *
 * @param {string[]} names of the probes
 * @param {number[]} [steps]
 */
export function makeRows(names, steps = [0, 10, 20]) {
  const count = names.length * steps.length;
  return {
    about: { rows: names },
    arrays: {
      step: { shape: [steps.length], data: Float64Array.from(steps) },
      wall_time: { shape: [steps.length], data: Float64Array.from(steps, (step) => 1000 + step) },
      maps: { shape: [names.length, steps.length, 1, 1], data: new Uint16Array(count) },
      row_metrics: { shape: [names.length, steps.length, 2], data: new Float32Array(2 * count) },
      ...Object.fromEntries(
        names.flatMap((_, i) =>
          ["image", "mask", "ground"].map((kind) => [`${kind}.${i}`, { shape: [0], data: new Uint8Array() }]),
        ),
      ),
    },
  };
}

/** Make a run without rows.
 *
 * @param {Parameters<typeof makeResponse>[0] & {name?: string}} [values] as of `makeResponse`, and the run's name
 */
export function makeRun({ name = "run", ...values } = {}) {
  return new Run({ ...SOURCE, run: name }, makeResponse(values));
}

/** Make a row of maps of 3x3 cells, each with mass in some cells.
 *
 * @param {Partial<Record<number, 0 | 0.25 | 0.5 | 1>>[]} maps value by index of the cell
 * @param {Object} [options]
 * @param {number} [options.scale] of every map
 * @param {Float32Array[]} [options.baselines]
 */
export function makeRow(maps, { scale = 1, baselines = [] } = {}) {
  const halves = maps.flatMap((map) => Array.from({ length: 9 }, (_, cell) => BITS[map[cell] ?? 0]));
  const metrics = maps.flatMap(() => [0, scale]);
  return new RowData(
    {
      shape: [3, 3],
      maps: Uint16Array.from(halves),
      metrics: Float32Array.from(metrics),
      baselines,
      files: NO_FILES,
    },
    ["drift", "scale"],
  );
}
