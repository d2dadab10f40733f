import assert from "node:assert/strict";
import { test } from "node:test";

import { formatNumber, formatPercent } from "../../../clipcam_lightning/tensorboard_tab/static/format.js";

test("a number is rounded to two digits by default", () => {
  assert.equal(formatNumber(0.126), "0.13");
  assert.equal(formatNumber(1), "1.00");
  assert.equal(formatNumber(-0.1264, 3), "-0.126");
  assert.equal(formatNumber(2.5, 0), "3");
});

test("NaN is shown as unknown", () => assert.equal(formatNumber(NaN), "unknown"));

test("a share is rounded to whole per cent, with a space that does not break", () => {
  assert.equal(formatPercent(0.126), "13\u00a0%");
  assert.equal(formatPercent(1), "100\u00a0%");
  assert.equal(formatPercent(0), "0\u00a0%");
});
