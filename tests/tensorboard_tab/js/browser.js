/** What the page needs of a browser and Node.js lacks. */

export class FakeImageData {
  /**
   * @param {Uint8ClampedArray} data
   * @param {number} width
   * @param {number} height
   */
  constructor(data, width, height) {
    this.data = data;
    this.width = width;
    this.height = height;
  }
}

/**
 * @param {Uint8ClampedArray} data
 * @param {number} width
 * @param {number} height
 */
export function makeImage(data, width, height) {
  return /** @type {ImageData} */ (/** @type {unknown} */ (new FakeImageData(data, width, height)));
}
