import assert from "node:assert/strict";
import { test } from "node:test";

import { formatHash, parseHash } from "../../../clipcam_lightning/tensorboard_tab/static/host.js";

test("our part of the address is read, decoded", () => {
  assert.deepEqual(parseHash("#clipcam&p.clipcam.view=heat&p.other.x=1&p.clipcam.run=clipcam%40a%26b"), {
    view: "heat",
    run: "clipcam@a&b",
  });
});

test("an address without our part has no values", () => {
  for (const hash of ["", "#", "#clipcam", "#scalars&tagFilter=x"]) assert.deepEqual(parseHash(hash), {});
});

test("malformed escapes do not fail", () => {
  assert.deepEqual(parseHash("#clipcam&p.clipcam.run=%E0%A4%A"), { run: "\ufffd%A" });
});

test("our part of the address is replaced, and that of others kept", () => {
  assert.equal(
    formatHash("#clipcam&p.clipcam.view=heat&p.other.x=1", { sort: "name", run: "clipcam@a b&c" }),
    "#clipcam&p.other.x=1&p.clipcam.sort=name&p.clipcam.run=clipcam%40a%20b%26c",
  );
  assert.equal(formatHash("#clipcam&p.clipcam.view=heat", {}), "#clipcam");
});

test("the address of another tab is left alone", () => {
  assert.equal(formatHash("#scalars", { view: "heat" }), null);
  assert.equal(formatHash("", { view: "heat" }), null);
});

test("what is written can be read", () => {
  const values = { run: "clipcam@ä/\u202e?#&=+ %41", filter: "a b" };
  assert.deepEqual(parseHash(formatHash("#clipcam&p.other.x=1", values) ?? ""), values);
});
