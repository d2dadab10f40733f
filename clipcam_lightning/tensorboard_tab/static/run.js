/** One run: all its looks in figures, and the maps of the probes that were asked for. */

import { top } from "./heat.js";
import { HALF, askArrays } from "./wire.js";

export const TILE = 96; // side of a picture in the grid, in CSS pixels
const MOST_KEPT = 400; // rows in memory; at 200 looks of 14x14 cells 50 MB
const AT_ONCE = 32; // rows a request

export const keyOf = ({ run, root }) => `${root}@${run}`;
export const nameOf = ({ run, root }) => (root === "clipcam" ? run : `${run} · ${root.replace(/^clipcam_/, "")}`);

/** One probe at all looks. */
class Row {
  constructor(shape, maps, figures, foreign, jpeg) {
    this.shape = shape; // [h, w]
    this.maps = maps;
    this.figures = figures; // (look, name) => number
    this.foreign = foreign;
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
    this.largest ??= Math.max(...each(looks, (look) => top(this.map(look) ?? [])));
    return this.largest;
  }

  /** The picture, `longer` pixels along its longer side. */
  async picture(longer) {
    if (!this.jpeg) return blank(longer, this.shape);
    const whole = await createImageBitmap(this.jpeg);
    const ratio = longer / Math.max(whole.width, whole.height);
    const size = [whole.width, whole.height].map((length) => Math.max(1, Math.round(length * ratio)));
    return drawn(whole, ...size);
  }
}

export class Run {
  /** @param {{run: string, root: string}} source */
  constructor(source) {
    this.source = source;
    this.key = keyOf(source);
    this.rows = new Map(); // by the number of the probe, oldest use first
    this.arrived = () => {}; // called when rows have come
    this.failed = () => {};
    this.wanted = [];
    this.busy = false;
  }

  /** Ask for all looks; what was kept of the rows is of looks that may be no more. */
  async load() {
    const answer = await askArrays("looks", Object.entries(this.source));
    const { about, arrays } = answer;
    Object.assign(this, about.probes); // names, prompts, digests
    Object.assign(this, { rule: about.rule, made: about.made, notes: about.notes, leftOut: about.left_out });
    this.columns = about.figures;
    this.numbers = new Map(this.names.map((name, i) => [name, i]));
    this.steps = [...arrays.step.data];
    this.lookAt = new Map(this.steps.map((step, look) => [step, look]));
    for (const name of ["wall_time", "epoch", "baseline_step", "baseline", "alarmed"]) this[name] = arrays[name].data;
    for (const name of ["drift", "similarity", "alarm"]) {
      const { data, shape } = arrays[name];
      this[name] = (probe, look) => data[probe * shape[1] + look];
    }
    this.rows.clear();
    await this.#take(answer);
    return this;
  }

  get last() {
    return this.steps.length - 1;
  }

  /** Have the rows of these probes come, the first ones first; rows that are here count as used. */
  want(probes) {
    for (const probe of probes) {
      const row = this.rows.get(probe);
      if (row) {
        this.rows.delete(probe);
        this.rows.set(probe, row);
      }
    }
    this.wanted = probes.filter((probe) => !this.rows.has(probe));
    this.#ask();
  }

  async #ask() {
    if (this.busy || !this.wanted.length) return;
    this.busy = true;
    const probes = this.wanted.splice(0, AT_ONCE);
    try {
      const query = [...Object.entries(this.source), ...probes.map((probe) => ["probe", this.names[probe]])];
      const answer = await askArrays("rows", query);
      const steps = answer.arrays.step.data;
      if (steps.length !== this.steps.length || steps.some((step, look) => step !== this.steps[look])) {
        await this.load(); // the run has gone on
      } else {
        await this.#take(answer);
      }
      this.arrived();
    } catch (error) {
      this.failed(error);
    } finally {
      this.busy = false;
    }
    this.#ask();
  }

  async #take({ about, arrays }) {
    const [, looks, ...shape] = arrays.maps.shape;
    const cells = shape[0] * shape[1];
    const count = this.columns.length;
    const foreign = arrays.foreign;
    const taken = about.rows.map(async (name, i) => {
      const figures = arrays.row_figures.data.subarray(i * looks * count, (i + 1) * looks * count);
      const row = new Row(
        shape,
        arrays.maps.data.slice(i * looks * cells, (i + 1) * looks * cells),
        (look, figure) => figures[look * count + this.columns.indexOf(figure)],
        foreign ? each(foreign.shape[0], (j) => part(foreign, j, i)) : [],
        arrays[`picture.${i}`].data,
      );
      row.tile = await row.picture(Math.round(TILE * devicePixelRatio)).catch(() => blank(TILE, shape));
      return [this.numbers.get(name), row];
    });
    for (const [probe, row] of await Promise.all(taken)) if (probe !== undefined) this.rows.set(probe, row);
    for (const probe of this.rows.keys()) {
      if (this.rows.size <= MOST_KEPT) break;
      this.rows.delete(probe);
    }
  }

  /** The map that a look is compared with: by the callback's own choice, the look before, or one at a chosen step. */
  baselineMap(probe, look, choice) {
    const row = this.rows.get(probe);
    if (choice === "previous") return row.map(Math.max(0, look - 1));
    const chosen = choice === "callback" ? this.baseline[look] : (this.lookAt.get(Number(choice)) ?? null);
    if (chosen === null || chosen < -row.foreign.length) return null;
    return chosen < 0 ? row.foreign[-1 - chosen] : row.map(chosen);
  }

  /** In words what {@link baselineMap} returns. */
  baselineName(look, choice) {
    if (choice === "previous") return `step ${this.steps[Math.max(0, look - 1)]}`;
    return choice === "callback" ? `step ${this.baseline_step[look]}` : `step ${choice}`;
  }
}

const each = (count, make) => Array.from({ length: count }, (_, i) => make(i));

/** `array[i, j]` of an array with more axes. */
function part({ shape, data }, i, j) {
  const size = shape.slice(2).reduce((product, length) => product * length, 1);
  return data.slice((i * shape[1] + j) * size, (i * shape[1] + j + 1) * size);
}

function drawn(bitmap, width, height) {
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** White paper in the shape of a map whose picture is not known. */
function blank(longer, [h, w]) {
  const [width, height] = [w, h].map((length) => Math.max(1, Math.round((length * longer) / Math.max(h, w))));
  return new ImageData(new Uint8ClampedArray(4 * width * height).fill(255), width, height);
}
