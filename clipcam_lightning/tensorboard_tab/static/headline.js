/** The run in a sentence: which probe moved most, when, and where to. */

import { element } from "./dom.js";
import { LEAST, moved, percent } from "./places.js";
import { badge, figure } from "./row.js";

/** @returns {Node[]} one line a run */
export function headline(runs) {
  return runs.map((run, side) => {
    return element("p", {}, ...badge(runs, side), ...verdict(run), ...most(run), ...leftOut(run));
  });
}

function verdict(run) {
  const { steps, alarmed, last, rule } = run;
  const count = run.names.filter((_, probe) => run.alarm(probe, last) > 0).length;
  const told = count ? `${count} of ${run.names.length} probes break the rule` : "no probe breaks the rule";
  const breaking = element("span", { text: told, title: `The rule: ${rule}.` });
  if (alarmed[last]) {
    const since = alarmed.lastIndexOf(0) + 1;
    return [element("strong", { class: "alarm", text: `Alarm since step ${steps[since]}` }), ": ", breaking, ". "];
  }
  const earlier = alarmed.indexOf(1);
  const before = earlier < 0 ? "" : `, but there was one at step ${steps[earlier]}`;
  return [element("strong", { text: `No alarm at the last look${before}` }), ": ", breaking, ". "];
}

function most(run) {
  const { last, names } = run;
  const known = names.map((_, probe) => probe).filter((probe) => !Number.isNaN(run.drift(probe, last)));
  if (!known.length) return ["No drift is known: the baseline says nothing."];
  const probe = known.reduce((worst, other) => (run.drift(other, last) > run.drift(worst, last) ? other : worst));
  if (!last && !run.drift(probe, last)) return ["There is nothing to compare yet."];
  return [
    element("strong", {}, element("bdi", { text: names[probe] })), // a name may turn the direction of what follows
    ` moved most: drift ${figure(run.drift(probe, last))}${when(run, probe)}${where(run, probe)}.`,
  ];
}

/** Between which two looks most of the drift came, if any two saw so much and all are compared with the same map. */
function when(run, probe) {
  const { last, steps } = run;
  const rises = steps.slice(1).map((_, look) => run.drift(probe, look + 1) - run.drift(probe, look));
  const jump = rises.reduce((largest, rise, look) => (rise > (rises[largest] || 0) ? look : largest), 0);
  const large = rises[jump] > run.drift(probe, last) / 2;
  const same = run.baseline_step.every((step) => step === run.baseline_step[0]);
  return large && same ? `, most of it between steps ${steps[jump]} and ${steps[jump + 1]}` : "";
}

function where(run, probe) {
  const row = run.rows.get(probe);
  const [before, now] = row ? [run.baselineMap(probe, run.last, "callback"), row.map(run.last)] : [];
  if (!before || !now) return "";
  const way = moved(before, now, row.shape);
  if (!way) return "; its map now, or that of its baseline, has no heat to follow";
  if (!way.far) return `; no part of the picture gained ${percent(LEAST)} of its map`;
  return `, to the ${way.gained} (+${percent(way.gain)} of its map) from the ${way.lost} (−${percent(way.loss)})`;
}

function leftOut(run) {
  return Object.entries(run.leftOut).map(([reason, count]) =>
    element("span", { class: "quiet", text: ` Looks that are not shown: ${count} that ${reason}.` }),
  );
}
