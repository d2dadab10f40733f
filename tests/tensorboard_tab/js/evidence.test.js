import assert from "node:assert/strict";
import { test } from "node:test";

import { listCrops, listGrounds } from "../../../clipcam_lightning/tensorboard_tab/static/evidence.js";
import { makeRun } from "./runs.js";

const NAMES = Array.from({ length: 12 }, (_, i) => `probe-${i}`);

test("the crops of a flagged probe come with those of others that are flagged, its own prompt first", () => {
  const prompts = NAMES.map((_, i) => (i % 2 ? "odd" : "even"));
  const flagged = NAMES.map((_, i) => [0, Number(i < 6), 1]);
  const run = makeRun({ names: NAMES, prompts, flagged });
  assert.deepEqual(listCrops(run, 3, 1), [3, 1, 5, 0, 2, 4]);
  assert.deepEqual(listCrops(run, 3, 2), [3, 1, 5, 7, 9, 11, 0, 2], "at most 8");
});

test("a probe that is not flagged is alone", () => {
  const run = makeRun({ flagged: [[0, 0, 0], [1, 1, 1]] });
  assert.deepEqual(listCrops(run, 0, 2), [0]);
});

test("the ground of the probe itself is shown first", () => {
  const grounds = [2, 0, 1].map((probe) => ({ probe, called: [1], called_before: [0] }));
  const run = makeRun({ names: ["a", "b", "c"], grounds: [[], grounds, []] });
  assert.deepEqual(listGrounds(run, 1, 1).map(({ probe }) => probe), [1, 2, 0]);
  assert.deepEqual(listGrounds(run, 1, 0), []);
});
