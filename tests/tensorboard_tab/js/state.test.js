import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";

import { DEFAULTS, State, validChoices } from "../../../clipcam_lightning/tensorboard_tab/static/state.js";

/** A store that remembers what is written to it. */
class FakeStore {
  /** @param {Record<string, unknown>} [content] */
  constructor(content = {}) {
    this.content = content;
    this.writes = 0;
    /** @type {() => void} */
    this.change = () => {};
  }

  read() {
    return this.content;
  }

  /** @param {Record<string, string>} values */
  write(values) {
    this.content = values;
    this.writes++;
  }

  /** @param {() => void} listener */
  listen(listener) {
    this.change = listener;
  }
}

beforeEach(() => mock.timers.enable({ apis: ["setTimeout"] }));
afterEach(() => mock.timers.reset());

test("without an address or memory the values are the defaults", () => {
  assert.deepEqual(new State(new FakeStore(), new FakeStore()).values, { ...DEFAULTS });
  assert.equal(DEFAULTS.sort, "flagged");
});

test("the browser's memory is used if the address has no choice", () => {
  const memory = { view: "heat", opacity: "0.4" };
  const { values } = new State(new FakeStore({ unrelated: "x" }), new FakeStore(memory));
  assert.deepEqual(values, { ...DEFAULTS, ...memory });
});

test("an address takes precedence as a whole over the browser's memory", () => {
  const { values } = new State(new FakeStore({ sort: "name" }), new FakeStore({ view: "heat", sort: "drift" }));
  assert.deepEqual(values, { ...DEFAULTS, sort: "name" });
});

test("values that cannot be chosen are dropped", () => {
  /** @type {Record<string, unknown[]>} */
  const invalid = {
    view: ["<script>", "constructor", ""],
    opacity: ["NaN", "-7", "1e9"],
    baseline: ["nowhere", "-1", "1.5", "10x"],
    scale: ["furlong"],
    size: ["63", "257", "-96", "1e2", "huge"],
    speed: ["0", "3", "fast"],
    sort: ["nonsense", "__proto__"],
    constructor: ["x"],
    unrelated: ["x"],
    filter: [1, null, ["a"]],
  };
  for (const [key, values] of Object.entries(invalid)) {
    for (const value of values) assert.deepEqual(validChoices({ [key]: value }), {}, `${key}: ${value}`);
  }
});

test("values that can be chosen are kept", () => {
  const valid = {
    ...{ run: "clipcam@a", compare: "clipcam@b", view: "change", opacity: "0", colors: "viridis", baseline: "30" },
    ...{ scale: "probe", sort: "similarity", filter: "fox <b>", evaluation: "20", open: "walks", size: "128", speed: "4" },
  };
  assert.deepEqual(validChoices(valid), valid);
  for (const sort of ["flagged", "drift", "similarity", "name"]) assert.deepEqual(validChoices({ sort }), { sort });
});

test("a change calls the listeners with the changed keys only", () => {
  const state = new State(new FakeStore(), new FakeStore());
  /** @type {string[][]} */
  const calls = [];
  state.listen((changed) => calls.push([...changed]));
  state.set({ view: "heat", sort: "flagged", evaluation: 20 });
  state.set({ view: "heat", evaluation: "20" });
  assert.deepEqual(calls, [["view", "evaluation"]]);
  assert.equal(state.values.evaluation, "20");
});

test("values that the page finds do not call the listeners but are kept", () => {
  const address = new FakeStore();
  const state = new State(address, new FakeStore());
  state.listen(() => assert.fail("a listener was called"));
  state.adopt({ run: "clipcam@a" });
  mock.timers.tick(200);
  assert.deepEqual(address.content, { run: "clipcam@a" });
});

test("changes are written together, after a pause, without the defaults", () => {
  const [address, storage] = [new FakeStore(), new FakeStore()];
  const state = new State(address, storage);
  state.set({ view: "heat" });
  mock.timers.tick(150);
  state.set({ opacity: 0.4 });
  assert.equal(address.writes, 0);
  mock.timers.tick(50);
  assert.deepEqual([address.writes, storage.writes], [1, 1]);
  assert.deepEqual(address.content, { view: "heat", opacity: "0.4" });
  assert.deepEqual(storage.content, address.content);
  state.set({ view: "overlay" });
  mock.timers.tick(200);
  assert.deepEqual(address.content, { opacity: "0.4" });
});

test("another address in the same window replaces all choices", () => {
  const address = new FakeStore({ view: "heat", filter: "fox" });
  const state = new State(address, new FakeStore());
  /** @type {string[][]} */
  const calls = [];
  state.listen((changed) => calls.push([...changed].sort()));
  address.content = { sort: "name" };
  address.change();
  assert.deepEqual(state.values, { ...DEFAULTS, sort: "name" });
  assert.deepEqual(calls, [["filter", "sort", "view"]]);
  address.content = {};
  address.change(); // the address of another tab
  assert.equal(state.values.sort, "name");
});

test("the browser does not remember the runs: for an address without one the page chooses", () => {
  const [address, storage] = [new FakeStore(), new FakeStore()];
  const state = new State(address, storage);
  state.set({ run: "clipcam@a", compare: "clipcam@b", view: "heat" });
  mock.timers.tick(200);
  assert.deepEqual(address.content, { run: "clipcam@a", compare: "clipcam@b", view: "heat" });
  assert.deepEqual(storage.content, { view: "heat" });
});
