import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { Run } from "../../../clipcam_lightning/tensorboard_tab/static/run.js";
import { FakeImageData } from "./browser.js";
import { SOURCE, makeResponse, makeRow, makeRows, makeRun } from "./runs.js";
import { encode } from "./safetensors.js";

const NAMES = Array.from({ length: 200 }, (_, i) => `probe-${i}`);

/** @param {number} from @param {number} to */
const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

/** Requests that wait for a response, by the names of their probes; none for all evaluations.
 *
 * @type {{names: string[], respond: (response: Response | Error) => void}[]}
 */
let waiting = [];

/** Let everything happen that waits for nothing else. */
const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Respond to the oldest request with its rows.
 *
 * @param {Parameters<typeof makeRows>[1]} [steps]
 */
async function respondWithRows(steps) {
  const request = waiting.shift();
  assert.ok(request);
  request.respond(new Response(encode(makeRows(request.names, steps))));
  await settle();
  return request.names;
}

/** @param {Response | Error} response */
async function respondWith(response) {
  waiting.shift()?.respond(response);
  await settle();
}

beforeEach(() => {
  waiting = [];
  mock.timers.enable({ apis: ["setTimeout"] });
  mock.method(globalThis, "fetch", (/** @type {string} */ url) => {
    const names = new URL(url, "http://localhost").searchParams.getAll("probe");
    return new Promise((resolve, reject) => {
      waiting.push({ names, respond: (value) => (value instanceof Error ? reject(value) : resolve(value)) });
    });
  });
  Object.assign(globalThis, { devicePixelRatio: 1, ImageData: FakeImageData }); // for tiles of missing images
});

afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

/** A run of many probes that is on the screen. */
function shownRun() {
  const run = makeRun({ names: NAMES });
  run.isShown = () => true;
  return run;
}

test("metrics are found by probe and evaluation", () => {
  const run = makeRun({
    drift: [
      [0, 0.25, 0.5],
      [0, 1, 2],
    ],
    similarity: [
      [0.1, 0.2, 0.3],
      [0.4, 0.5, 0.75],
    ],
    flagged: [
      [0, 0, 0],
      [0, 0, 1],
    ],
  });
  assert.deepEqual([run.drift(0, 1), run.drift(1, 2)], [0.25, 2]);
  assert.equal(run.similarity(1, 2), 0.75);
  assert.deepEqual([run.flagged(0, 2), run.flagged(1, 1), run.flagged(1, 2)], [false, false, true]);
  assert.equal(run.last, 2);
  assert.equal(run.evaluationAt.get(20), 2);
  assert.equal(run.indexOf.get("dog"), 1);
});

test("the callback's baseline is an evaluation or a stored map", () => {
  const run = makeRun({ baseline: [-1, 0, -3] });
  const stored = Float32Array.of(7, 7, 7);
  run.rows.set(0, makeRow([{ 0: 1 }, { 1: 1 }, { 2: 1 }], { baselines: [stored] }));
  assert.equal(run.baselineMap(0, 0, "callback"), stored);
  assert.equal(run.baselineMap(0, 1, "callback")?.[0], 1);
  assert.equal(run.baselineMap(0, 2, "callback"), null, "there is no third stored map");
});

test("another baseline is the previous evaluation or the one at a step", () => {
  const run = makeRun();
  run.rows.set(0, makeRow([{ 0: 1 }, { 1: 1 }, { 2: 1 }]));
  /** @type {(evaluation: number, choice: string) => number | undefined} */
  const lit = (evaluation, choice) => run.baselineMap(0, evaluation, choice)?.indexOf(1);
  assert.equal(lit(2, "previous"), 1);
  assert.equal(lit(0, "previous"), 0, "the first evaluation has itself");
  assert.equal(lit(0, "20"), 2);
  assert.equal(run.baselineMap(0, 0, "25"), null);
  assert.equal(run.baselineMap(1, 0, "previous"), null, "the row has not arrived");
});

test("a baseline is named by its step", () => {
  const run = makeRun({ baselineStep: [5, 0, 0] });
  assert.equal(run.baselineName(0, "callback"), "step 5");
  assert.equal(run.baselineName(2, "previous"), "step 10");
  assert.equal(run.baselineName(0, "previous"), "step 0");
  assert.equal(run.baselineName(0, "30"), "step 30");
});

test("rows of other evaluations do not match", () => {
  const run = makeRun();
  assert.equal(run.matches(makeRows([], [0, 10, 20]).arrays), true);
  assert.equal(run.matches(makeRows([], [0, 10]).arrays), false);
  assert.equal(run.matches(makeRows([], [0, 10, 30]).arrays), false);
});

test("rows in sight are requested in two batches of eight at a time", async () => {
  const run = shownRun();
  run.want(range(0, 20), range(20, 30));
  assert.deepEqual(
    waiting.map(({ names }) => names),
    [NAMES.slice(0, 8), NAMES.slice(8, 16)],
  );
  await respondWithRows();
  assert.deepEqual(
    waiting.map(({ names }) => names),
    [NAMES.slice(8, 16), NAMES.slice(16, 20)],
  );
  assert.deepEqual([...run.rows.keys()], range(0, 8));
});

test("rows near those in sight are requested when nothing else is", async () => {
  const run = shownRun();
  run.want([0], [1, 2]);
  assert.deepEqual(
    waiting.map(({ names }) => names),
    [["probe-0"]],
  );
  await respondWithRows();
  assert.deepEqual(
    waiting.map(({ names }) => names),
    [["probe-1", "probe-2"]],
  );
});

test("a run that is not shown requests nothing", () => {
  const run = makeRun({ names: NAMES });
  run.want([0], [1]);
  assert.equal(waiting.length, 0);
});

test("rows that fail make way for others and are requested again after 5 seconds", async () => {
  const run = shownRun();
  /** @type {string[]} */
  const messages = [];
  run.onError = ({ message }) => messages.push(message);
  run.want(range(0, 20), []);
  await respondWith(new Response("not now", { status: 500, headers: { "content-type": "text/plain" } }));
  assert.deepEqual(messages, ["not now"]);
  assert.deepEqual([...run.failing], range(0, 8));
  assert.deepEqual(await respondWithRows(), NAMES.slice(8, 16));
  assert.deepEqual(await respondWithRows(), NAMES.slice(16, 20));
  assert.equal(waiting.length, 0);
  mock.timers.tick(4999);
  assert.equal(waiting.length, 0);
  mock.timers.tick(1);
  assert.equal(run.failing.size, 0);
  assert.deepEqual(await respondWithRows(), NAMES.slice(0, 8));
});

test("rows of other evaluations are dropped, and the run is read again", async () => {
  const run = shownRun();
  let outdated = 0;
  run.onOutdated = async () => {
    outdated++;
    run.isShown = () => false; // another object is shown from now on
  };
  run.onError = () => assert.fail("an error was shown");
  run.want([0], []);
  await respondWithRows([0, 10, 20, 30]);
  assert.equal(outdated, 1);
  assert.equal(run.rows.size, 0);
});

test("of large rows the 64 most recently used are kept", async () => {
  const run = shownRun();
  for (const probe of range(0, 64)) run.rows.set(probe, makeRow([{}]));
  run.want([0, 100], []);
  const rows = makeRows(["probe-100"]);
  rows.arrays.maps = { shape: [1, 3, 500, 500], data: new Uint16Array(3 * 500 * 500) }; // 1.5 MB
  await respondWith(new Response(encode(rows)));
  assert.deepEqual([...run.rows.keys()], [...range(2, 64), 0, 100]);
});

test("a run is read with its first rows, and once more without change is the same object", async () => {
  const response = makeResponse({ names: ["cat", "dog"] });
  const rows = makeRows(["dog"]);
  const file = () =>
    encode({ about: { ...response.about, ...rows.about }, arrays: { ...response.arrays, ...rows.arrays } });
  const reading = Run.read(SOURCE);
  await respondWith(new Response(file()));
  const run = await reading;
  assert.deepEqual(run.names, ["cat", "dog"]);
  assert.deepEqual([...run.rows.keys()], [1]);

  const again = Run.read(SOURCE, run);
  await respondWith(new Response(file()));
  assert.equal(await again, run);
});

test("a run that has grown is read with the rows that were in sight", async () => {
  const before = shownRun();
  before.want([3, 5], []);
  await respondWithRows();

  const steps = [0, 10, 20, 30];
  const response = makeResponse({ names: NAMES, steps });
  const rows = makeRows(["probe-5"], steps);
  const reading = Run.read(SOURCE, before);
  await respondWith(
    new Response(
      encode({ about: { ...response.about, ...rows.about }, arrays: { ...response.arrays, ...rows.arrays } }),
    ),
  );
  assert.deepEqual(await respondWithRows(steps), ["probe-3"]);
  const run = await reading;
  assert.notEqual(run, before);
  assert.equal(run.last, 3);
  assert.deepEqual([...run.rows.keys()], [5, 3]);
});
