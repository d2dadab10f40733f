/** The run in a sentence: which probe moved most, when, and where to. */

import { element } from "./dom.js";
import { moved, percent } from "./places.js";
import { badge, figure } from "./row.js";

/** @returns {Node[]} one line a run */
export function headline(runs) {
  return runs.map((run, side) => {
    return element("p", {}, ...badge(runs, side), ...verdict(run), ...most(run), ...leftOut(run));
  });
}

function verdict(run) {
  const { steps, alarmed, last } = run;
  const count = run.names.filter((_, probe) => run.alarm(probe, last) > 0).length;
  const breaking = count ? `${count} of ${run.names.length} probes break the rule` : "no probe breaks the rule";
  if (alarmed[last]) {
    const since = alarmed.lastIndexOf(0) + 1;
    return [element("strong", { class: "alarm", text: `Alarm since step ${steps[since]}` }), `: ${breaking}. `];
  }
  const earlier = alarmed.indexOf(1);
  const before = earlier < 0 ? "" : `, but there was one at step ${steps[earlier]}`;
  return [element("strong", { text: `No alarm at the last look${before}` }), `: ${breaking}. `];
}

function most(run) {
  const { last, names, steps } = run;
  const known = names.map((_, probe) => probe).filter((probe) => !Number.isNaN(run.drift(probe, last)));
  if (!known.length || run.baseline[last] === last) return ["There is nothing to compare yet."];
  const probe = known.reduce((worst, other) => (run.drift(other, last) > run.drift(worst, last) ? other : worst));
  const drift = steps.map((_, look) => run.drift(probe, look));
  const rises = drift.slice(1).map((value, look) => value - drift[look]);
  const jump = 1 + rises.indexOf(Math.max(...rises.filter((rise) => !Number.isNaN(rise))));
  const when = jump ? `, most of it between steps ${steps[jump - 1]} and ${steps[jump]}` : "";
  return [
    element("strong", {}, element("bdi", { text: names[probe] })), // a name may turn the direction of what follows
    ` moved most: drift ${figure(drift[last])}${when}${where(run, probe)}.`,
  ];
}

function where(run, probe) {
  const row = run.rows.get(probe);
  const [before, now] = row ? [run.baselineMap(probe, run.last, "callback"), row.map(run.last)] : [];
  const way = before && now ? moved(before, now, row.shape) : null;
  if (!way?.far) return "";
  return `, to the ${way.gained} (+${percent(way.gain)} of its map) from the ${way.lost} (−${percent(way.loss)})`;
}

function leftOut(run) {
  return Object.entries(run.leftOut).map(([reason, count]) =>
    element("span", { class: "quiet", text: ` ${count} looks are not shown: they ${reason}.` }),
  );
}
