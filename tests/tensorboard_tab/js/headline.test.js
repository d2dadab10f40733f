import assert from "node:assert/strict";
import { test } from "node:test";

import {
  describeAlarm,
  describeDrift,
  describeFlagged,
  describeLeftOut,
  describePlace,
  describeTime,
  findSharedPrompt,
} from "../../../clipcam_lightning/tensorboard_tab/static/headline.js";
import { makeRow, makeRun } from "./runs.js";

test("an alarm is shown with its first step", () => {
  assert.equal(describeAlarm(makeRun({ alarm: [0, 1, 1] })), "Alarm since step 10");
  assert.equal(describeAlarm(makeRun({ alarm: [1, 0, 1] })), "Alarm since step 20");
  assert.equal(describeAlarm(makeRun({ alarm: [1, 1, 1] })), "Alarm since step 0");
});

test("without an alarm at the last evaluation the first earlier one is mentioned", () => {
  assert.equal(describeAlarm(makeRun({ alarm: [0, 0, 0] })), "No alarm at the last evaluation");
  assert.equal(describeAlarm(makeRun({ alarm: [0, 1, 0] })), "No alarm at the last evaluation, but one at step 10");
});

test("flagged probes are counted at the last evaluation", () => {
  const flagged = [
    [0, 1, 1],
    [0, 1, 0],
  ];
  assert.equal(describeFlagged(makeRun({ flagged })), "1 of 2 probes is flagged");
  assert.equal(describeFlagged(makeRun({ flagged: [flagged[0], flagged[0]] })), "2 of 2 probes are flagged");
  assert.equal(describeFlagged(makeRun()), "no probe is flagged");
});

test("the prompt is named that all flagged probes share", () => {
  const [never, last, first] = [
    [0, 0, 0],
    [0, 0, 1],
    [1, 1, 0],
  ];
  /** @type {(prompts: string[], flagged: number[][]) => string | undefined} */
  const shared = (prompts, flagged) => findSharedPrompt(makeRun({ names: ["1", "2", "3"], prompts, flagged }));
  assert.equal(shared(["fox", "fox", "dog"], [last, last, never]), "fox");
  assert.equal(shared(["fox", "fox", "dog"], [last, first, first]), "fox", "at the last evaluation");
  assert.equal(shared(["fox", "fox", "dog"], [last, last, last]), undefined);
  assert.equal(shared(["fox", "fox", "dog"], [never, never, never]), undefined);
});

test("the probe with the largest drift is named", () => {
  const drift = [
    [0, 0.3, 0.2],
    [0, 0.1, 0.25],
  ];
  assert.deepEqual(describeDrift(makeRun({ drift })), {
    name: "dog",
    text: " moved most: drift 0.25, most of it between steps 10 and 20.",
  });
});

test("a probe of unknown drift is not the one that moved most", () => {
  const drift = [
    [NaN, NaN, NaN],
    [0, 0.1, 0.2],
  ];
  assert.equal(describeDrift(makeRun({ drift })).name, "dog");
});

test("if no drift is known the sentence says why", () => {
  const drift = [
    [NaN, NaN, NaN],
    [NaN, NaN, NaN],
  ];
  assert.deepEqual(describeDrift(makeRun({ drift })), {
    name: "",
    text: "The drift is unknown: no probe has a valid baseline.",
  });
});

test("a first evaluation that is its own baseline has nothing to compare", () => {
  assert.deepEqual(describeDrift(makeRun({ steps: [0] })), { name: "", text: "There is nothing to compare yet." });
  const stored = makeRun({ steps: [0], drift: [[0.5], [0]] }); // compared with a stored baseline
  assert.equal(describeDrift(stored).text, " moved most: drift 0.50.");
});

test("the time of a drift is named if more than half of it arose at once", () => {
  /** @type {(drift: number[], values?: Parameters<typeof makeRun>[0]) => string} */
  const time = (drift, values = {}) => describeTime(makeRun({ names: ["cat"], drift: [drift], ...values }), 0);
  assert.equal(time([0, 0.6, 0.8]), ", most of it between steps 0 and 10");
  assert.equal(time([0, 0.2, 0.8]), ", most of it between steps 10 and 20");
  assert.equal(time([0, 0.4, 0.8]), "");
});

test("the time of a drift is not named if the baseline changed", () => {
  const run = makeRun({ names: ["cat"], drift: [[0, 0.6, 0.8]], baselineStep: [0, 0, 10] });
  assert.equal(describeTime(run, 0), "");
});

test("the place is named where the map went and where from", () => {
  const run = makeRun();
  run.rows.set(0, makeRow([{ 0: 1 }, { 0: 1 }, { 0: 0.25, 8: 0.25 }]));
  assert.equal(describePlace(run, 0), ", to the bottom right (+50\u00a0% of the map) from the top left (−50\u00a0%)");
});

test("no place is named if there is none", () => {
  const run = makeRun();
  assert.equal(describePlace(run, 0), "", "the row has not arrived");
  run.rows.set(0, makeRow([{ 0: 1 }, { 0: 1 }, { 0: 1 }]));
  assert.equal(describePlace(run, 0), "; no part of the image gained 5\u00a0% of the map");
  run.rows.set(0, makeRow([{ 0: 1 }, { 0: 1 }, {}]));
  assert.equal(describePlace(run, 0), "; its map or that of its baseline has no positive value");
});

test("evaluations that are not shown are counted by reason", () => {
  const leftOut = { unreadable: 1, "other probes or map settings than the last one": 3 };
  assert.deepEqual(describeLeftOut(makeRun({ leftOut })), [
    " 1 evaluation is not shown: unreadable.",
    " 3 evaluations are not shown: other probes or map settings than the last one.",
  ]);
  assert.deepEqual(describeLeftOut(makeRun()), []);
});
