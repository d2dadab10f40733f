import assert from "node:assert/strict";
import { test } from "node:test";

import { maxValue, normalize, paint } from "../../../clipcam_lightning/tensorboard_tab/static/heat.js";

/** Colour `i` is (i, 0, 255 - i). */
const COLORS = Uint8Array.from({ length: 3 * 256 }, (_, i) => [Math.floor(i / 3), 0, 255 - Math.floor(i / 3)][i % 3]);

/** An image of one colour.
 *
 * @param {number} width
 * @param {number} height
 * @param {number[]} rgb
 */
function flat(width, height, rgb) {
  const pixels = Array.from({ length: width * height }, () => [...rgb, 255]);
  return { width, height, data: Uint8ClampedArray.from(pixels.flat()) };
}

/**
 * @param {string} view
 * @param {number} [opacity]
 */
const options = (view, opacity = 0.85) => ({ view, opacity, heatColors: COLORS, changeColors: COLORS });

/** @param {number[]} values */
const map = (values) => Float32Array.from(values);

/** Colours of the pixels, without alpha.
 *
 * @param {Uint8ClampedArray | null} data
 */
function colors(data) {
  assert.ok(data);
  return Array.from({ length: data.length / 4 }, (_, i) => [...data.slice(4 * i, 4 * i + 3)]);
}

test("the largest value is finite, and positive even if no cell is", () => {
  assert.equal(maxValue(map([0.25, Infinity, 0.5, NaN, -1])), 0.5);
  assert.ok(maxValue(map([0, -1])) > 0);
});

test("a map is divided by its largest value and clipped", () => {
  assert.deepEqual([...normalize(map([1, 2, -1, NaN, Infinity]))], [0.5, 1, 0, 0, 0]);
  assert.deepEqual([...normalize(map([1, 2]), 4)], [0.25, 0.5]);
  assert.deepEqual([...normalize(map([1, 8]), 4)], [0.25, 1]);
  assert.deepEqual([...normalize(map([0, 0]))], [0, 0]);
});

test("heat has the colour of each value", () => {
  const data = paint(flat(1, 1, [9, 9, 9]), [1, 1], map([1]), null, options("heat"));
  assert.deepEqual(colors(data), [[255, 0, 0]]);
  assert.deepEqual(colors(paint(flat(1, 1, [9, 9, 9]), [1, 1], map([0.2]), null, options("heat"))), [[51, 0, 204]]);
});

test("a map is interpolated between the centres of its cells", () => {
  // Two cells on four pixels: the centres lie at 1 and 3, the pixels at 0.5, 1.5, 2.5 and 3.5.
  const across = paint(flat(4, 1, [0, 0, 0]), [1, 2], map([0, 1]), null, options("heat"));
  assert.deepEqual(
    colors(across).map(([red]) => red),
    [0, 64, 191, 255], // 0, 1/4, 3/4 and 1 of 255
  );
  const down = paint(flat(1, 4, [0, 0, 0]), [2, 1], map([0, 1]), null, options("heat"));
  assert.deepEqual(colors(down), colors(across));
});

test("each pixel is interpolated between the two nearest of several cells", () => {
  // Three cells on six pixels: a pixel lies a quarter or three quarters of the way between two centres.
  const data = paint(flat(6, 1, [0, 0, 0]), [1, 3], map([0, 0.8, 0]), null, options("heat"));
  assert.deepEqual(
    colors(data).map(([red]) => red),
    [0, 51, 153, 153, 51, 0], // 0, 0.2, 0.6, ... of 255
  );
});

test("rows of a map lie below each other", () => {
  const data = paint(flat(2, 2, [0, 0, 0]), [2, 2], map([0, 0.2, 0.4, 1]), null, options("heat"));
  assert.deepEqual(
    colors(data).map(([red]) => red),
    [0, 51, 102, 255],
  );
});

test("an overlay covers the grey, darkened image more where the map is hotter", () => {
  // Grey of (200, 100, 0): 0.299 * 200 + 0.587 * 100 = 118.5, rounded to 119; darkened: 20.4 + 0.6 * 119 = 91.8.
  const image = flat(1, 1, [200, 100, 0]);
  // A cold cell: the colour covers 5 %.
  const cold = paint(image, [1, 1], map([0]), null, options("overlay"));
  assert.deepEqual(colors(cold), [[87, 87, 100]]); // 0.95 * 91.8, and 12.75 more blue
  // The hottest cell: it covers 65 %.
  const hot = paint(image, [1, 1], map([1]), null, options("overlay"));
  assert.deepEqual(colors(hot), [[198, 32, 32]]); // 0.65 * 255 + 0.35 * 91.8
});

test("the grey of an overlay has the weights of red, green and blue", () => {
  // 0.299 * 50 + 0.587 * 100 + 0.114 * 250 = 102.15; darkened: 20.4 + 0.6 * 102 = 81.6.
  const data = paint(flat(1, 1, [50, 100, 250]), [1, 1], map([1]), null, options("overlay", 0));
  assert.deepEqual(colors(data), [[82, 82, 82]]);
});

test("an overlay without opacity is the grey, darkened image", () => {
  const data = paint(flat(1, 1, [200, 100, 0]), [1, 1], map([1]), null, options("overlay", 0));
  assert.deepEqual(colors(data), [[92, 92, 92]]);
});

test("a change shows the middle colour for none and covers by the root of its size", () => {
  // Dim image: 0.15 * 255 + 0.4 * 100 = 78.25.
  const image = flat(1, 1, [100, 100, 100]);
  /** @type {(heat: number, baseline: number) => number[][]} */
  const change = (heat, baseline) => colors(paint(image, [1, 1], map([heat]), map([baseline]), options("change")));
  assert.deepEqual(change(0.5, 0.5), [[78, 78, 78]]);
  assert.deepEqual(change(1, 0), [[220, 16, 16]]); // 0.8 * 255 + 0.2 * 78.25
  assert.deepEqual(change(0, 1), [[16, 16, 220]]);
  // A quarter: 40 % of it are covered, by colour 128 + 32 = 159 (rounded from 159.375).
  assert.deepEqual(change(0.25, 0), [[111, 47, 85]]);
});

test("the input is the image itself", () => {
  const image = flat(2, 1, [1, 2, 3]);
  const painted = paint(image, [1, 1], null, null, options("input"));
  assert.deepEqual(painted, image.data);
  assert.notEqual(painted, image.data, "a copy, on which an outline may be drawn");
});

test("a view whose map is missing cannot be painted", () => {
  const image = flat(1, 1, [0, 0, 0]);
  assert.equal(paint(image, [1, 1], null, null, options("overlay")), null);
  assert.equal(paint(image, [1, 1], null, null, options("heat")), null);
  assert.equal(paint(image, [1, 1], map([1]), null, options("change")), null);
  assert.equal(paint(image, [1, 1], null, map([1]), options("change")), null);
});

test("painted pixels are opaque, and the image is left alone", () => {
  const image = flat(2, 2, [10, 20, 30]);
  const before = [...image.data];
  for (const view of ["overlay", "heat", "change"]) {
    const data = paint(image, [1, 1], map([1]), map([0]), options(view));
    assert.ok(data);
    assert.equal(data.length, 16);
    assert.deepEqual([data[3], data[7], data[11], data[15]], [255, 255, 255, 255]);
  }
  assert.deepEqual([...image.data], before);
});

test("where everything is hot the image stays visible, even at the highest opacity", () => {
  /** @param {number} grey */
  const shown = (grey) => colors(paint(flat(1, 1, [grey, grey, grey]), [1, 1], map([1]), null, options("overlay", 1)))[0];
  assert.ok(shown(255)[1] - shown(0)[1] > 30, "levels between white and black below the hottest colour");
});
