/** Maps, metrics and images of one probe at all evaluations. */

import { maxValue } from "./heat.js";
import { decodeImage, decodeOutline, decodeTiles } from "./images.js";
import { SIZE } from "./size.js";
import { HALF_FLOATS } from "./wire.js";

/**
 * @typedef {Object} Ground what maps are painted on
 * @property {ImageData} image the model's input
 * @property {import("./outline.js").Outline | null} outline of the object; null if it is not known
 */

export class RowData {
  /**
   * @param {Object} arrays
   * @param {number[]} arrays.shape of a map, `[h, w]`
   * @param {Uint16Array} arrays.maps half floats, divided by the metric "scale"
   * @param {Float32Array} arrays.metrics row by row
   * @param {Float32Array[]} arrays.baselines raw maps
   * @param {Record<"image" | "mask" | "ground", Uint8Array<ArrayBuffer>>} arrays.files JPEG or PNG, empty if there is
   *     none
   * @param {string[]} names of the metrics
   */
  constructor({ shape, maps, metrics, baselines, files }, names) {
    this.shape = shape;
    this.maps = maps;
    this.metrics = metrics;
    this.baselines = baselines;
    this.imageFile = fileOf(files.image, "image/jpeg");
    this.maskFile = fileOf(files.mask, "image/png");
    this.groundFile = fileOf(files.ground, "image/jpeg");
    this.names = names;
    /** @type {Ground | null} at the size of a tile */
    this.tile = null;
    this.tileSide = 0; // of this tile, in pixels of the screen
    this.wantedSide = 0; // of the tile that was made last or is being made
    /** @type {Promise<unknown>} of this tile */
    this.making = Promise.resolve();
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

  /** Memory of the maps and the tile. */
  get byteLength() {
    return this.maps.byteLength + (this.tile?.image.data.byteLength ?? 0);
  }

  /** Decode image and mask at `longer` pixels along the longer side.
   *
   * @param {number} longer
   * @returns {Promise<Ground>}
   */
  async ground(longer) {
    const image = await decodeImage(this.imageFile, longer, this.shape);
    return { image, outline: await decodeOutline(this.maskFile, image) };
  }

  /** Decode the image without its object and with those of other probes.
   *
   * @param {number} count
   */
  groundTiles(count) {
    return decodeTiles(this.groundFile, count);
  }

  /** Whether the tile has the size and resolution of the screen. */
  get isFit() {
    return this.tile !== null && this.tileSide === sideOf(SIZE.tile);
  }

  /** Make the tile for the resolution of the screen, unless it is made.
   *
   * @param {number} [tile] its size
   */
  async fit(tile = SIZE.tile) {
    const side = sideOf(tile);
    if (side !== this.wantedSide) {
      this.wantedSide = side;
      this.making = this.ground(side).then((ground) => {
        if (side === this.wantedSide) [this.tile, this.tileSide] = [ground, side];
      });
    }
    await this.making;
    return this;
  }
}

/** @param {number} tile */
function sideOf(tile) {
  return Math.round(tile * devicePixelRatio);
}

/**
 * @param {Uint8Array<ArrayBuffer>} content
 * @param {string} type
 */
function fileOf(content, type) {
  return content.length ? new Blob([content], { type }) : null;
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
          files: {
            image: arrays[`image.${i}`].data,
            mask: arrays[`mask.${i}`].data,
            ground: arrays[`ground.${i}`].data,
          },
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
