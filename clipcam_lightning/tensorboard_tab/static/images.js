/** The images that the model saw and the objects on them, as pixels at the size at which they are shown. */

import { findOutline } from "./outline.js";

/** @typedef {import("./outline.js").Outline} Outline */

/** Decode an image at another size.
 *
 * @param {Blob | null} file
 * @param {number} longer pixels along the longer side
 * @param {number[]} shape `[h, w]` of the blank image that replaces a missing or damaged one
 * @returns {Promise<ImageData>}
 */
export async function decodeImage(file, longer, shape) {
  return (await decode(file, (size) => fitSize(size, longer))) ?? blankImage(fitSize(shape, longer));
}

/** Decode a mask at the size of an image, and find its outline.
 *
 * @param {Blob | null} file
 * @param {ImageData} image
 * @returns {Promise<Outline | null>} null without a mask
 */
export async function decodeOutline(file, { width, height }) {
  const mask = await decode(file, () => [height, width]);
  if (!mask) return null;
  const isObject = Uint8Array.from({ length: width * height }, (_, i) => (mask.data[4 * i] > 127 ? 1 : 0));
  return findOutline(isObject, width, Math.max(1, Math.round(devicePixelRatio)));
}

/** Cut an image of equal tiles side by side into its tiles.
 *
 * @param {Blob | null} file
 * @param {number} count of the tiles
 * @returns {Promise<ImageData[]>} empty if the image is missing or damaged
 */
export async function decodeTiles(file, count) {
  const image = await decode(file, (size) => size);
  if (!image || image.width < count) return [];
  const width = Math.floor(image.width / count);
  const canvas = new OffscreenCanvas(image.width, image.height);
  const drawing = context(canvas);
  drawing.putImageData(image, 0, 0);
  return Array.from({ length: count }, (_, i) => drawing.getImageData(i * width, 0, width, image.height));
}

/**
 * @param {Blob | null} file
 * @param {(size: number[]) => number[]} resize `[height, width]` to that of the result
 * @returns {Promise<ImageData | null>} null if the image is missing or damaged
 */
async function decode(file, resize) {
  const bitmap = file && (await createImageBitmap(file).catch(() => null));
  if (!bitmap) return null;
  const [height, width] = resize([bitmap.height, bitmap.width]);
  const drawing = context(new OffscreenCanvas(width, height));
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return drawing.getImageData(0, 0, width, height);
}

/** @param {OffscreenCanvas} canvas */
function context(canvas) {
  return /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
}

/** Scale a size so that its longer side has `longer` pixels, and the other at least one.
 *
 * @param {number[]} size `[height, width]`
 * @param {number} longer
 */
export function fitSize(size, longer) {
  return size.map((length) => Math.max(1, Math.round((length * longer) / Math.max(...size))));
}

/** @param {number[]} size `[height, width]` */
function blankImage([height, width]) {
  return new ImageData(new Uint8ClampedArray(4 * width * height).fill(255), width, height);
}
