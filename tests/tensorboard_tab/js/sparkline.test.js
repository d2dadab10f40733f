import assert from "node:assert/strict";
import { test } from "node:test";

import { layOutSparkline } from "../../../clipcam_lightning/tensorboard_tab/static/sparkline.js";
import { makeRun } from "./runs.js";

/** A run of one probe.
 *
 * @param {number[]} drift
 * @param {Parameters<typeof makeRun>[0]} [values]
 */
const run = (drift, values = {}) => makeRun({ names: ["cat"], drift: [drift], ...values });

test("evaluations lie at their steps, within a margin of 4 pixels", () => {
  const { x } = layOutSparkline(run([0, 0, 0], { steps: [100, 110, 140] }), 0, 108, 28);
  assert.deepEqual(x, [4, 29, 104]); // 0, 1/4 and all of 100 pixels
});

test("a drift of 1 is at the top, 0 at the bottom", () => {
  const { line, zero, highest } = layOutSparkline(run([0, 0.5, 1]), 0, 108, 28);
  assert.deepEqual(line, [
    [4, 24],
    [54, 14],
    [104, 4],
  ]);
  assert.equal(zero, 24);
  assert.equal(highest, 1);
});

test("a drift above 1 is at the top, and lowers the others", () => {
  const { line, highest } = layOutSparkline(run([0, 1, 2]), 0, 108, 28);
  assert.deepEqual(
    line.map(([, y]) => y),
    [24, 14, 4],
  );
  assert.equal(highest, 2);
});

test("an unknown drift has no point", () => {
  const { line, x } = layOutSparkline(run([NaN, 0, 1]), 0, 108, 28);
  assert.deepEqual(line, [
    [54, 24],
    [104, 4],
  ]);
  assert.equal(x.length, 3);
});

test("flagged evaluations have dots on the line", () => {
  const { dots } = layOutSparkline(run([0, 0.5, 1], { flagged: [[0, 1, 1]] }), 0, 108, 28);
  assert.deepEqual(dots, [
    [54, 14],
    [104, 4],
  ]);
});

test("a single evaluation is at the left", () => {
  const { x, line } = layOutSparkline(run([0], { steps: [30] }), 0, 108, 28);
  assert.deepEqual(x, [4]);
  assert.deepEqual(line, [[4, 24]]);
});

test("the label says the last drift and since when the probe is flagged", () => {
  assert.equal(layOutSparkline(run([0, 0, 0.126]), 0, 108, 28).label, "drift 0.13 at the last evaluation");
  assert.equal(layOutSparkline(run([0, 0, NaN]), 0, 108, 28).label, "drift unknown at the last evaluation");
  assert.equal(
    layOutSparkline(run([0, 0.5, 1], { flagged: [[0, 1, 1]] }), 0, 108, 28).label,
    "drift 1.00 at the last evaluation; first flagged at step 10",
  );
});

test("the chart is that of its probe", () => {
  const both = makeRun({
    drift: [
      [0, 0, 0],
      [0, 0, 1],
    ],
  });
  assert.equal(layOutSparkline(both, 0, 108, 28).label, "drift 0.00 at the last evaluation");
  assert.equal(layOutSparkline(both, 1, 108, 28).label, "drift 1.00 at the last evaluation");
});
