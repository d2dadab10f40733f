import assert from "node:assert/strict";
import { test } from "node:test";

import { drawOutline, findOutline } from "../../../clipcam_lightning/tensorboard_tab/static/outline.js";

/** Draw the outline of a mask as text: "w" and "b" for its lines, "." for the rest.
 *
 * @param {string[]} lines of the mask: "#" on the object
 * @param {number} thickness
 */
function outlined(lines, thickness) {
  const mask = Uint8Array.from(lines.join(""), (character) => Number(character === "#"));
  const pixels = new Uint8ClampedArray(4 * mask.length).fill(9);
  drawOutline(pixels, findOutline(mask, lines[0].length, thickness));
  /** @type {Record<number, string>} */
  const characters = { 255: "w", 0: "b", 9: "." };
  const drawn = Array.from(mask, (_, i) => characters[pixels[4 * i]]).join("");
  assert.ok(mask.every((_, i) => pixels[4 * i + 3] === 9), "opacity stays");
  return lines.map((line, y) => drawn.slice(y * line.length, (y + 1) * line.length));
}

test("a white line runs just outside the object and a black one around it", () => {
  assert.deepEqual(outlined(["......", "......", "..#...", "......", "......", "......"], 1), [
    "bbbbb.",
    "bwwwb.",
    "bw.wb.",
    "bwwwb.",
    "bbbbb.",
    "......",
  ]);
});

test("on a fine screen the lines are thicker", () => {
  assert.deepEqual(outlined(["#......"], 2), [".wwbb.."]);
});

test("an outline ends at the edge of the image, and does not go on at the other", () => {
  assert.deepEqual(outlined([".....", "....#", "....."], 1), ["..bww", "..bw.", "..bww"]);
});

test("a mask of all or nothing has no outline", () => {
  assert.deepEqual(outlined(["##", "##"], 1), ["..", ".."]);
  assert.deepEqual(outlined(["..", ".."], 1), ["..", ".."]);
});
