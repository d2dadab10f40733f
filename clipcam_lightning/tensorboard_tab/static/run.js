/** One run: all its looks in figures, and the maps of the probes that were asked for. */

import { context } from "./dom.js";
import { top } from "./heat.js";
import { HALF, Refused, askArrays } from "./wire.js";

export const TILE = 96; // side of a picture in the grid, in CSS pixels
const MOST_BYTES = 64e6; // of maps in memory
const AT_ONCE = 8; // rows a request: by the time more have come, others may be in sight
const RETRY = 5000; // milliseconds until what could not be had is asked for again
const MOST_ROWS = 64; // that one request may ask for, and that are kept whatever they take

const address = ({ run, root }) => [
  ["run", run],
  ["root", root],
];
export const keyOf = ({ run, root }) => `${root}@${run}`;
export const nameOf = ({ run, root }) => (root === "clipcam" ? run : `${run} · ${root.replace(/^clipcam_/, "")}`);

/** One probe at all looks. */
class Row {
  constructor(shape, maps, figures, baselines, jpeg) {
    this.shape = shape; // [h, w]
    this.maps = maps;
    this.figures = figures; // (look, name) => number
    this.baselines = baselines;
    this.jpeg = jpeg.length ? new Blob([jpeg], { type: "image/jpeg" }) : null;
    this.tile = null; // the picture at the size of a tile
  }

  /** Raw map of a look, or null if there is none. */
  map(look) {
    const cells = this.shape[0] * this.shape[1];
    const halves = this.maps.subarray(look * cells, (look + 1) * cells);
    if (halves.every((half) => Number.isNaN(HALF[half]))) return null;
    const scale = this.figures(look, "scale");
    return Float32Array.from(halves, (half) => HALF[half] * scale);
  }

  /** Largest value of all its maps. */
  get top() {
    const looks = this.maps.length / (this.shape[0] * this.shape[1]);
    this.largest ??= Math.max(...[...each(looks, (look) => this.map(look) ?? []), ...this.baselines].map(top));
    return this.largest;
  }

  /** The picture, `longer` pixels along its longer side. */
  async picture(longer) {
    const whole = this.jpeg && (await createImageBitmap(this.jpeg).catch(() => null)); // it may be damaged
    return whole ? drawn(whole, longer) : blank(longer, this.shape);
  }

  /** Make the tile for the resolution of the screen. */
  async fit() {
    this.tile = await this.picture(Math.round(TILE * devicePixelRatio));
    return this;
  }
}

/** What was read of a run at one time; whoever reads it anew gets another. */
export class Run {
  /** Read all looks, and the rows in sight.
   *
   * @param {{run: string, root: string}} source
   * @param {?Run} before what was read of it last
   * @returns {Promise<Run>} `before` if there is nothing new
   */
  static async read(source, before) {
    const { about, arrays } = await askArrays("looks", address(source));
    const stamp = JSON.stringify([...arrays.wall_time.data, about.probes.digests]);
    if (stamp === before?.stamp) return before;
    const run = new Run(source, stamp, about, arrays);
    const rows = await rowsOf(about, arrays, run.figures);
    const inSight = before ? before.visible.map((probe) => before.names[probe]) : [];
    const missing = inSight.filter((name) => run.places.has(name) && !about.rows.includes(name)).slice(0, MOST_ROWS);
    if (missing.length) {
      const more = await run.#ask(missing);
      if (run.#isOf(more.arrays)) rows.push(...(await rowsOf(more.about, more.arrays, run.figures)));
    }
    run.#keep(rows);
    return run;
  }

  constructor(source, stamp, about, arrays) {
    this.source = source;
    this.key = keyOf(source);
    this.stamp = stamp; // tells it from what is read later
    this.rows = new Map(); // by the number of the probe, the longest unused first
    this.coming = new Set(); // probes whose rows are asked for
    this.failing = new Set(); // probes whose rows did not come
    this.requests = 0;
    this.visible = [];
    this.near = [];
    this.isShown = () => false;
    this.arrived = () => {}; // called when rows have come
    this.outdated = async () => {}; // called when the server has other looks by now
    this.failed = () => {};
    Object.assign(this, about.probes); // names, prompts, digests
    Object.assign(this, {
      figures: about.figures,
      notes: about.notes,
      leftOut: about.left_out,
      rule: about.rule,
      made: about.made,
    });
    this.places = new Map(this.names.map((name, i) => [name, i]));
    this.steps = [...arrays.step.data];
    this.lookAt = new Map(this.steps.map((step, look) => [step, look]));
    for (const name of ["wall_time", "epoch", "baseline_step", "baseline", "alarmed"]) this[name] = arrays[name].data;
    for (const name of ["drift", "similarity", "alarm"]) {
      const { data, shape } = arrays[name];
      this[name] = (probe, look) => data[probe * shape[1] + look];
    }
  }

  get last() {
    return this.steps.length - 1;
  }

  /** Have the rows of these probes come: those in sight, then those near them. */
  want(visible, near) {
    [this.visible, this.near] = [visible, near];
    for (const probe of visible) {
      const row = this.rows.get(probe);
      if (row) {
        this.rows.delete(probe);
        this.rows.set(probe, row);
      }
    }
    this.#next();
    this.#next();
  }

  /** Two requests at a time for rows in sight; for others one, if nothing else is to do. */
  async #next() {
    const absent = (probe) => !this.rows.has(probe) && !this.coming.has(probe) && !this.failing.has(probe);
    let probes = this.visible.filter(absent);
    if (!probes.length && !this.requests) probes = this.near.filter(absent);
    if (!probes.length || this.requests >= 2 || !this.isShown()) return;
    probes = probes.slice(0, AT_ONCE);
    this.requests++;
    for (const probe of probes) this.coming.add(probe);
    try {
      const names = probes.map((probe) => this.names[probe]);
      const { about, arrays } = await this.#ask(names).finally(() => this.requests--);
      if (!this.#isOf(arrays)) throw new Refused("TensorBoard has other looks of this run by now.", 404);
      this.#next(); // while the pictures are decoded
      this.#keep(await rowsOf(about, arrays, this.figures));
      this.arrived();
    } catch (error) {
      if (error.status === 404) await this.outdated(); // the run may have been begun anew, with other probes
      this.#fail(probes, error);
    } finally {
      for (const probe of probes) this.coming.delete(probe);
    }
  }

  /** Let others go before these, and ask for them again after a while if they are still wanted then. */
  #fail(probes, error) {
    if (!this.isShown()) return;
    for (const probe of probes) this.failing.add(probe);
    this.failed(error);
    this.#next();
    setTimeout(() => {
      for (const probe of probes) this.failing.delete(probe);
      this.#next();
    }, RETRY);
  }

  /** Whether arrays of rows are of the same looks. */
  #isOf({ wall_time: { data } }) {
    return data.length === this.wall_time.length && data.every((time, look) => time === this.wall_time[look]);
  }

  #ask(names) {
    return askArrays("rows", [...address(this.source), ...names.map((name) => ["probe", name])]);
  }

  #keep(rows) {
    for (const [name, row] of rows) this.rows.set(this.places.get(name), row);
    const most = Math.max(MOST_ROWS, Math.floor(MOST_BYTES / rows[0]?.[1].maps.byteLength));
    for (const probe of this.rows.keys()) {
      if (this.rows.size <= most) break;
      this.rows.delete(probe);
    }
  }

  /** The map that a look is compared with: by the callback's own choice, the look before, or one at a chosen step. */
  baselineMap(probe, look, choice) {
    const row = this.rows.get(probe);
    if (choice === "previous") return row.map(Math.max(0, look - 1));
    const chosen = choice === "callback" ? this.baseline[look] : (this.lookAt.get(Number(choice)) ?? null);
    if (chosen === null || chosen < -row.baselines.length) return null;
    return chosen < 0 ? row.baselines[-1 - chosen] : row.map(chosen);
  }

  /** In words what {@link baselineMap} returns. */
  baselineName(look, choice) {
    if (choice === "previous") return `step ${this.steps[Math.max(0, look - 1)]}`;
    return choice === "callback" ? `step ${this.baseline_step[look]}` : `step ${choice}`;
  }
}

const each = (count, make) => Array.from({ length: count }, (_, i) => make(i));

/** The rows of an answer, by name. */
function rowsOf(about, arrays, names) {
  const shape = arrays.maps.shape.slice(2);
  return Promise.all(
    about.rows.map(async (name, i) => {
      const figures = part(arrays.row_figures, i);
      const row = new Row(
        shape,
        part(arrays.maps, i),
        (look, figure) => figures[look * names.length + names.indexOf(figure)],
        arrays.baselines ? each(arrays.baselines.shape[0], (j) => part(arrays.baselines, j, i)) : [],
        arrays[`picture.${i}`].data,
      );
      return [name, await row.fit()];
    }),
  );
}

/** `array[indices]` of an array with more axes. */
function part({ shape, data }, ...indices) {
  const size = shape.slice(indices.length).reduce((product, length) => product * length, 1);
  const at = indices.reduce((place, index, axis) => place * shape[axis] + index, 0);
  return data.slice(at * size, (at + 1) * size);
}

function drawn(bitmap, longer) {
  const ratio = longer / Math.max(bitmap.width, bitmap.height);
  const [width, height] = [bitmap.width, bitmap.height].map((length) => Math.max(1, Math.round(length * ratio)));
  const drawing = context(new OffscreenCanvas(width, height));
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return drawing.getImageData(0, 0, width, height);
}

/** White paper in the shape of a map whose picture is not known. */
function blank(longer, [h, w]) {
  const [width, height] = [w, h].map((length) => Math.max(1, Math.round((length * longer) / Math.max(h, w))));
  return new ImageData(new Uint8ClampedArray(4 * width * height).fill(255), width, height);
}
