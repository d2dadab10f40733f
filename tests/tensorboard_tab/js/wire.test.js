import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import {
  HALF_FLOATS,
  RequestError,
  fetchColors,
  fetchEvaluations,
  fetchRows,
  fetchRuns,
  parseArrays,
} from "../../../clipcam_lightning/tensorboard_tab/static/wire.js";
import { safetensors } from "./safetensors.js";

const SOURCE = { run: "a run/ä&b", root: "clipcam", problem: "", alarm: false, wall_time: 0 };

const FILE = safetensors(
  {
    __metadata__: { about: JSON.stringify({ rows: ["cat"] }) },
    bytes: { dtype: "U8", shape: [3], data_offsets: [0, 3] },
    floats: { dtype: "F32", shape: [1, 2], data_offsets: [4, 12] },
    integers: { dtype: "I32", shape: [1], data_offsets: [12, 16] },
    halves: { dtype: "F16", shape: [2], data_offsets: [16, 20] },
    doubles: { dtype: "F64", shape: [1], data_offsets: [20, 28] },
    nothing: { dtype: "U8", shape: [0], data_offsets: [28, 28] },
  },
  Uint8Array.of(
    ...[1, 2, 3, 0],
    ...[0, 0, 128, 63, 0, 0, 32, 192], // 1 and -2.5
    ...[254, 255, 255, 255], // -2
    ...[0, 60, 0, 192], // the bits of 1 and -2
    ...[0, 0, 0, 0, 0, 0, 224, 63], // 0.5
  ),
);

/** @type {string[]} */
let requested = [];
/** @type {() => Response} */
let respond = () => new Response(FILE);

beforeEach(() => {
  requested = [];
  respond = () => new Response(FILE);
  mock.method(globalThis, "fetch", async (/** @type {string} */ url) => {
    requested.push(url);
    return respond();
  });
});

afterEach(() => mock.restoreAll());

test("arrays of every type are parsed, wherever their header ends", () => {
  for (const padding of ["", " ", "  ", "   "]) {
    const { about, arrays } = parseArrays(
      safetensors(
        { __metadata__: { about: `{"padding":"${padding}"}` }, a: { dtype: "F64", shape: [1], data_offsets: [0, 8] } },
        Uint8Array.of(0, 0, 0, 0, 0, 0, 240, 63),
      ),
    );
    assert.deepEqual(about, { padding });
    assert.deepEqual(arrays.a, { shape: [1], data: Float64Array.of(1) });
  }
  const { about, arrays } = parseArrays(FILE);
  assert.deepEqual(about, { rows: ["cat"] });
  assert.deepEqual(arrays, {
    bytes: { shape: [3], data: Uint8Array.of(1, 2, 3) },
    floats: { shape: [1, 2], data: Float32Array.of(1, -2.5) },
    integers: { shape: [1], data: Int32Array.of(-2) },
    halves: { shape: [2], data: Uint16Array.of(0x3c00, 0xc000) },
    doubles: { shape: [1], data: Float64Array.of(0.5) },
    nothing: { shape: [0], data: new Uint8Array() },
  });
});

test("half floats have the values of IEEE 754", () => {
  assert.equal(HALF_FLOATS.length, 65536);
  assert.equal(HALF_FLOATS[0x3c00], 1);
  assert.equal(HALF_FLOATS[0xc000], -2);
  assert.equal(HALF_FLOATS[0x3555], 0.333251953125);
  assert.equal(HALF_FLOATS[0x7bff], 65504);
  assert.equal(HALF_FLOATS[0x0400], 2 ** -14); // the smallest normal one
  assert.equal(HALF_FLOATS[0x0001], 2 ** -24); // the smallest subnormal one
  assert.equal(HALF_FLOATS[0x7c00], Infinity);
  assert.equal(HALF_FLOATS[0xfc00], -Infinity);
  assert.ok(Number.isNaN(HALF_FLOATS[0x7e00]));
  assert.ok(Object.is(HALF_FLOATS[0x8000], -0));
});

test("names in a request are escaped", async () => {
  await fetchEvaluations(SOURCE);
  await fetchRows(SOURCE, ["x=1", "y z"]);
  await fetchColors();
  const source = "run=a+run%2F%C3%A4%26b&root=clipcam";
  assert.deepEqual(requested, [`./evaluations?${source}`, `./rows?${source}&probe=x%3D1&probe=y+z`, "./colors?"]);
});

test("the list of runs is JSON", async () => {
  respond = () => Response.json({ runs: [SOURCE] });
  assert.deepEqual(await fetchRuns(), [SOURCE]);
  assert.deepEqual(requested, ["./runs?"]);
});

test("a refusal in plain text is the message of the error", async () => {
  const headers = { "content-type": "text/plain; charset=utf-8" };
  respond = () => new Response("Run 'x' has no probe 'y'.", { status: 404, headers });
  await assert.rejects(fetchRuns(), (error) => {
    assert.ok(error instanceof RequestError);
    assert.equal(error.message, "Run 'x' has no probe 'y'.");
    assert.equal(error.status, 404);
    return true;
  });
});

test("a refusal of another server is shown by its status alone", async () => {
  respond = () => new Response("<h1>Bad gateway</h1>", { status: 502, headers: { "content-type": "text/html" } });
  await assert.rejects(fetchRuns(), { message: "TensorBoard responded with status 502.", status: 502 });
  respond = () => new Response("", { status: 500, headers: { "content-type": "text/plain" } });
  await assert.rejects(fetchRuns(), { message: "TensorBoard responded with status 500." });
});

test("a connection error has a message and no status", async () => {
  respond = () => {
    throw new TypeError("Failed to fetch");
  };
  await assert.rejects(fetchRuns(), {
    message: "TensorBoard does not respond. Is it still running?",
    status: undefined,
  });
});
