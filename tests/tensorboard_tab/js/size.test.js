import assert from "node:assert/strict";
import { test } from "node:test";

import { SIZE, chooseLengths } from "../../../clipcam_lightning/tensorboard_tab/static/size.js";

test("tiles fill the width, with those of the baseline and the current evaluation", () => {
  const before = { ...SIZE };
  for (const [width, columns] of [
    [1400, 5],
    [1920, 7],
    [1920, 12],
  ]) {
    Object.assign(SIZE, chooseLengths(width, columns, "fit"));
    const used = SIZE.side + columns * SIZE.cell;
    assert.ok(used <= width && used > width - (columns + 2), `${used} of ${width}`);
  }
  Object.assign(SIZE, { tile: before.tile, about: before.about });
});

test("tiles that fill the width are neither too small nor too large", () => {
  assert.equal(chooseLengths(1400, 200, "fit").tile, 96);
  assert.equal(chooseLengths(1920, 1, "fit").tile, 256);
});

test("a chosen size does not depend on the window", () => {
  assert.equal(chooseLengths(1400, 5, "128").tile, 128);
  assert.equal(chooseLengths(400, 5, "128").tile, 128);
});

test("in a narrow window names take less room", () => {
  assert.ok(chooseLengths(600, 5, "fit").about < chooseLengths(1400, 5, "fit").about);
});
