/** The CLIP CAM tab: TensorBoard loads this module into a frame and calls `render`. */

import { Board } from "./board.js";
import { Detail } from "./detail.js";
import { element } from "./dom.js";
import { Grid } from "./grid.js";
import { headline } from "./headline.js";
import { followDarkMode, onDataReloaded, onResolutionChange, takeKeyboard } from "./host.js";
import { Player } from "./player.js";
import { Run, keyOf } from "./run.js";
import { State } from "./state.js";
import { Toolbar } from "./toolbar.js";
import { askArrays, askJson } from "./wire.js";

const EMPTY = `from clipcam_lightning import ClipCamCallback
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
  followDarkMode();
  try {
    const page = new Page(await askArrays("colors"));
    document.body.replaceChildren(page.node);
    takeKeyboard();
    onDataReloaded(() => page.load(true));
    onResolutionChange(() => page.fit());
    await page.load(false);
  } catch (error) {
    document.body.replaceChildren(element("p", { class: "message", text: error.message }));
  }
}

class Page {
  constructor(colors) {
    this.state = new State();
    this.board = new Board(this.state, colors);
    this.sources = [];
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
    this.state.listen((changed) => this.#changed(changed));
  }

  /** Read the runs, and the chosen ones anew if `again`. */
  async load(again) {
    try {
      this.sources = (await askJson("runs")).runs;
      await this.#show(again);
    } catch (error) {
      this.#say(error.message);
    }
  }

  async #show(again) {
    const asked = (this.asked = Symbol("newest")); // another choice may be made while this one is read
    if (!this.sources.length) {
      this.board.show([]);
      this.#say(
        "There are no CLIP CAM maps in this log directory yet. Add the callback to a Trainer that logs to TensorBoard; the first maps come with the first validation.",
        EMPTY,
      );
      return;
    }
    const { values } = this.state;
    const find = (key) => this.sources.find((source) => keyOf(source) === key);
    const newest = (some, other) => (other.wall_time > some.wall_time ? other : some);
    const sound = this.sources.filter(({ problem }) => !problem);
    const chosen = find(values.run) ?? (sound.length ? sound : this.sources).reduce(newest);
    this.absent = find(values.run) ? "" : values.run.replace(/^[^@]*@/, ""); // without the root of the tags
    const beside = find(values.beside);
    const wanted = beside && beside !== chosen ? [chosen, beside] : [chosen];
    const problem = wanted.find((source) => source.problem);
    this.state.adopt({ run: keyOf(chosen), beside: wanted.length > 1 ? keyOf(beside) : "" });
    this.toolbar.update(this.sources); // so that another run can be chosen, whatever comes of this one
    if (problem) {
      this.board.show([]);
      this.#say(`Run \u2068${problem.run}\u2069 cannot be shown. ${problem.problem}`);
      return;
    }
    const shown = wanted.map((source) => this.board.runs.find(({ key }) => key === keyOf(source)));
    const chosenAnew =
      wanted.length !== this.board.runs.length || shown.some((run, side) => run !== this.board.runs[side]);
    let runs;
    try {
      runs = await Promise.all(
        wanted.map((source, side) => (shown[side] && !again ? shown[side] : Run.read(source, shown[side]))),
      );
    } catch (error) {
      if (asked !== this.asked) return;
      if (chosenAnew) this.board.show([]); // nothing of the run that was chosen before
      throw error;
    }
    if (asked !== this.asked) return;
    this.#say("");
    if (!chosenAnew && runs.every((run, side) => run === shown[side])) return;
    for (const run of runs) {
      run.isShown = () => this.board.runs === runs;
      run.arrived = () => run.isShown() && this.#arrived();
      run.outdated = async () => run.isShown() && this.load(true);
      run.failed = (error) => this.#say(error.message);
    }
    this.#all(runs);
  }

  /** Tiles for another resolution of the screen. */
  async fit() {
    await Promise.all(this.board.runs.flatMap((run) => [...run.rows.values()].map((row) => row.fit())));
    this.grid.update(true);
    this.#showDetail();
  }

  /** Everything anew; who has scrolled to another look stays there if the same one is shown on. */
  #all(runs) {
    const was = this.board.now;
    this.board.show(runs);
    this.toolbar.update(this.sources);
    this.#tell();
    this.grid.reset();
    if (this.board.now !== was) {
      this.grid.reveal();
      this.grid.update(false);
    }
    this.player.update();
    this.#showDetail();
  }

  #tell() {
    const { runs, unmatched } = this.board;
    this.headline.replaceChildren(...headline(runs));
    if (this.absent) {
      const text = `There is no run \u2068${this.absent}\u2069 here, which was asked for; this is another.`;
      this.headline.append(element("p", { class: "quiet", text }));
    }
    if (!unmatched) return;
    const text = `${unmatched} ${unmatched === 1 ? "probe of the first run is" : "probes of the first run are"} not in the second.`;
    this.headline.append(element("p", { class: "quiet", text }));
  }

  /** Rows have come. */
  #arrived() {
    if (!this.board.runs.some(({ failing }) => failing.size)) this.#say("");
    this.grid.update(false);
    if (this.detail.waits) this.#showDetail();
  }

  #changed(changed) {
    const any = (...keys) => keys.some((key) => changed.has(key));
    if (any("run", "beside")) {
      this.#show(false).catch((error) => this.#say(error.message));
      return;
    }
    if (!this.board.runs.length) return;
    if (any("sort", "filter")) {
      this.board.arrange();
      this.grid.reset();
    }
    if (any("view", "opacity", "colors", "baseline", "scale")) this.grid.update(true);
    if (changed.has("look")) this.grid.follow();
    if (changed.has("open")) this.grid.update(false); // which asks for its row
    this.toolbar.update(this.sources);
    this.player.update();
    this.#showDetail();
  }

  #open(row, column) {
    const { board } = this;
    const [probe] = board.probes[Math.floor(row / board.runs.length)];
    board.go(column);
    this.state.set({ open: board.runs[0].names[probe] });
  }

  #openNext(by) {
    const { board } = this;
    const at = board.probes.findIndex(([probe]) => board.runs[0].names[probe] === this.state.values.open) + by;
    if (board.probes[at]) this.state.set({ open: board.runs[0].names[board.probes[at][0]] });
  }

  #showDetail() {
    this.detail.update(this.board.open ?? null);
  }

  #say(text, example) {
    this.message.hidden = !text;
    this.message.replaceChildren(element("p", { text }), ...(example ? [element("pre", { text: example })] : []));
    for (const part of [this.headline, this.grid.node, this.player.node]) {
      part.hidden = Boolean(text) && !this.board.runs.length;
    }
    this.toolbar.node.hidden = !this.sources.length;
  }
}
