/** A run in a sentence: whether there is an alarm, which probe moved most, when, and where to. */

import { badge } from "./badge.js";
import { element } from "./dom.js";
import { formatNumber, formatPercent } from "./format.js";
import { MIN_GAIN, findShift } from "./places.js";

/** @typedef {import("./run.js").Run} Run */

const MAX_PROMPT = 80; // characters

/** @param {Run[]} runs
 * @returns {HTMLElement[]} one line per run
 */
export function headline(runs) {
  return runs.map((run, side) => {
    const hasAlarm = run.alarm[run.last] > 0;
    const { name, text } = describeDrift(run);
    return element(
      "p",
      {},
      ...badge(runs, side),
      element("strong", { class: hasAlarm ? "alarm" : "", text: describeAlarm(run) }),
      ": ",
      element("span", { title: `The rule: ${run.rule}.` }, describeFlagged(run), ...namePrompt(run)),
      ". ",
      ...(hasAlarm ? [element("span", { text: describeReason(run) })] : []),
      // Isolated, because a name may change the direction of the text that follows.
      ...(name ? [element("strong", {}, element("bdi", { text: name }))] : []),
      text,
      ...describeLeftOut(run).map((each) => element("span", { class: "quiet", text: each })),
    );
  });
}

/** Since when there is an alarm, or whether there was one.
 *
 * @param {Pick<Run, "alarm" | "last" | "steps">} run
 */
export function describeAlarm({ alarm, last, steps }) {
  if (alarm[last]) return `Alarm since step ${steps[alarm.lastIndexOf(0) + 1]}`;
  const earlier = alarm.indexOf(1);
  return `No alarm at the last evaluation${earlier < 0 ? "" : `, but one at step ${steps[earlier]}`}`;
}

/** Why the last evaluation is an alarm, as a sentence; empty if it is none.
 *
 * @param {Pick<Run, "last" | "reasons">} run
 */
export function describeReason({ last, reasons }) {
  const reason = reasons[last];
  return reason ? `${reason[0].toUpperCase()}${reason.slice(1)}. ` : "";
}

/** How many probes are flagged at the last evaluation.
 *
 * @param {Pick<Run, "names" | "last" | "flagged">} run
 */
export function describeFlagged(run) {
  const count = run.names.filter((_, probe) => run.flagged(probe, run.last)).length;
  if (!count) return "no probe is flagged";
  const probes = run.names.length === 1 ? "probe" : "probes";
  return `${count} of ${run.names.length} ${probes} ${count === 1 ? "is" : "are"} flagged`;
}

/** The prompt that the flagged probes share; undefined if they have several, or none is flagged.
 *
 * @param {Pick<Run, "prompts" | "last" | "flagged">} run
 */
export function findSharedPrompt(run) {
  const prompts = new Set(run.prompts.filter((_, probe) => run.flagged(probe, run.last)));
  return prompts.size === 1 ? [...prompts][0] : undefined;
}

/** @param {Run} run */
function namePrompt(run) {
  const prompt = findSharedPrompt(run);
  if (prompt === undefined) return [];
  const characters = [...prompt];
  const text = characters.length > MAX_PROMPT ? `${characters.slice(0, MAX_PROMPT).join("")}…` : prompt;
  return [", with the prompt ", element("strong", {}, element("bdi", { text, title: prompt }))];
}

/** Which probe moved most, when and where to.
 *
 * @param {Pick<Run, "names" | "last" | "drift" | "steps" | "baselineStep" | "rows" | "baselineMap">} run
 * @returns {{name: string, text: string}} the name of the probe, empty if there is none, and the text after it
 */
export function describeDrift(run) {
  const { last, names } = run;
  const judged = [...names.keys()].filter((probe) => !Number.isNaN(run.drift(probe, last)));
  if (!judged.length) return { name: "", text: "The drift is unknown: no probe has a valid baseline." };
  const probe = judged.reduce((a, b) => (run.drift(b, last) > run.drift(a, last) ? b : a));
  const drift = run.drift(probe, last);
  if (!last && !drift) return { name: "", text: "There is nothing to compare yet." };
  return {
    name: names[probe],
    text: ` moved most: drift ${formatNumber(drift)}${describeTime(run, probe)}${describePlace(run, probe)}.`,
  };
}

/** Between which two evaluations more than half of the drift arose, if all have the same baseline; else empty.
 *
 * @param {Pick<Run, "last" | "drift" | "steps" | "baselineStep">} run
 * @param {number} probe
 */
export function describeTime(run, probe) {
  const { last, steps, baselineStep } = run;
  const rises = steps.slice(1).map((_, i) => run.drift(probe, i + 1) - run.drift(probe, i));
  const largest = rises.reduce((best, rise, i) => (rise > (rises[best] || 0) ? i : best), 0);
  const isLarge = rises[largest] > run.drift(probe, last) / 2;
  const isComparable = baselineStep.every((step) => step === baselineStep[0]);
  return isLarge && isComparable ? `, most of it between steps ${steps[largest]} and ${steps[largest + 1]}` : "";
}

/** Where the map of a probe went; empty if its row has not arrived.
 *
 * @param {Pick<Run, "rows" | "last" | "baselineMap">} run
 * @param {number} probe
 */
export function describePlace(run, probe) {
  const row = run.rows.get(probe);
  const before = run.baselineMap(probe, run.last, "callback");
  const now = row?.map(run.last);
  if (!row || !before || !now) return "";
  const shift = findShift(before, now, row.shape);
  if (!shift) return "; its map or that of its baseline has no positive value";
  if (!shift.isNotable) return `; no part of the image gained ${formatPercent(MIN_GAIN)} of the map`;
  const { gained, gain, lost, loss } = shift;
  return `, to the ${gained} (+${formatPercent(gain)} of the map) from the ${lost} (−${formatPercent(loss)})`;
}

/** Which evaluations are not shown, and why: one sentence per reason.
 *
 * @param {Pick<Run, "leftOut">} run
 */
export function describeLeftOut({ leftOut }) {
  return Object.entries(leftOut).map(
    ([reason, count]) => ` ${count} ${count === 1 ? "evaluation is" : "evaluations are"} not shown: ${reason}.`,
  );
}
