import assert from "node:assert/strict";
import { test } from "node:test";

import { findCrop, gain } from "../../../clipcam_lightning/tensorboard_tab/static/crop.js";

const IMAGE = { width: 120, height: 90 };

/** @param {Record<number, number>} hot values by index of a 6 x 6 map */
function mapWith(hot) {
  const map = new Float32Array(36).fill(-1);
  for (const [cell, value] of Object.entries(hot)) map[Number(cell)] = value;
  return map;
}

test("a crop is a third of the shorter side around the hottest cell", () => {
  assert.deepEqual(findCrop(mapWith({ 14: 1 }), [6, 6], IMAGE), { x: 35, y: 23, side: 30 });
});

test("a crop at the edge stays within the image", () => {
  assert.deepEqual(findCrop(mapWith({ 0: 1 }), [6, 6], IMAGE), { x: 0, y: 0, side: 30 });
  assert.deepEqual(findCrop(mapWith({ 35: 1 }), [6, 6], IMAGE), { x: 90, y: 60, side: 30 });
});

test("a large spot comes before a single cell that is hardly hotter", () => {
  const { x, y } = findCrop(mapWith({ 0: 1.05, 28: 1, 29: 1, 34: 1, 35: 1 }), [6, 6], IMAGE);
  assert.ok(x > 60 && y > 45);
});

test("what a map gained is relative to the largest value of each map", () => {
  const gained = gain(new Float32Array([2, 1, 0]), new Float32Array([8, 0, 4]));
  assert.deepEqual([...gained], [0, 0, 0.5]);
});

test("a map that gained nothing is looked at where it is hottest, as is one without baseline", () => {
  const map = new Float32Array([1, 3]);
  assert.equal(gain(new Float32Array([2, 6]), map), map);
  assert.equal(gain(null, map), map);
});
