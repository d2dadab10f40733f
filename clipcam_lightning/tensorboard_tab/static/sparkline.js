/** Drift of one probe over all evaluations, as a small chart. */

import { formatNumber } from "./format.js";

/** @typedef {import("./run.js").Run} Run */

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = 4; // CSS pixels

/**
 * @typedef {Object} Layout
 * @property {number[]} x of each evaluation
 * @property {number} zero y of no drift
 * @property {[number, number][]} line points of the evaluations whose drift is known
 * @property {[number, number][]} dots points of the evaluations at which the probe is flagged
 * @property {number} highest drift at the top: 1, or the largest there is
 * @property {string} label the chart in words
 */

/** Place the points of a chart.
 *
 * @param {Pick<Run, "steps" | "last" | "drift" | "flagged">} run
 * @param {number} probe
 * @param {number} width CSS pixels
 * @param {number} height CSS pixels
 * @returns {Layout}
 */
export function layOutSparkline(run, probe, width, height) {
  const { steps, last } = run;
  const drift = steps.map((_, evaluation) => run.drift(probe, evaluation));
  const drawn = [...drift.keys()].filter((evaluation) => !Number.isNaN(drift[evaluation]));
  const flagged = drawn.filter((evaluation) => run.flagged(probe, evaluation));
  const highest = Math.max(1, ...drawn.map((evaluation) => drift[evaluation]));
  const span = Math.max(1, steps[last] - steps[0]);
  const x = steps.map((step) => MARGIN + ((width - 2 * MARGIN) * (step - steps[0])) / span);
  /** @param {number} value */
  const y = (value) => height - MARGIN - ((height - 2 * MARGIN) * value) / highest;
  /** @type {(evaluation: number) => [number, number]} */
  const point = (evaluation) => [x[evaluation], y(drift[evaluation])];
  const since = flagged.length ? `; first flagged at step ${steps[flagged[0]]}` : "";
  return {
    x,
    zero: y(0),
    line: drawn.map(point),
    dots: flagged.map(point),
    highest,
    label: `drift ${formatNumber(drift[last])} at the last evaluation${since}`,
  };
}

/** The chart, with a line at the evaluation that is shown. */
export class Sparkline {
  /**
   * @param {Run} run
   * @param {number} probe
   * @param {number} width CSS pixels
   * @param {number} height CSS pixels
   */
  constructor(run, probe, width, height) {
    const { x, zero, line, dots, highest, label } = layOutSparkline(run, probe, width, height);
    this.x = x;
    this.highest = highest;
    this.marker = svg("line", { y1: 0, y2: height, class: "now" });
    this.node = svg("svg", {
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      preserveAspectRatio: "none",
      role: "img",
      class: "sparkline",
      "aria-label": label,
    });
    this.node.append(
      svg("line", { x1: 0, x2: width, y1: zero, y2: zero, class: "axis" }),
      this.marker,
      svg("polyline", { points: line.map((point) => point.join()).join(" "), class: "line" }),
      svg("path", { d: dots.map(([left, top]) => `M${left} ${top}h0`).join(""), class: "flagged" }), // round line caps
    );
  }

  /** Move the line to an evaluation, or hide it.
   *
   * @param {number} [evaluation]
   */
  mark(evaluation) {
    this.marker.style.display = evaluation === undefined ? "none" : "";
    if (evaluation === undefined) return;
    for (const end of ["x1", "x2"]) this.marker.setAttribute(end, String(this.x[evaluation]));
  }
}

/**
 * @template {keyof SVGElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number>} attributes
 * @returns {SVGElementTagNameMap[Tag]}
 */
function svg(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, String(value));
  return /** @type {SVGElementTagNameMap[Tag]} */ (node);
}
