/** Drift of one probe over all looks, in a small picture. */

const SVG = "http://www.w3.org/2000/svg";

/** An `<svg>` of `run`'s drift of a probe, 0 at the bottom and 1 (or the highest there is) at the top; looks at which
 * the probe breaks the rule are dots, and `mark(look)` moves a line to the look that is shown.
 */
export function sparkline(run, probe, width, height) {
  const drift = run.steps.map((_, look) => run.drift(probe, look));
  const highest = Math.max(1, ...drift.filter((value) => !Number.isNaN(value)));
  const span = Math.max(1, run.steps[run.last] - run.steps[0]);
  const x = (look) => 4 + ((width - 8) * (run.steps[look] - run.steps[0])) / span;
  const y = (value) => height - 4 - ((height - 8) * value) / highest;
  const known = drift.map((value, look) => [look, value]).filter(([, value]) => !Number.isNaN(value));
  const alarms = known.filter(([look]) => run.alarm(probe, look));
  const now = svg("line", { y1: 0, y2: height, class: "now" });
  const sketch = svg("svg", {
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    preserveAspectRatio: "none",
    role: "img",
    class: "sparkline",
    "aria-label": spoken(run, drift, alarms),
  });
  sketch.append(
    svg("line", { x1: 0, x2: width, y1: y(0), y2: y(0), class: "axis" }),
    now,
    svg("polyline", { points: known.map(([look, value]) => `${x(look)},${y(value)}`).join(" "), class: "line" }),
    svg("path", { d: alarms.map(([look, value]) => `M${x(look)} ${y(value)}h0`).join(""), class: "alarm" }), // round dots
  );
  sketch.highest = highest.toFixed(highest > 1 ? 2 : 0);
  sketch.mark = (look) => {
    now.style.display = look === undefined ? "none" : "";
    if (look === undefined) return;
    now.setAttribute("x1", x(look));
    now.setAttribute("x2", x(look));
  };
  return sketch;
}

function spoken(run, drift, alarms) {
  const last = drift[run.last];
  const now = Number.isNaN(last) ? "unknown" : last.toFixed(2);
  return `drift ${now} at the last look${alarms.length ? `; breaks the rule since step ${run.steps[alarms[0][0]]}` : ""}`;
}

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
