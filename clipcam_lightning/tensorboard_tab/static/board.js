/** What is on the screen: which looks of which probes of which runs, in which order, and how each is painted. */

import { painted, shown, top } from "./heat.js";
import { LAST } from "./state.js";

export class Board {
  /** @param {import("./state.js").State} state @param {{about: Object, arrays: Object}} colors */
  constructor(state, colors) {
    this.state = state;
    this.colors = colors;
    this.runs = [];
    this.columns = []; // {step, looks: the number of the look in each run, or undefined}
    this.probes = []; // numbers in each run, in the order of the rows
    this.matched = 0; // probes that every run has
    this.unmatched = 0; // of the first run, which the second has not
  }

  /** @param {import("./run.js").Run[]} runs one, or two that are compared */
  show(runs) {
    this.runs = runs;
    const steps = [...new Set(runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
    this.columns = steps.map((step) => ({ step, looks: runs.map((run) => run.lookAt.get(step)) }));
    this.arrange();
  }

  /** Filter and sort the probes. */
  arrange() {
    const [first, second] = this.runs;
    if (!first) {
      [this.probes, this.matched, this.unmatched] = [[], 0, 0];
      return;
    }
    const { filter, sort } = this.state.values;
    const all = second ? partners(first, second) : first.names.map((_, i) => [i]);
    const matched = all.filter((pair) => !pair.includes(undefined));
    this.unmatched = all.length - matched.length;
    this.matched = matched.length;
    const words = filter.toLowerCase().split(/\s+/);
    const text = (i) => `${first.names[i]} ${first.prompts[i]}`.toLowerCase();
    this.probes = matched.filter(([i]) => words.every((word) => text(i).includes(word)));
    const known = (value) => (Number.isNaN(value) ? -Infinity : value);
    const order = {
      drift: ([a], [b]) => known(first.drift(b, first.last)) - known(first.drift(a, first.last)) || a - b,
      similarity: ([a], [b]) =>
        known(first.similarity(a, first.last)) - known(first.similarity(b, first.last)) || a - b,
      name: ([a], [b]) => first.names[a].localeCompare(first.names[b], undefined, { numeric: true }),
    }[sort];
    this.probes.sort(order ?? (([a], [b]) => a - b));
  }

  /** How many probes are shown. */
  get inWords() {
    const some = this.probes.length < this.matched ? `${this.probes.length} of ` : "";
    return `${some}${this.matched} ${this.matched === 1 ? "probe" : "probes"}`;
  }

  /** Number of the last column. */
  get newest() {
    return this.columns.length - 1;
  }

  /** The last look that a run has up to a column, if it has one by then. */
  lookUntil(column, side) {
    const until = this.columns.slice(0, column + 1);
    return until.findLast(({ looks }) => looks[side] !== undefined)?.looks[side];
  }

  /** Number of the column that is shown now. */
  get now() {
    const { look } = this.state.values;
    const at = look === LAST ? -1 : this.columns.findIndex(({ step }) => step === Number(look));
    return at < 0 ? this.newest : at;
  }

  /** Show a column, as far as there is one; who shows the newest will see newer ones when they come. */
  go(column) {
    if (!this.columns.length) return;
    const at = Math.max(0, Math.min(this.columns.length - 1, column));
    this.state.set({ look: at === this.newest ? LAST : this.columns[at].step });
  }

  /** The probe that is shown large, as in `probes`; undefined if none is. */
  get open() {
    return this.probes.find(([probe]) => this.runs[0].names[probe] === this.state.values.open);
  }

  /** A look in words. */
  title(column) {
    const { step, looks } = this.columns[column];
    const side = looks.findIndex((look) => look !== undefined);
    return `step ${step}, epoch ${this.runs[side].epoch[looks[side]]}`;
  }

  alarmed(column) {
    return this.columns[column].looks.some((look, side) => look !== undefined && this.runs[side].alarmed[look]);
  }

  /** The chosen colours of heat, or the first there are. */
  get heatColors() {
    const { about, arrays } = this.colors;
    const { colors } = this.state.values;
    return arrays[about.heats.includes(colors) ? colors : about.heats[0]].data;
  }

  /** Pixels of a probe at a look.
   *
   * @param {Object} [options] `picture` in another size than that of a tile, `view` instead of the chosen one, and
   *     `before`: the baseline instead of the look
   * @returns {?ImageData} null if there is no map; undefined if the row has not come yet
   */
  image(run, probe, look, { picture, view = this.state.values.view, before = false } = {}) {
    const row = run.rows.get(probe);
    if (!row) return undefined;
    const { opacity, baseline, scale } = this.state.values;
    const at = (map) => map && shown(map, scale === "probe" ? row.top : top(map));
    const now = view === "input" ? null : at(row.map(look));
    const base = before || view === "change" ? at(run.baselineMap(probe, look, baseline)) : null;
    return painted(picture ?? row.tile, row.shape, before ? base : now, base, {
      view,
      opacity: Number(opacity),
      heatColors: this.heatColors,
      changeColors: this.colors.arrays[this.colors.about.change].data,
    });
  }
}

/** Each probe of one run with its partner in the other: of the same digest and, where several have it, the same name. */
function partners(first, second) {
  const free = new Set(second.digests.keys());
  const pairs = first.digests.map((digest, i) => {
    const named = second.places.get(first.names[i]);
    return [i, second.digests[named] === digest && free.delete(named) ? named : undefined];
  });
  for (const pair of pairs) {
    pair[1] ??= [...free].find((j) => second.digests[j] === first.digests[pair[0]]);
    free.delete(pair[1]);
  }
  return pairs;
}
