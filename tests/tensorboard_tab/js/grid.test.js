import assert from "node:assert/strict";
import { test } from "node:test";

import { rangeInSight, scrollIntoSight } from "../../../clipcam_lightning/tensorboard_tab/static/grid.js";

test("what is in sight has one more item on either side", () => {
  // Items of 100 pixels: 250 to 550 shows the items 2 to 5.
  assert.deepEqual(rangeInSight(250, 300, 100, 20), [1, 6]);
});

test("what is in sight ends with the first and last item", () => {
  assert.deepEqual(rangeInSight(0, 300, 100, 20), [0, 4]);
  assert.deepEqual(rangeInSight(1700, 300, 100, 20), [16, 19]);
  assert.deepEqual(rangeInSight(0, 300, 100, 2), [0, 1]);
});

test("of no items none is in sight", () => {
  const [first, last] = rangeInSight(0, 300, 100, 0);
  assert.ok(last < first);
});

test("an item in sight needs no scrolling", () => {
  assert.equal(scrollIntoSight(250, 300, 300, 100), 250);
  assert.equal(scrollIntoSight(250, 300, 250, 100), 250); // at the edge
  assert.equal(scrollIntoSight(250, 300, 450, 100), 250); // at the other edge
});

test("an item out of sight is scrolled to the nearer edge", () => {
  assert.equal(scrollIntoSight(250, 300, 200, 100), 200);
  assert.equal(scrollIntoSight(250, 300, 500, 100), 300); // 500 + 100 - 300
});
