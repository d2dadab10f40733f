/** One probe at one look, large: baseline and now under a wipe, the figures, and where attention went. */

import { element } from "./dom.js";
import { moved, percent } from "./places.js";
import { badge, figure } from "./row.js";
import { nameOf } from "./run.js";
import { sparkline } from "./sparkline.js";

const [STAGE, SMALL] = [420, 144]; // CSS pixels
const FIGURES = [
  ["drift", "Drift from the callback's baseline"],
  ["noise_ratio", "Drift in units of its noise", 1],
  ["common_gain", "Common gain"],
  ["peak_gain", "Gain in one spot"],
  ["top_iou", "Top-20 % IoU"],
  ["center_shift", "Centre shift"],
  ["similarity", "Similarity", 3],
  ["energy_inside_mask", "Energy on the object"],
];

export class Detail {
  /**
   * @param {import("./board.js").Board} board
   * @param {(by: number) => void} go to another probe
   */
  constructor(board, go) {
    this.board = board;
    this.stages = [];
    this.title = element("h2", { id: "detail-title" });
    this.prompt = element("p", { class: "prompt" });
    this.look = element("output", { "aria-live": "polite" });
    this.panes = element("div", { class: "panes" });
    this.wipe = element("input", {
      type: "range",
      min: 0,
      max: 1,
      step: 0.01,
      value: 0.5,
      "aria-label": "Wipe between baseline and now",
      on: { input: () => this.#draw() },
    });
    const button = (text, label, click) =>
      element("button", { text, title: label, "aria-label": label, on: { click } });
    this.node = element(
      "dialog",
      {
        class: "detail",
        tabIndex: -1,
        "aria-labelledby": "detail-title",
        on: { close: () => board.state.set({ open: "" }) },
      },
      element(
        "header",
        {},
        element("div", {}, this.title, this.prompt),
        button("↑", "Probe above (up arrow)", () => go(-1)),
        button("↓", "Probe below (down arrow)", () => go(1)),
        button("✕", "Close (escape)", () => this.node.close()),
      ),
      element("div", { class: "look" }, this.look, "wipe", this.wipe),
      this.panes,
    );
    this.node.addEventListener("keydown", (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (by === undefined) return;
      go(by);
      event.preventDefault();
    });
    this.node.addEventListener("click", (event) => {
      if (event.target === this.node) this.node.close(); // the ground around it
    });
  }

  /** @param {?number[]} pair the probe's number in each run; null closes */
  async update(pair) {
    if (!pair) {
      if (this.node.open) this.node.close();
      return;
    }
    const { board } = this;
    const [first] = board.runs;
    this.title.textContent = first.names[pair[0]];
    this.prompt.textContent = first.prompts[pair[0]];
    this.look.textContent = board.title(board.now);
    if (!this.node.open) {
      this.node.showModal();
      this.node.focus(); // and not the first button, which space would press
    }
    this.waits = false;
    const shown = (this.shown = Symbol("newest")); // an older one may still wait for its pictures
    const panes = await Promise.all(board.runs.map((run, side) => this.#pane(run, pair[side], side)));
    if (shown !== this.shown) return;
    this.stages = panes.map(({ stage }) => stage);
    this.panes.classList.toggle("two", panes.length > 1);
    this.panes.replaceChildren(...panes.map(({ node }) => node));
    this.#draw();
  }

  async #pane(run, probe, side) {
    const { board } = this;
    const look = board.lookUntil(board.now, side);
    const row = run.rows.get(probe);
    const heading = board.runs.length > 1 ? [element("h3", {}, ...badge(board.runs, side), nameOf(run.source))] : [];
    const node = element("section", {}, ...heading);
    if (!row) this.waits = true;
    if (!row || look === undefined) {
      node.append(element("p", { class: "quiet", text: row ? "This run has no look up to this step." : "Loading." }));
      return { node, stage: null };
    }
    const { values } = board.state;
    const picture = await row.picture(Math.round(STAGE * Math.min(2, devicePixelRatio)));
    const small = await row.picture(Math.round(SMALL * Math.min(2, devicePixelRatio)));
    const view = values.view === "heat" ? "heat" : "overlay";
    const stage = {
      canvas: element("canvas", {
        class: "stage",
        role: "img",
        "aria-label": `${run.names[probe]}, baseline beside now`,
      }),
      before: board.image(run, probe, look, { picture, view, before: true }),
      now: board.image(run, probe, look, { picture, view }),
    };
    stage.canvas.addEventListener("pointerdown", (event) => this.#drag(event));
    stage.canvas.addEventListener("pointermove", (event) => event.buttons && this.#drag(event));
    const tiles = ["change", "input"].map((kind) =>
      element(
        "figure",
        {},
        painting(board.image(run, probe, look, { picture: small, view: kind })),
        element("figcaption", { text: kind }),
      ),
    );
    const drift = sparkline(run, probe, STAGE, 64);
    drift.mark(look);
    stage.captions = [
      element("span", { text: `baseline: ${run.baselineName(look, values.baseline)}` }),
      element("span", { text: `now: step ${run.steps[look]}` }),
    ];
    const names = element("div", { class: "names" }, ...stage.captions);
    const chart = element(
      "figure",
      {},
      drift,
      element("figcaption", { text: `drift, 0 to ${drift.highest}, at all looks` }),
    );
    node.append(
      element("div", {}, stage.canvas, names, chart),
      element(
        "div",
        {},
        element("div", { class: "tiles" }, ...tiles),
        words(run, probe, look, row, values.baseline),
        table(row, look),
        element("p", {
          class: "quiet",
          text: `Maps: ${run.made.method}, ${run.made.target}, ${run.made.layers.join(", ")}`,
        }),
      ),
    );
    return { node, stage };
  }

  #drag({ target, clientX }) {
    const { left, width } = target.getBoundingClientRect();
    this.wipe.value = Math.max(0, Math.min(1, (clientX - left) / width));
    this.#draw();
  }

  /** Baseline to the left of the wipe, now to the right. */
  #draw() {
    for (const stage of this.stages) {
      if (!stage) continue;
      const { canvas, before, now } = stage;
      const whole = now ?? before;
      if (!whole) continue;
      [canvas.width, canvas.height] = [whole.width, whole.height];
      const context = canvas.getContext("2d");
      const edge = Math.round(this.wipe.value * whole.width);
      stage.captions[0].style.visibility = edge > 0 ? "" : "hidden"; // of what is not to be seen
      stage.captions[1].style.visibility = edge < whole.width ? "" : "hidden";
      if (before) context.putImageData(before, 0, 0, 0, 0, edge, whole.height);
      if (now) context.putImageData(now, 0, 0, edge, 0, whole.width - edge, whole.height);
      context.fillStyle = "#fff";
      if (edge > 0 && edge < whole.width) context.fillRect(edge - 1, 0, 2, whole.height);
    }
  }
}

function words(run, probe, look, row, baseline) {
  const [before, now] = [run.baselineMap(probe, look, baseline), row.map(look)];
  const way = before && now ? moved(before, now, row.shape) : null;
  const note = run.notes[look][row.figures(look, "note")];
  const went = way?.far
    ? `The ${way.gained} gained ${percent(way.gain)} of the map, the ${way.lost} lost ${percent(way.loss)}. `
    : "";
  const node = element("p", { class: "words", text: went });
  const breaks = run.alarm(probe, look) > 0;
  if (note)
    node.append(
      element("strong", { class: breaks ? "alarm" : "", text: `${breaks ? "Breaks the rule: " : ""}${note}.` }),
    );
  return node;
}

function table(row, look) {
  const known = FIGURES.filter(([name]) => !Number.isNaN(row.figures(look, name)));
  const line = ([name, label, digits]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row", text: label }),
      element("td", { text: figure(row.figures(look, name), digits) }),
    );
  return element("table", {}, element("tbody", {}, ...known.map(line)));
}

function painting(image) {
  const made = element("canvas", { "aria-hidden": "true" });
  if (image) {
    [made.width, made.height] = [image.width, image.height];
    made.getContext("2d").putImageData(image, 0, 0);
  }
  return made;
}
