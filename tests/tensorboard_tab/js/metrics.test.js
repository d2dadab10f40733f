import assert from "node:assert/strict";
import { test } from "node:test";

import { DRIFT, METRICS } from "../../../clipcam_lightning/tensorboard_tab/static/metrics.js";

test("each metric says in a sentence what it means, with the direction of its range", () => {
  for (const { label, meaning } of METRICS) {
    assert.match(meaning, /^[A-Z0-9].*: .*(higher|0 the same|1 the same).*\.$/, label);
  }
});

test("no metric is listed twice, and the drift is the first", () => {
  assert.equal(new Set(METRICS.map(({ name }) => name)).size, METRICS.length);
  assert.equal(DRIFT.name, "drift");
});
