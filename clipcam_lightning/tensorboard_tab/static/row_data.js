/** Maps, metrics and image of one probe at all evaluations. */

import { maxValue } from "./heat.js";
import { decodeImage } from "./images.js";
import { SIZE } from "./size.js";
import { HALF_FLOATS } from "./wire.js";

export class RowData {
  /**
   * @param {Object} arrays
   * @param {number[]} arrays.shape of a map, `[h, w]`
   * @param {Uint16Array} arrays.maps half floats, divided by the metric "scale"
   * @param {Float32Array} arrays.metrics row by row
   * @param {Float32Array[]} arrays.baselines raw maps
   * @param {Uint8Array<ArrayBuffer>} arrays.jpeg empty if there is none
   * @param {string[]} names of the metrics
   */
  constructor({ shape, maps, metrics, baselines, jpeg }, names) {
    this.shape = shape;
    this.maps = maps;
    this.metrics = metrics;
    this.baselines = baselines;
    this.jpeg = jpeg.length ? new Blob([jpeg], { type: "image/jpeg" }) : null;
    this.names = names;
    /** @type {ImageData | null} the image at the size of a tile */
    this.tile = null;
    /** @type {number | null} */
    this.cachedMax = null;
  }

  /** Value of a metric.
   *
   * @param {number} evaluation
   * @param {string} name
   */
  metric(evaluation, name) {
    return this.metrics[evaluation * this.names.length + this.names.indexOf(name)];
  }

  /** Raw map of an evaluation; null if there is none.
   *
   * @param {number} evaluation
   */
  map(evaluation) {
    const cells = this.shape[0] * this.shape[1];
    const halves = this.maps.subarray(evaluation * cells, (evaluation + 1) * cells);
    if (halves.every((half) => Number.isNaN(HALF_FLOATS[half]))) return null;
    const scale = this.metric(evaluation, "scale");
    return Float32Array.from(halves, (half) => HALF_FLOATS[half] * scale);
  }

  /** Largest value of all maps and baselines. */
  get max() {
    if (this.cachedMax === null) {
      const evaluations = this.maps.length / (this.shape[0] * this.shape[1]);
      const maps = Array.from({ length: evaluations }, (_, evaluation) => this.map(evaluation) ?? new Float32Array());
      this.cachedMax = Math.max(...[...maps, ...this.baselines].map((map) => maxValue(map)));
    }
    return this.cachedMax;
  }

  /** Decode the image at `longer` pixels along its longer side.
   *
   * @param {number} longer
   */
  image(longer) {
    return decodeImage(this.jpeg, longer, this.shape);
  }

  /** Make the tile for the resolution of the screen. */
  async fit() {
    this.tile = await this.image(Math.round(SIZE.tile * devicePixelRatio));
    return this;
  }
}

/** Split a response into rows, with their tiles, by the names of the probes.
 *
 * @param {import("./wire.js").Rows} response
 * @param {string[]} metricNames
 * @returns {Promise<[string, RowData][]>}
 */
export function readRows({ about, arrays }, metricNames) {
  const { maps, row_metrics: metrics, baselines } = arrays;
  return Promise.all(
    about.rows.map(async (name, i) => {
      const row = new RowData(
        {
          shape: maps.shape.slice(2),
          maps: slice(maps, i),
          metrics: slice(metrics, i),
          baselines: baselines ? Array.from({ length: baselines.shape[0] }, (_, j) => slice(baselines, j, i)) : [],
          jpeg: arrays[`image.${i}`].data,
        },
        metricNames,
      );
      return /** @type {[string, RowData]} */ ([name, await row.fit()]);
    }),
  );
}

/** Copy `array[indices]` of an array with more axes than indices.
 *
 * @template {import("./wire.js").TypedArray} T
 * @param {import("./wire.js").NdArray<T>} array
 * @param {...number} indices
 */
export function slice({ shape, data }, ...indices) {
  const size = shape.slice(indices.length).reduce((product, length) => product * length, 1);
  const at = indices.reduce((offset, index, axis) => offset * shape[axis] + index, 0);
  return /** @type {T} */ (data.slice(at * size, (at + 1) * size));
}
