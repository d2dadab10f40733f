import assert from "node:assert/strict";
import { test } from "node:test";

import { chooseSources, keyOf, nameOf } from "../../../clipcam_lightning/tensorboard_tab/static/sources.js";

/**
 * @param {string} run
 * @param {number} time
 * @param {string} [problem]
 * @param {boolean} [alarm]
 */
const source = (run, time, problem = "", alarm = false) => ({ run, root: "clipcam", problem, alarm, wall_time: time });

const OLD = source("old", 1);
const NEW = source("new", 3);
const BROKEN = source("broken", 5, "It is damaged.");

test("a key holds root and run", () => {
  assert.equal(keyOf(OLD), "clipcam@old");
  assert.equal(keyOf({ run: "a@b", root: "clipcam_words" }), "clipcam_words@a@b");
});

test("a name mentions only an unusual root", () => {
  assert.equal(nameOf(OLD), "old");
  assert.equal(nameOf({ run: "old", root: "clipcam_words" }), "old · words");
  assert.equal(nameOf({ run: "old", root: "mine" }), "old · mine");
});

test("the newest run that can be shown is chosen by default", () => {
  const { chosen, absent } = chooseSources([OLD, NEW, BROKEN], { run: "", compare: "" });
  assert.deepEqual(chosen, [NEW]);
  assert.equal(absent, "");
});

test("the newest of the runs with an alarm is chosen before others", () => {
  const [earlier, later] = [source("earlier", 1, "", true), source("later", 2, "", true)];
  const broken = source("broken", 9, "It is damaged.", true);
  assert.deepEqual(chooseSources([earlier, later, broken, NEW], { run: "", compare: "" }).chosen, [later]);
  assert.deepEqual(chooseSources([broken, NEW], { run: "", compare: "" }).chosen, [NEW], "it cannot be shown");
});

test("the newest run is chosen if none can be shown", () => {
  const worse = source("worse", 7, "It is damaged, too.");
  assert.deepEqual(chooseSources([BROKEN, worse], { run: "", compare: "" }).chosen, [worse]);
});

test("a run in the address is chosen even if it cannot be shown", () => {
  assert.deepEqual(chooseSources([OLD, NEW, BROKEN], { run: "clipcam@broken", compare: "" }).chosen, [BROKEN]);
});

test("a missing run is replaced by the newest and named without its root", () => {
  const { chosen, absent } = chooseSources([OLD, NEW], { run: "clipcam@gone@2", compare: "" });
  assert.deepEqual(chosen, [NEW]);
  assert.equal(absent, "gone@2");
});

test("a second run is compared unless it is missing or the first one", () => {
  const sources = [OLD, NEW];
  assert.deepEqual(chooseSources(sources, { run: "clipcam@new", compare: "clipcam@old" }).chosen, [NEW, OLD]);
  assert.deepEqual(chooseSources(sources, { run: "clipcam@new", compare: "clipcam@new" }).chosen, [NEW]);
  assert.deepEqual(chooseSources(sources, { run: "clipcam@new", compare: "clipcam@gone" }).chosen, [NEW]);
});
