/** One run: the metrics of all evaluations, and the rows of the probes that are in sight or were. */

import { readRows } from "./row_data.js";
import { keyOf } from "./sources.js";
import { RequestError, fetchEvaluations, fetchRows } from "./wire.js";

/**
 * @typedef {import("./row_data.js").RowData} RowData
 * @typedef {import("./wire.js").Evaluations} Evaluations
 * @typedef {import("./wire.js").Source} Source
 */

const MAX_BYTES = 64e6; // of maps and tiles in memory
const BATCH = 8; // rows per request: until more have arrived, others may be in sight
const MAX_REQUESTS = 2; // at a time
const RETRY = 5000; // milliseconds until rows that failed are requested again
const MAX_ROWS = 64; // in one request; also kept in memory whatever their size

/** What was read of a run at one time. Reading it again makes another object. */
export class Run {
  /** Read all evaluations, and the rows in sight.
   *
   * @param {Source} source
   * @param {Run} [previous] what was read before
   * @returns {Promise<Run>} `previous` if nothing is new
   */
  static async read(source, previous) {
    const response = await fetchEvaluations(source);
    const run = new Run(source, response);
    if (run.stamp === previous?.stamp) return previous;
    const rows = await readRows(response, run.metricNames);
    const inSight = previous ? [...previous.beside, ...previous.visible].map((probe) => previous.names[probe]) : [];
    const missing = inSight.filter((name) => run.indexOf.has(name) && !response.about.rows.includes(name));
    if (missing.length) {
      const more = await fetchRows(source, missing.slice(0, MAX_ROWS));
      if (run.matches(more.arrays)) rows.push(...(await readRows(more, run.metricNames)));
    }
    run.#keep(rows);
    return run;
  }

  /**
   * @param {Source} source
   * @param {Evaluations} response
   */
  constructor(source, { about, arrays }) {
    this.source = source;
    this.key = keyOf(source);
    /** Differs from that of whatever is read later. */
    this.stamp = JSON.stringify([...arrays.wall_time.data, about.probes.digests]);
    /** @type {Map<number, RowData>} by the index of the probe, the least recently used first */
    this.rows = new Map();
    /** @type {Set<number>} probes whose rows are requested */
    this.pending = new Set();
    /** @type {Set<number>} probes whose rows failed */
    this.failing = new Set();
    this.requests = 0;
    /** @type {number[]} probes in sight */
    this.visible = [];
    /** @type {number[]} probes near them */
    this.near = [];
    /** @type {number[]} probes of which the large view shows something */
    this.beside = [];
    this.isShown = () => false;
    this.onRows = () => {};
    this.onOutdated = async () => {}; // the server has other evaluations
    /** @type {(error: Error) => void} */
    this.onError = () => {};
    this.names = about.probes.names;
    this.prompts = about.probes.prompts;
    this.digests = about.probes.digests;
    /** Share of each image that the model sees; empty if unknown. */
    this.visibleShares = about.probes.visible;
    this.metricNames = about.metrics;
    this.reasons = about.reasons;
    this.notes = about.notes;
    this.states = about.states;
    this.baselineStates = about.baseline_states;
    this.stateWords = about.state_words;
    this.grounds = about.grounds;
    this.leftOut = about.left_out;
    this.rule = about.rule;
    this.settings = about.settings;
    this.indexOf = new Map(this.names.map((name, probe) => [name, probe]));
    this.steps = [...arrays.step.data];
    this.evaluationAt = new Map(this.steps.map((step, evaluation) => [step, evaluation]));
    this.wallTime = arrays.wall_time.data;
    this.epoch = arrays.epoch.data;
    this.baselineStep = arrays.baseline_step.data;
    this.baseline = arrays.baseline.data;
    this.alarm = arrays.alarm.data;
    /** Each `[probes, evaluations]`. */
    this.tables = { drift: arrays.drift.data, similarity: arrays.similarity.data, flagged: arrays.flagged.data };
  }

  /**
   * @param {number} probe
   * @param {number} evaluation
   */
  drift(probe, evaluation) {
    return this.tables.drift[probe * this.steps.length + evaluation];
  }

  /**
   * @param {number} probe
   * @param {number} evaluation
   */
  similarity(probe, evaluation) {
    return this.tables.similarity[probe * this.steps.length + evaluation];
  }

  /** Whether a probe is flagged at an evaluation.
   *
   * @param {number} probe
   * @param {number} evaluation
   */
  flagged(probe, evaluation) {
    return this.tables.flagged[probe * this.steps.length + evaluation] > 0;
  }

  /** Index of the last evaluation. */
  get last() {
    return this.steps.length - 1;
  }

  /** Request the rows of some probes.
   *
   * @param {number[]} visible first those in sight
   * @param {number[]} near then those near them
   */
  want(visible, near) {
    [this.visible, this.near] = [visible, near];
    for (const probe of visible) {
      const row = this.rows.get(probe);
      if (row) {
        this.rows.delete(probe);
        this.rows.set(probe, row);
      }
    }
    for (let i = 0; i < MAX_REQUESTS; i++) this.#requestRows();
    this.#fitTiles([...visible, ...near]);
  }

  /** Request the rows of which the large view shows something.
   *
   * @param {number[]} probes
   */
  wantBeside(probes) {
    this.beside = probes;
    this.#requestRows();
  }

  /** Make the tiles of some probes, where they are not made.
   *
   * @param {Iterable<number>} probes
   * @param {number} [tile] their size
   */
  async fit(probes, tile) {
    await Promise.all([...probes].map((probe) => this.rows.get(probe)?.fit(tile)));
  }

  /** Make tiles for another size or resolution as they are needed.
   *
   * @param {number[]} probes
   */
  async #fitTiles(probes) {
    const unfit = probes.filter((probe) => this.rows.get(probe)?.isFit === false);
    if (!unfit.length) return;
    await this.fit(unfit);
    this.onRows();
  }

  /** Probes of the next request: some in sight or, if nothing is requested, some near them. */
  nextBatch() {
    /** @param {number} probe */
    const isAbsent = (probe) => !this.rows.has(probe) && !this.pending.has(probe) && !this.failing.has(probe);
    const visible = [...this.beside, ...this.visible].filter(isAbsent);
    const probes = visible.length || this.requests ? visible : this.near.filter(isAbsent);
    return probes.slice(0, BATCH);
  }

  async #requestRows() {
    const probes = this.nextBatch();
    if (!probes.length || this.requests >= MAX_REQUESTS || !this.isShown()) return;
    this.requests++;
    for (const probe of probes) this.pending.add(probe);
    try {
      const names = probes.map((probe) => this.names[probe]);
      const response = await fetchRows(this.source, names).finally(() => this.requests--);
      if (!this.matches(response.arrays)) throw new RequestError("This run has changed since it was read.", 404);
      this.#requestRows(); // while the images are decoded
      this.#keep(await readRows(response, this.metricNames));
      this.onRows();
    } catch (error) {
      if (error instanceof RequestError && error.status === 404) await this.onOutdated(); // the run may have restarted
      this.#fail(probes, /** @type {Error} */ (error));
    } finally {
      for (const probe of probes) this.pending.delete(probe);
    }
  }

  /** Request others before these, and these again after a while if they are still wanted.
   *
   * @param {number[]} probes
   * @param {Error} error
   */
  #fail(probes, error) {
    if (!this.isShown()) return;
    for (const probe of probes) this.failing.add(probe);
    this.onError(error);
    this.#requestRows();
    setTimeout(() => {
      for (const probe of probes) this.failing.delete(probe);
      this.#requestRows();
    }, RETRY);
  }

  /** Whether rows are of the same evaluations as this run.
   *
   * @param {Pick<import("./wire.js").RowArrays, "wall_time">} arrays
   */
  matches({ wall_time: { data } }) {
    return data.length === this.wallTime.length && data.every((time, i) => time === this.wallTime[i]);
  }

  /** Keep new rows, and drop the least recently used ones if there are too many.
   *
   * @param {[string, RowData][]} rows
   */
  #keep(rows) {
    for (const [name, row] of rows) this.rows.set(/** @type {number} */ (this.indexOf.get(name)), row);
    const most = Math.max(MAX_ROWS, Math.floor(MAX_BYTES / rows[0][1].byteLength));
    for (const probe of this.rows.keys()) {
      if (this.rows.size <= most) break;
      this.rows.delete(probe);
    }
  }

  /** The map that an evaluation is compared with; null if it or the row is not available.
   *
   * @param {number} probe
   * @param {number} evaluation
   * @param {string} choice "callback" for the callback's own baseline, "previous", or a step
   */
  baselineMap(probe, evaluation, choice) {
    const row = this.rows.get(probe);
    if (!row) return null;
    if (choice === "previous") return row.map(Math.max(0, evaluation - 1));
    const index = choice === "callback" ? this.baseline[evaluation] : this.evaluationAt.get(Number(choice));
    if (index === undefined || index < -row.baselines.length) return null;
    return index < 0 ? row.baselines[-1 - index] : row.map(index);
  }

  /** What the state of a map says, if the map is degenerate; else empty.
   *
   * @param {number} probe
   * @param {number} evaluation
   */
  stateText(probe, evaluation) {
    return this.#wordsOf(this.states[evaluation], probe);
  }

  /** What the state of the map says that {@link baselineMap} returns, if it is degenerate; else empty.
   *
   * @param {number} probe
   * @param {number} evaluation
   * @param {string} choice
   */
  baselineStateText(probe, evaluation, choice) {
    if (choice === "callback") return this.#wordsOf(this.baselineStates[evaluation], probe);
    const index = choice === "previous" ? Math.max(0, evaluation - 1) : this.evaluationAt.get(Number(choice));
    return index === undefined ? "" : this.stateText(probe, index);
  }

  /**
   * @param {Record<string, string>} states
   * @param {number} probe
   */
  #wordsOf(states, probe) {
    const name = this.names[probe];
    if (!Object.hasOwn(states, name)) return "";
    return Object.hasOwn(this.stateWords, states[name]) ? this.stateWords[states[name]] : states[name];
  }

  /** Name of the step whose map {@link baselineMap} returns.
   *
   * @param {number} evaluation
   * @param {string} choice
   */
  baselineName(evaluation, choice) {
    if (choice === "previous") return `step ${this.steps[Math.max(0, evaluation - 1)]}`;
    return choice === "callback" ? `step ${this.baselineStep[evaluation]}` : `step ${choice}`;
  }
}
