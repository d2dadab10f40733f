/** The CLIP CAM tab: TensorBoard loads this module into a frame and calls `render`. */

import { Board } from "./board.js";
import { Detail } from "./detail.js";
import { element } from "./dom.js";
import { Grid } from "./grid.js";
import { headline } from "./headline.js";
import {
  addressBar,
  browserStorage,
  followDarkMode,
  onDataReloaded,
  onResolutionChange,
  takeKeyboard,
} from "./host.js";
import { Player } from "./player.js";
import { Run } from "./run.js";
import { chooseSources, keyOf } from "./sources.js";
import { SIZE, chooseLengths } from "./size.js";
import { State } from "./state.js";
import { Toolbar } from "./toolbar.js";
import { fetchColors, fetchRuns } from "./wire.js";

/**
 * @typedef {import("./state.js").Choices} Choices
 * @typedef {import("./wire.js").Colors} Colors
 * @typedef {import("./wire.js").Source} Source
 */

const EMPTY =
  "There are no CLIP CAM maps in this log directory yet. Add the callback to a Trainer that logs to TensorBoard; " +
  "the first maps come with the first validation.";
const EXAMPLE = `from clipcam_lightning import ClipCamCallback
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

trainer = Trainer(
    logger=TensorBoardLogger("logs"),
    callbacks=[ClipCamCallback()],
)`;

export async function render() {
  for (const href of ["./page.css", "./grid.css", "./detail.css"]) {
    document.head.append(element("link", { rel: "stylesheet", href }));
  }
  document.documentElement.lang = "en";
  document.title = "CLIP CAM";
  followDarkMode();
  try {
    const page = new Page(await fetchColors());
    document.body.replaceChildren(page.node);
    takeKeyboard();
    onDataReloaded(() => page.load(true));
    onResolutionChange(() => page.fit());
    await page.load(false);
  } catch (error) {
    document.body.replaceChildren(element("p", { class: "message", text: messageOf(error) }));
  }
}

class Page {
  /** @param {Colors} colors */
  constructor(colors) {
    this.state = new State(addressBar, browserStorage);
    this.board = new Board(this.state, colors);
    /** @type {Source[]} */
    this.sources = [];
    this.absent = ""; // the name of a chosen run that does not exist
    this.choice = Symbol("newest choice");
    this.toolbar = new Toolbar(this.state, this.board);
    this.grid = new Grid(this.board, (row, column) => this.#open(row, column));
    this.player = new Player(this.board);
    this.detail = new Detail(this.board, (by) => this.#openNext(by));
    this.headline = element("div", { class: "headline" });
    this.message = element("div", { class: "message", role: "status", hidden: true });
    this.node = element(
      "main",
      {},
      this.toolbar.node,
      this.headline,
      this.message,
      this.grid.node,
      this.player.node,
      this.detail.node,
    );
    this.resizing = Symbol("newest size");
    this.grid.onResize = () => this.#resize();
    this.state.listen((changed) => this.#update(changed));
  }

  /** Read the list of runs and show the chosen ones.
   *
   * @param {boolean} again whether to read runs again that are shown
   */
  async load(again) {
    try {
      this.sources = await fetchRuns();
      await this.#show(again);
    } catch (error) {
      this.#showMessage(messageOf(error));
    }
  }

  /** @param {boolean} again */
  async #show(again) {
    const choice = (this.choice = Symbol("newest choice")); // another may be made while this one is read
    if (!this.sources.length) {
      this.board.show([]);
      this.#showMessage(EMPTY, EXAMPLE);
      return;
    }
    const { chosen, absent } = chooseSources(this.sources, this.state.values);
    this.absent = absent;
    this.state.adopt({ run: keyOf(chosen[0]), compare: chosen[1] ? keyOf(chosen[1]) : "" });
    this.toolbar.update(this.sources); // first, so that another run can be chosen if this one fails
    const invalid = chosen.find((source) => source.problem);
    if (invalid) {
      this.board.show([]);
      this.#showMessage(`Run \u2068${invalid.run}\u2069 cannot be shown. ${invalid.problem}`);
      return;
    }
    const shown = chosen.map((source) => this.board.runs.find(({ key }) => key === keyOf(source)));
    const isSame = chosen.length === this.board.runs.length && shown.every((run, i) => run === this.board.runs[i]);
    /** @type {Run[]} */
    let runs;
    try {
      runs = await Promise.all(
        chosen.map((source, i) => {
          const run = shown[i];
          return run && !again ? run : Run.read(source, run);
        }),
      );
    } catch (error) {
      if (choice !== this.choice) return;
      if (!isSame) this.board.show([]); // nothing of the run that was chosen before
      throw error;
    }
    if (choice !== this.choice) return;
    this.#showMessage("");
    if (isSame && runs.every((run, i) => run === shown[i])) return;
    for (const run of runs) {
      run.isShown = () => this.board.runs === runs;
      run.onRows = () => {
        if (run.isShown()) this.#showRows();
      };
      run.onOutdated = async () => {
        if (run.isShown()) await this.load(true);
      };
      run.onError = (error) => this.#showMessage(error.message);
    }
    const lengths = this.#lengths(new Set(runs.flatMap(({ steps }) => steps)).size);
    await Promise.all(runs.map((run) => run.fit(run.rows.keys(), lengths.tile)));
    if (choice !== this.choice) return;
    if (lengths.tile !== SIZE.tile || lengths.about !== SIZE.about) this.grid.resize(lengths);
    this.#showRuns(runs);
  }

  /** Make tiles for another resolution of the screen. */
  async fit() {
    await Promise.all(this.board.runs.map((run) => run.fit(run.visible)));
    this.grid.update(true);
    this.#showDetail();
  }

  /** Resize the grid to the chosen size, or to the width there is. */
  async #resize() {
    const columns = this.board.columns.length;
    if (!columns || !this.grid.node.clientWidth) return; // nothing or another tab is shown
    const lengths = this.#lengths(columns);
    const resizing = (this.resizing = Symbol("newest size")); // another may be chosen while tiles are made
    if (lengths.tile === SIZE.tile && lengths.about === SIZE.about) return;
    await Promise.all(this.board.runs.map((run) => run.fit(run.visible, lengths.tile)));
    if (resizing !== this.resizing) return;
    this.grid.resize(lengths);
    this.toolbar.update(this.sources);
  }

  /** @param {number} columns */
  #lengths(columns) {
    return chooseLengths(this.grid.node.clientWidth || innerWidth, columns, this.state.values.size);
  }

  /** Show other runs. The grid stays where the user has scrolled, if the same evaluation is shown.
   *
   * @param {Run[]} runs
   */
  #showRuns(runs) {
    const before = this.board.current;
    this.board.show(runs);
    this.toolbar.update(this.sources);
    this.#showHeadline();
    this.grid.reset();
    if (this.board.current !== before) {
      this.grid.reveal();
      this.grid.update(false);
    }
    this.player.update();
    this.#showDetail();
  }

  #showHeadline() {
    const { runs, unmatched } = this.board;
    const notes = [];
    if (this.absent) {
      notes.push(`There is no run \u2068${this.absent}\u2069 in this log directory; another one is shown.`);
    }
    if (unmatched) {
      const probes = unmatched === 1 ? "probe of the first run is" : "probes of the first run are";
      notes.push(`${unmatched} ${probes} not in the second.`);
    }
    this.headline.replaceChildren(...headline(runs), ...notes.map((text) => element("p", { class: "quiet", text })));
  }

  /** Show rows that have arrived. */
  #showRows() {
    if (!this.board.runs.some(({ failing }) => failing.size)) this.#showMessage("");
    this.grid.update(false);
    if (this.detail.isWaiting) this.#showDetail();
  }

  /** @param {Set<keyof Choices>} changed */
  #update(changed) {
    /** @type {(...keys: (keyof Choices)[]) => boolean} */
    const hasChanged = (...keys) => keys.some((key) => changed.has(key));
    if (hasChanged("run", "compare")) {
      this.#show(false).catch((error) => this.#showMessage(messageOf(error)));
      return;
    }
    if (!this.board.runs.length) return;
    if (hasChanged("sort", "filter")) {
      this.board.arrange();
      this.grid.reset();
    }
    if (hasChanged("view", "opacity", "colors", "baseline", "scale")) this.grid.update(true);
    if (hasChanged("size")) this.#resize();
    if (hasChanged("evaluation")) this.grid.follow();
    if (hasChanged("open")) this.grid.update(false); // requests the row
    this.toolbar.update(this.sources);
    this.player.update();
    this.#showDetail();
  }

  /**
   * @param {number} row
   * @param {number} column
   */
  #open(row, column) {
    const { probes, runs } = this.board;
    const [probe] = probes[Math.floor(row / runs.length)];
    this.board.go(column);
    this.state.set({ open: runs[0].names[probe] });
  }

  /** @param {number} by */
  #openNext(by) {
    const { probes, runs, open } = this.board;
    const next = open && probes[probes.indexOf(open) + by];
    if (next) this.state.set({ open: runs[0].names[next[0]] });
  }

  #showDetail() {
    this.detail.update(this.board.open);
  }

  /** Show a message; instead of the maps if there are none.
   *
   * @param {string} text empty to remove it
   * @param {string} [example] code
   */
  #showMessage(text, example) {
    this.message.hidden = !text;
    this.message.replaceChildren(element("p", { text }), ...(example ? [element("pre", { text: example })] : []));
    for (const part of [this.headline, this.grid.node, this.player.node]) {
      part.hidden = Boolean(text) && !this.board.runs.length;
    }
    this.toolbar.node.hidden = !this.sources.length;
  }
}

/** @param {unknown} error */
function messageOf(error) {
  return error instanceof Error ? error.message : String(error);
}
