import assert from "node:assert/strict";
import { test } from "node:test";

import { fitSize } from "../../../clipcam_lightning/tensorboard_tab/static/images.js";

test("the longer side gets the requested length, and the other its share", () => {
  assert.deepEqual(fitSize([96, 160], 80), [48, 80]);
  assert.deepEqual(fitSize([160, 96], 80), [80, 48]);
  assert.deepEqual(fitSize([3, 5], 96), [58, 96]); // rounded from 57.6
  assert.deepEqual(fitSize([7, 7], 96), [96, 96]);
});

test("no side is shorter than a pixel", () => assert.deepEqual(fitSize([1, 1000], 96), [1, 96]));
