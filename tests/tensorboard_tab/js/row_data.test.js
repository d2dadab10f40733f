import assert from "node:assert/strict";
import { test } from "node:test";

import { RowData, slice } from "../../../clipcam_lightning/tensorboard_tab/static/row_data.js";
import { BITS, NO_FILES, makeRow } from "./runs.js";

test("a raw map is its half floats times their scale", () => {
  const row = makeRow([{ 0: 1, 8: 0.5 }, { 4: 0.25 }], { scale: 8 });
  assert.deepEqual([...(row.map(0) ?? [])], [8, 0, 0, 0, 0, 0, 0, 0, 4]);
  assert.deepEqual([...(row.map(1) ?? [])], [0, 0, 0, 0, 2, 0, 0, 0, 0]);
});

test("maps of a grid that is not square follow each other", () => {
  const row = new RowData(
    {
      shape: [2, 3],
      maps: Uint16Array.of(...new Array(6).fill(BITS[0.25]), ...new Array(6).fill(BITS[0.5])),
      metrics: Float32Array.of(1, 1),
      baselines: [],
      files: NO_FILES,
    },
    ["scale"],
  );
  assert.deepEqual([...(row.map(0) ?? [])], new Array(6).fill(0.25));
  assert.deepEqual([...(row.map(1) ?? [])], new Array(6).fill(0.5));
  assert.equal(row.max, 0.5);
});

test("a map of NaN is missing", () => {
  const row = makeRow([{ 0: 1 }, {}]);
  row.maps.fill(0x7e00, 9);
  assert.notEqual(row.map(0), null);
  assert.equal(row.map(1), null);
});

test("metrics are found by evaluation and name", () => {
  const row = makeRow([{}, {}], { scale: 4 });
  row.metrics.set([0.1, 4, 0.75, 4]);
  assert.equal(row.metric(1, "drift"), 0.75);
  assert.equal(row.metric(1, "scale"), 4);
});

test("the largest value is that of all maps and baselines", () => {
  assert.equal(makeRow([{ 0: 0.5 }, { 3: 1 }], { scale: 2 }).max, 2);
  assert.equal(makeRow([{ 0: 0.5 }], { baselines: [Float32Array.of(0, 3, 0)] }).max, 3);
  const row = makeRow([{ 0: 0.5 }, { 3: 1 }]);
  row.maps.fill(0x7e00, 9); // the larger map is missing
  assert.equal(row.max, 0.5);
});

test("a slice is a copy of an array at leading indices", () => {
  const array = { shape: [2, 3, 2], data: Float32Array.from({ length: 12 }, (_, i) => i) };
  assert.deepEqual([...slice(array, 1)], [6, 7, 8, 9, 10, 11]);
  assert.deepEqual([...slice(array, 1, 2)], [10, 11]);
  assert.deepEqual([...slice(array, 0, 1, 1)], [3]);
  slice(array, 0).fill(-1);
  assert.equal(array.data[0], 0);
});
