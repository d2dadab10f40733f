/** What is on the screen: which evaluations of which probes of which runs, in which order, painted in which way. */

import { maxValue, normalize, paint } from "./heat.js";
import { drawOutline } from "./outline.js";
import { LAST } from "./state.js";

/**
 * @typedef {import("./run.js").Run} Run
 * @typedef {import("./state.js").State} State
 * @typedef {import("./wire.js").Colors} Colors
 * @typedef {{step: number, evaluations: (number | undefined)[]}} Column the index of its evaluation in each run
 */

const NOT_COMPARABLE = "nothing to compare";

export class Board {
  /**
   * @param {State} state
   * @param {Colors} colors
   */
  constructor(state, colors) {
    this.state = state;
    this.colors = colors;
    /** @type {Run[]} one, or two that are compared */
    this.runs = [];
    /** @type {Column[]} */
    this.columns = [];
    /** @type {number[][]} indices of the probes in each run, in the order of the rows */
    this.probes = [];
    this.matched = 0; // probes that all runs have
    this.unmatched = 0; // probes of the first run that the second lacks
  }

  /** @param {Run[]} runs */
  show(runs) {
    this.runs = runs;
    const steps = [...new Set(runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
    this.columns = steps.map((step) => ({ step, evaluations: runs.map((run) => run.evaluationAt.get(step)) }));
    this.arrange();
  }

  /** Filter and sort the probes. */
  arrange() {
    const [first, second] = this.runs;
    if (!first) {
      [this.probes, this.matched, this.unmatched] = [[], 0, 0];
      return;
    }
    const matched = second ? pairProbes(first, second) : first.names.map((_, probe) => [probe]);
    this.matched = matched.length;
    this.unmatched = first.names.length - matched.length;
    const { filter, sort } = this.state.values;
    const words = filter.toLowerCase().split(/\s+/);
    /** @param {number} probe */
    const text = (probe) => `${first.names[probe]} ${first.prompts[probe]}`.toLowerCase();
    const compare = probeOrder(first, sort);
    this.probes = matched
      .filter(([probe]) => words.every((word) => text(probe).includes(word)))
      .sort(([a], [b]) => compare(a, b));
  }

  /** How many probes are shown, in words. */
  get countText() {
    const some = this.probes.length < this.matched ? `${this.probes.length} of ` : "";
    return `${some}${this.matched} ${this.matched === 1 ? "probe" : "probes"}`;
  }

  /** Index of the last column. */
  get last() {
    return this.columns.length - 1;
  }

  /** Index of the column that is shown. */
  get current() {
    const { evaluation } = this.state.values;
    const index = evaluation === LAST ? -1 : this.columns.findIndex(({ step }) => step === Number(evaluation));
    return index < 0 ? this.last : index;
  }

  /** Show a column or the nearest there is. A page that shows the last column will follow to newer ones.
   *
   * @param {number} column
   */
  go(column) {
    if (!this.columns.length) return;
    const index = Math.max(0, Math.min(this.last, column));
    this.state.set({ evaluation: index === this.last ? LAST : this.columns[index].step });
  }

  /** The last evaluation of a run up to a column, if there is one.
   *
   * @param {number} column
   * @param {number} side index of the run
   */
  evaluationUntil(column, side) {
    const until = this.columns.slice(0, column + 1);
    return until.findLast(({ evaluations }) => evaluations[side] !== undefined)?.evaluations[side];
  }

  /** The probe in the large view, as in `probes`; undefined if none is. */
  get open() {
    return this.probes.find(([probe]) => this.runs[0].names[probe] === this.state.values.open);
  }

  /** Step and epoch of a column, in words.
   *
   * @param {number} column
   */
  title(column) {
    const { step, evaluations } = this.columns[column];
    const side = evaluations.findIndex((evaluation) => evaluation !== undefined);
    return `step ${step}, epoch ${this.runs[side].epoch[/** @type {number} */ (evaluations[side])]}`;
  }

  /** Whether the evaluation of any run is an alarm.
   *
   * @param {number} column
   */
  hasAlarm(column) {
    const { evaluations } = this.columns[column];
    return evaluations.some((evaluation, side) => evaluation !== undefined && this.runs[side].alarm[evaluation] > 0);
  }

  /** The chosen colours of heat, or the first there are. */
  get heatColors() {
    const { about, arrays } = this.colors;
    const { colors } = this.state.values;
    return arrays[about.heat.includes(colors) ? colors : about.heat[0]].data;
  }

  /** The colours of a change. */
  get changeColors() {
    return this.colors.arrays[this.colors.about.change].data;
  }

  /** What to write over an image whose map is degenerate, or whose change is one from or to such a map; else nothing.
   *
   * @param {Run} run
   * @param {number} probe
   * @param {number} evaluation
   * @param {string} [view] instead of the chosen one
   */
  stateText(run, probe, evaluation, view = this.state.values.view) {
    if (view === "input") return "";
    const now = run.stateText(probe, evaluation);
    if (view !== "change") return now;
    return now || run.baselineStateText(probe, evaluation, this.state.values.baseline) ? NOT_COMPARABLE : "";
  }

  /** Paint a probe at an evaluation.
   *
   * @param {Run} run
   * @param {number} probe
   * @param {number} evaluation
   * @param {Object} [options]
   * @param {import("./row_data.js").Ground} [options.ground] the image at another size than that of a tile
   * @param {string} [options.view] instead of the chosen one
   * @param {boolean} [options.before] paint the baseline instead of the evaluation
   * @returns {ImageData | null | undefined} null if there is no map, undefined if the row has not arrived
   */
  image(run, probe, evaluation, { ground: given, view = this.state.values.view, before = false } = {}) {
    const row = run.rows.get(probe);
    const ground = given ?? (row?.isFit ? row.tile : null);
    if (!row || !ground) return undefined;
    const { opacity, baseline, scale } = this.state.values;
    /**
     * @param {Float32Array | null} map
     * @param {string} state of a degenerate map, whose brightness would mean nothing; empty for a valid one
     */
    const heat = (map, state) => {
      if (state) return new Float32Array(row.shape[0] * row.shape[1]);
      return map && normalize(map, scale === "probe" ? row.max : maxValue(map));
    };
    const change = view === "change" ? this.stateText(run, probe, evaluation, view) : ""; // then both are cold
    const now = view === "input" ? null : heat(row.map(evaluation), change || run.stateText(probe, evaluation));
    const baselineState = change || run.baselineStateText(probe, evaluation, baseline);
    const base =
      before || view === "change" ? heat(run.baselineMap(probe, evaluation, baseline), baselineState) : null;
    const { image, outline } = ground;
    const pixels = paint(image, row.shape, before ? base : now, base, {
      view,
      opacity: Number(opacity),
      heatColors: this.heatColors,
      changeColors: this.changeColors,
    });
    if (!pixels) return null;
    if (outline) drawOutline(pixels, outline);
    return new ImageData(pixels, image.width, image.height);
  }
}

/** Pair the probes of two runs: equal digests and, where several probes have the same digest, equal names first.
 *
 * @param {Pick<Run, "names" | "digests">} first
 * @param {Pick<Run, "digests" | "indexOf">} second
 * @returns {number[][]} the indices of each pair, in the order of the first run
 */
export function pairProbes(first, second) {
  const free = new Set(second.digests.keys());
  /** @type {(number | undefined)[]} */
  const partners = first.digests.map((digest, probe) => {
    const namesake = second.indexOf.get(first.names[probe]);
    if (namesake === undefined || second.digests[namesake] !== digest) return undefined;
    return free.delete(namesake) ? namesake : undefined;
  });
  for (const [probe, partner] of partners.entries()) {
    if (partner !== undefined) continue;
    const other = [...free].find((candidate) => second.digests[candidate] === first.digests[probe]);
    partners[probe] = other;
    if (other !== undefined) free.delete(other);
  }
  return partners.flatMap((partner, probe) => (partner === undefined ? [] : [[probe, partner]]));
}

/** Order the probes of a run by their last evaluation.
 *
 * @param {Pick<Run, "names" | "last" | "drift" | "similarity" | "flagged">} run
 * @param {string} sort "flagged": flagged first, unknown drift last, then by drift, descending; "drift": by drift
 *     alone, descending; "similarity": ascending; "name": alphabetical, with numbers by their value
 * @returns {(a: number, b: number) => number} compares two probes
 */
export function probeOrder(run, sort) {
  /** @param {number} value */
  const orLowest = (value) => (Number.isNaN(value) ? -Infinity : value);
  /** @param {number} probe */
  const drift = (probe) => orLowest(run.drift(probe, run.last));
  /** @param {number} probe */
  const similarity = (probe) => orLowest(run.similarity(probe, run.last));
  /** @param {number} probe */
  const flagged = (probe) => Number(run.flagged(probe, run.last));
  switch (sort) {
    case "drift":
      return (a, b) => drift(b) - drift(a) || a - b;
    case "similarity":
      return (a, b) => similarity(a) - similarity(b) || a - b;
    case "name":
      return (a, b) => run.names[a].localeCompare(run.names[b], undefined, { numeric: true });
    default:
      return (a, b) => flagged(b) - flagged(a) || drift(b) - drift(a) || a - b;
  }
}
