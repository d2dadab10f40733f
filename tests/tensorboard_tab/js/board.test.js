import assert from "node:assert/strict";
import { test } from "node:test";

import { Board, pairProbes, probeOrder } from "../../../clipcam_lightning/tensorboard_tab/static/board.js";
import { SIZE } from "../../../clipcam_lightning/tensorboard_tab/static/size.js";
import { State } from "../../../clipcam_lightning/tensorboard_tab/static/state.js";
import { FakeImageData, makeImage } from "./browser.js";
import { makeRow, makeRun } from "./runs.js";

Object.assign(globalThis, { ImageData: FakeImageData, devicePixelRatio: 1 });

const OUTLINE = { white: Uint32Array.of(0), black: Uint32Array.of(8) }; // of an image of 3x3 pixels

const COLORS = {
  about: { heat: ["inferno", "viridis"], change: "vik" },
  arrays: {
    inferno: { shape: [256, 3], data: new Uint8Array(768).fill(1) },
    viridis: { shape: [256, 3], data: new Uint8Array(768).fill(2) },
    vik: { shape: [256, 3], data: new Uint8Array(768).fill(3) },
  },
};

/** A board with these choices, which writes nowhere.
 *
 * @param {ReturnType<typeof makeRun>[]} runs
 * @param {Record<string, string>} [choices]
 */
function makeBoard(runs, choices = {}) {
  const nowhere = { read: () => choices, write: () => {}, listen: () => {} };
  const board = new Board(new State(nowhere, nowhere), COLORS);
  board.show(runs);
  return board;
}

/** Names of the probes of a run in an order.
 *
 * @param {ReturnType<typeof makeRun>} run
 * @param {string} sort
 */
function sorted(run, sort) {
  const compare = probeOrder(run, sort);
  return [...run.names.keys()].sort(compare).map((probe) => run.names[probe]);
}

const MIXED = makeRun({
  names: ["unknown", "still", "flagged 2", "moved 10", "flagged 1", "unknown 2"],
  steps: [0],
  drift: [[NaN], [0], [0.6], [0.9], [0.7], [NaN]],
  similarity: [[0.5], [0.1], [0.4], [0.2], [NaN], [0.3]],
  flagged: [[0], [0], [1], [0], [1], [0]],
});

test("by default flagged probes come first, unknown drift last, and the others by drift", () => {
  const expected = ["flagged 1", "flagged 2", "moved 10", "still", "unknown", "unknown 2"];
  assert.deepEqual(sorted(MIXED, "flagged"), expected);
  assert.deepEqual(
    makeBoard([MIXED]).probes.map(([probe]) => MIXED.names[probe]),
    expected,
  );
});

test("probes of equal drift keep their order", () => {
  const run = makeRun({ names: ["d", "c", "b", "a"] });
  assert.deepEqual(sorted(run, "drift"), run.names);
  assert.deepEqual(sorted(run, "similarity"), run.names);
  assert.deepEqual(sorted(run, "flagged"), run.names);
});

test("probes can be sorted by drift alone", () => {
  assert.deepEqual(sorted(MIXED, "drift"), ["moved 10", "flagged 1", "flagged 2", "still", "unknown", "unknown 2"]);
});

test("probes can be sorted by similarity, lowest first", () => {
  const names = ["flagged 1", "still", "moved 10", "unknown 2", "flagged 2", "unknown"];
  assert.deepEqual(sorted(MIXED, "similarity"), names);
});

test("probes can be sorted by name, numbers by their value", () => {
  const run = makeRun({ names: ["b", "a10", "a9", "A1"] });
  assert.deepEqual(sorted(run, "name"), ["A1", "a9", "a10", "b"]);
});

test("probes are sorted by the last evaluation, equal ones by their index", () => {
  const run = makeRun({
    names: ["a", "b", "c"],
    drift: [
      [0, 0.9, 0.1],
      [0, 0.1, 0.5],
      [0, 0.2, 0.5],
    ],
  });
  assert.deepEqual(sorted(run, "flagged"), ["b", "c", "a"]);
});

test("the filter keeps probes with all its words, in name or prompt, whatever their case", () => {
  const run = makeRun({ names: ["fox", "owl"], prompts: ["A photo of a Fox", "a drawing"] });
  /** @param {string} filter */
  const shown = (filter) => makeBoard([run], { filter }).probes.map(([probe]) => run.names[probe]);
  assert.deepEqual(shown("FOX photo"), ["fox"]);
  assert.deepEqual(shown("owl drawing"), ["owl"]);
  assert.deepEqual(shown(" a "), ["fox", "owl"]);
  assert.deepEqual(shown("fox drawing"), []);
});

test("the number of probes is shown, and how many the filter keeps", () => {
  const run = makeRun({ names: ["fox", "owl"], prompts: ["", ""] });
  assert.equal(makeBoard([run]).countText, "2 probes");
  assert.equal(makeBoard([run], { filter: "fox" }).countText, "1 of 2 probes");
  assert.equal(makeBoard([makeRun({ names: ["fox"] })]).countText, "1 probe");
});

test("probes of two runs are paired by digest, and by name where digests repeat", () => {
  const first = makeRun({ names: ["a", "b", "c", "d"], digests: ["1", "2", "2", "3"] });
  const second = makeRun({ names: ["x", "c", "y", "d"], digests: ["1", "2", "2", "4"] });
  // "c" has its namesake, which leaves "y" for "b"; "d" has another digest in the second run.
  assert.deepEqual(pairProbes(first, second), [
    [0, 0],
    [1, 2],
    [2, 1],
  ]);
});

test("a probe of the second run has one partner only", () => {
  const first = makeRun({ names: ["a", "b"], digests: ["1", "1"] });
  const second = makeRun({ names: ["x"], digests: ["1"] });
  assert.deepEqual(pairProbes(first, second), [[0, 0]]);
  const board = makeBoard([first, second]);
  assert.deepEqual([board.matched, board.unmatched], [1, 1]);
});

test("columns are the steps of all runs, each with the evaluations of the runs that have it", () => {
  const board = makeBoard([makeRun({ steps: [0, 20] }), makeRun({ steps: [0, 10, 20] })]);
  assert.deepEqual(board.columns, [
    { step: 0, evaluations: [0, 0] },
    { step: 10, evaluations: [undefined, 1] },
    { step: 20, evaluations: [1, 2] },
  ]);
  assert.equal(board.title(1), "step 10, epoch 1");
});

test("a run without an evaluation in a column shows its last one before", () => {
  const board = makeBoard([makeRun({ steps: [10, 30] }), makeRun({ steps: [0, 20] })]);
  assert.equal(board.evaluationUntil(0, 0), undefined); // step 0
  assert.equal(board.evaluationUntil(2, 0), 0); // step 20
  assert.equal(board.evaluationUntil(3, 0), 1); // step 30
  assert.equal(board.evaluationUntil(3, 1), 1);
});

test("a column has an alarm if any run has", () => {
  const board = makeBoard([
    makeRun({ steps: [0, 10], alarm: [0, 1] }),
    makeRun({ steps: [0, 10, 20], alarm: [0, 0, 1] }),
  ]);
  assert.deepEqual([board.hasAlarm(0), board.hasAlarm(1), board.hasAlarm(2)], [false, true, true]);
});

test("the last column is shown by default, and stays shown when a run grows", () => {
  const board = makeBoard([makeRun({ steps: [0, 10] })]);
  assert.equal(board.current, 1);
  board.go(0);
  assert.equal(board.current, 0);
  board.go(7); // beyond the last
  assert.equal(board.current, 1);
  board.show([makeRun({ steps: [0, 10, 20] })]);
  assert.equal(board.current, 2);
});

test("an earlier column stays shown when a run grows before it", () => {
  const board = makeBoard([makeRun({ steps: [0, 20, 30] })]);
  board.go(1);
  board.show([makeRun({ steps: [0, 10, 20, 30] })]);
  assert.equal(board.columns[board.current].step, 20);
});

test("a missing step in the address shows the last column", () => {
  assert.equal(makeBoard([makeRun()], { evaluation: "15" }).current, 2);
  assert.equal(makeBoard([makeRun()], { evaluation: "yesterday" }).current, 2);
  assert.equal(makeBoard([makeRun()], { evaluation: "10" }).current, 1);
});

test("the probe in the large view is found by its name in the first run", () => {
  const board = makeBoard([makeRun({ name: "a" }), makeRun({ name: "b" })], { open: "dog" });
  assert.deepEqual(board.open, [1, 1]);
  assert.equal(makeBoard([makeRun()], { open: "nobody" }).open, undefined);
  assert.equal(makeBoard([makeRun()]).open, undefined);
});

test("an empty board has no columns and no probes", () => {
  const board = makeBoard([]);
  board.go(0);
  assert.deepEqual([board.columns, board.probes, board.last, board.open], [[], [], -1, undefined]);
});

test("colours that the server lacks are replaced by the first", () => {
  assert.equal(makeBoard([makeRun()], { colors: "viridis" }).heatColors[0], 2);
  assert.equal(makeBoard([makeRun()], { colors: "constructor" }).heatColors[0], 1);
  assert.equal(makeBoard([makeRun()]).changeColors[0], 3);
});

test("a probe whose row has not arrived has no image yet", () => {
  const run = makeRun();
  const board = makeBoard([run]);
  assert.equal(board.image(run, 0, 0), undefined);
});

/** A board of one run whose probe 0 is lit at cell 0, then at cell 8, on an image of 3x3 pixels; heat `i` has red `i`.
 *
 * @param {Record<string, string>} choices
 * @param {Parameters<typeof makeRun>[0]} [states] of the run
 */
function paintedBoard(choices, states = {}) {
  const run = makeRun({ baseline: [0, 0, -1], ...states });
  const row = makeRow([{ 0: 1 }, { 8: 0.5 }, { 8: 1 }]);
  row.tile = { image: makeImage(new Uint8ClampedArray(36).fill(9), 3, 3), outline: null };
  row.tileSide = SIZE.tile;
  run.rows.set(0, row);
  const board = makeBoard([run], choices);
  for (let i = 0; i < 256; i++) COLORS.arrays.inferno.data[3 * i] = COLORS.arrays.vik.data[3 * i] = i;
  /** @type {(evaluation: number, options?: Parameters<Board["image"]>[3]) => number[] | null | undefined} */
  const corners = (evaluation, options) => {
    const image = board.image(run, 0, evaluation, options);
    return image && [image.data[0], image.data[32]]; // red of the first and last pixel
  };
  return { board, row, corners };
}

test("an image shows the map of its evaluation, or that of the baseline", () => {
  const { corners } = paintedBoard({ view: "heat" });
  assert.deepEqual(corners(1), [0, 255]);
  assert.deepEqual(corners(1, { before: true }), [255, 0]);
  assert.deepEqual(corners(2, { before: true }), null, "its baseline is not available");
});

test("an image is scaled by its own map or by all maps of the probe", () => {
  assert.deepEqual(paintedBoard({ view: "heat", scale: "map" }).corners(1), [0, 255]);
  assert.deepEqual(paintedBoard({ view: "heat", scale: "probe" }).corners(1), [0, 128]);
});

test("a change is painted against the chosen baseline", () => {
  // An opacity of 1 covers 0.8 / 0.85 = 94 % of the dim image, which has 41.85.
  assert.deepEqual(paintedBoard({ view: "change", opacity: "1" }).corners(1), [2, 242]);
  const { corners } = paintedBoard({ view: "change", opacity: "1", baseline: "20" });
  assert.deepEqual(corners(0), [242, 2]);
  assert.deepEqual(corners(0, { view: "heat" }), [255, 0], "another view than the chosen one");
});

test("the input is painted without a map, at another size on request", () => {
  const { board, corners } = paintedBoard({ view: "input" });
  assert.deepEqual(corners(2), [9, 9]);
  const image = makeImage(new Uint8ClampedArray(8).fill(5), 2, 1);
  const painted = board.image(board.runs[0], 0, 0, { ground: { image, outline: null } });
  assert.deepEqual([painted?.width, painted?.height, painted?.data[0]], [2, 1, 5]);
});

test("the outline of the object is drawn on every view, and not on the image itself", () => {
  for (const view of ["overlay", "heat", "change", "input"]) {
    const { row, corners } = paintedBoard({ view });
    const ground = { image: makeImage(new Uint8ClampedArray(36).fill(9), 3, 3), outline: OUTLINE };
    row.tile = ground;
    assert.deepEqual(corners(1), [255, 0], view);
    assert.equal(ground.image.data[0], 9);
  }
});

test("a tile of another size than that of the grid is not shown", () => {
  const { row, corners } = paintedBoard({ view: "heat" });
  row.tileSide = SIZE.tile + 1;
  assert.equal(corners(1), undefined);
});

test("while a tile is made for another size of the grid, the old one is not shown at that size", async () => {
  const { row, corners } = paintedBoard({ view: "heat" });
  const before = SIZE.tile;
  const ground = { image: makeImage(new Uint8ClampedArray(36).fill(9), 3, 3), outline: null };
  /** @type {(value: typeof ground) => void} */
  let finish = () => {};
  row.ground = () => new Promise((resolve) => (finish = resolve));
  const making = row.fit(before + 1);
  SIZE.tile = before + 1;
  try {
    assert.equal(corners(1), undefined);
    finish(ground);
    await making;
    assert.notEqual(corners(1), undefined);
  } finally {
    SIZE.tile = before;
  }
});

test("a degenerate map is painted cold, with what its state says", () => {
  /** @type {Record<string, string>[]} */
  const states = [{}, { cat: "all zero" }, { cat: "of a later version" }];
  const { board, row, corners } = paintedBoard({ view: "heat" }, { states });
  const [run] = board.runs;
  assert.deepEqual([0, 1, 2].map((evaluation) => board.stateText(run, 0, evaluation)), [
    "",
    "nothing raises the similarity",
    "of a later version",
  ]);
  assert.deepEqual(corners(1), [0, 0]);
  row.maps.fill(0x7e00, 9, 18);
  assert.deepEqual(corners(1), [0, 0], "also if no cell is finite");
  assert.equal(board.stateText(run, 1, 1), "", "of another probe");
});

test("a change from or to a degenerate map says that there is nothing to compare", () => {
  /** @type {Record<string, string>[]} */
  const baselineStates = [{}, { cat: "all zero" }, {}];
  const { board, corners } = paintedBoard({ view: "change" }, { baselineStates });
  const [run] = board.runs;
  assert.deepEqual([0, 1].map((evaluation) => board.stateText(run, 0, evaluation)), ["", "nothing to compare"]);
  assert.equal(board.stateText(run, 0, 1, "overlay"), "", "the map of now is valid");
  const [middle] = corners(1, { view: "change" }) ?? [];
  assert.deepEqual(corners(1, { view: "change" }), [middle, middle], "no cell gained or lost");
  assert.equal(board.stateText(run, 0, 1, "input"), "");
  assert.deepEqual(corners(1, { view: "heat", before: true }), [0, 0]);
});

test("a map that is the baseline of another evaluation keeps its state", () => {
  /** @type {Record<string, string>[]} */
  const states = [{ cat: "all zero" }, {}, {}];
  const run = makeRun({ states });
  assert.equal(run.baselineStateText(0, 1, "previous"), "nothing raises the similarity");
  assert.equal(run.baselineStateText(0, 2, "0"), "nothing raises the similarity");
  assert.equal(run.baselineStateText(0, 2, "previous"), "");
  assert.equal(run.baselineStateText(0, 2, "99"), "", "there is no such evaluation");
});

test("a missing map has no image", () => {
  const { row, corners } = paintedBoard({ view: "overlay" });
  row.maps.fill(0x7e00, 9, 18);
  assert.equal(corners(1), null);
  assert.notEqual(corners(0), null);
  assert.equal(paintedBoard({ view: "change" }).corners(2), null, "its baseline is not available");
});
