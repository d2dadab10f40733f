/** The images that the model saw, as pixels at the size at which they are shown. */

/** Decode a JPEG at another size.
 *
 * @param {Blob | null} jpeg
 * @param {number} longer pixels along the longer side
 * @param {number[]} shape `[h, w]` of the blank image that replaces a missing or damaged one
 * @returns {Promise<ImageData>}
 */
export async function decodeImage(jpeg, longer, shape) {
  const bitmap = jpeg && (await createImageBitmap(jpeg).catch(() => null));
  if (!bitmap) return blankImage(fitSize(shape, longer));
  const [height, width] = fitSize([bitmap.height, bitmap.width], longer);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const drawing = /** @type {OffscreenCanvasRenderingContext2D} */ (context);
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return drawing.getImageData(0, 0, width, height);
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
