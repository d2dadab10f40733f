import assert from "node:assert/strict";
import { test } from "node:test";

import { describeLocation, findShift } from "../../../clipcam_lightning/tensorboard_tab/static/places.js";

/** A map of 3x3 cells: each is one ninth of the image.
 *
 * @param {...number} values
 */
const map = (...values) => Float32Array.from(values);

test("a map that moves as a whole gains and loses all its mass", () => {
  const before = map(1, 0, 0, 0, 0, 0, 0, 0, 0);
  const now = map(0, 0, 0, 0, 0, 0, 0, 0, 2);
  assert.deepEqual(findShift(before, now, [3, 3]), {
    gained: "bottom right",
    gain: 1,
    lost: "top left",
    loss: 1,
    isNotable: true,
  });
});

test("every ninth of the image has its name", () => {
  const names = ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"];
  const nowhere = map(1, 1, 1, 1, 1, 1, 1, 1, 1);
  for (const [cell, name] of names.entries()) {
    const now = new Float32Array(9);
    now[cell] = 1;
    assert.equal(findShift(nowhere, now, [3, 3])?.gained, name);
  }
});

test("shares do not depend on the scale of a map", () => {
  // 1/4 of the mass at the top before, 3/4 now.
  const before = map(0, 1, 0, 0, 3, 0, 0, 0, 0);
  const now = map(0, 300, 0, 0, 100, 0, 0, 0, 0);
  assert.deepEqual(findShift(before, now, [3, 3]), {
    gained: "top",
    gain: 0.5,
    lost: "centre",
    loss: 0.5,
    isNotable: true,
  });
});

test("cells of a finer grid belong to the ninth of their centre", () => {
  // Of four columns the centres lie at 1/8, 3/8, 5/8 and 7/8: two of them in the middle third.
  const before = map(1, 0, 0, 0);
  assert.equal(findShift(before, map(0, 1, 0, 0), [1, 4])?.gained, "centre");
  assert.equal(findShift(before, map(0, 0, 1, 0), [1, 4])?.gained, "centre");
  assert.equal(findShift(before, map(0, 0, 0, 1), [1, 4])?.gained, "right");
});

test("a gain of less than 5 % is not notable", () => {
  const before = map(100, 0, 0, 0, 0, 0, 0, 0, 0);
  assert.equal(findShift(before, map(96, 0, 0, 0, 0, 0, 0, 0, 4), [3, 3])?.isNotable, false);
  assert.equal(findShift(before, map(94, 0, 0, 0, 0, 0, 0, 0, 6), [3, 3])?.isNotable, true);
});

test("values that are negative or not finite have no mass", () => {
  const before = map(1, -5, NaN, Infinity, 0, 0, 0, 0, 0);
  const now = map(0, 1, 0, 0, 0, 0, 0, 0, 0);
  assert.deepEqual(findShift(before, now, [3, 3]), {
    gained: "top",
    gain: 1,
    lost: "top left",
    loss: 1,
    isNotable: true,
  });
});

test("a map without a positive value has no shift", () => {
  const empty = new Float32Array(9);
  const lit = map(1, 0, 0, 0, 0, 0, 0, 0, 0);
  assert.equal(findShift(empty, lit, [3, 3]), null);
  assert.equal(findShift(lit, empty, [3, 3]), null);
});

const SPREAD = map(1, 1, 1, 1, 1, 1, 1, 1, 1);
const LIT = map(9, 1, 0, 0, 0, 0, 0, 0, 0);

test("a map that moved is described by where to and where from", () => {
  const text = describeLocation(map(1, 0, 0, 0, 0, 0, 0, 0, 0), map(0, 0, 0, 0, 0, 0, 0, 0, 2), [3, 3]);
  assert.equal(text, "moved to the bottom right (+100\u00a0%) from the top left (−100\u00a0%)");
});

test("a map that stayed is described by its place", () => {
  assert.equal(describeLocation(map(9, 1.1, 0, 0, 0, 0, 0, 0, 0), LIT, [3, 3]), "still at the top left (90\u00a0%)");
  assert.equal(describeLocation(LIT, LIT, [3, 3]), "at the top left (90\u00a0%)", "it is the baseline");
  assert.equal(describeLocation(null, LIT, [3, 3]), "at the top left (90\u00a0%)", "the baseline is not known");
});

test("a map of which many cells hold half of the mass is spread over the image", () => {
  assert.equal(describeLocation(SPREAD, SPREAD, [3, 3]), "spread over the image");
  assert.equal(describeLocation(SPREAD, map(1, 1, 1, 1, 1, 1, 1, 1, 1.1), [3, 3]), "still spread over the image");
});

test("a map without a positive value is named", () => {
  const empty = new Float32Array(9);
  assert.equal(describeLocation(LIT, empty, [3, 3]), "no positive evidence");
  assert.equal(
    describeLocation(empty, LIT, [3, 3]),
    "at the top left (90\u00a0%); no positive evidence at the baseline",
  );
});
