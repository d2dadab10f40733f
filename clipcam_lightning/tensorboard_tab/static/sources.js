/** Which runs there are and which are shown. A source is one callback in one run. */

/** @typedef {import("./wire.js").Source} Source */

/** The key of a source in the address.
 *
 * @param {{run: string, root: string}} source
 */
export function keyOf({ run, root }) {
  return `${root}@${run}`;
}

/** The name of a source on the page.
 *
 * @param {{run: string, root: string}} source
 */
export function nameOf({ run, root }) {
  return root === "clipcam" ? run : `${run} · ${root.replace(/^clipcam_/, "")}`;
}

/** Choose what to show: the sources in the address or else the newest with an alarm, or the newest that can be shown.
 *
 * @param {Source[]} sources at least one
 * @param {{run: string, compare: string}} choices keys, or empty
 * @returns {{chosen: Source[], absent: string}} one source, or two to compare, and the name of a chosen run that does
 *     not exist
 */
export function chooseSources(sources, { run, compare }) {
  /** @param {string} key */
  const find = (key) => sources.find((source) => keyOf(source) === key);
  const valid = sources.filter(({ problem }) => !problem);
  const alarming = valid.filter(({ alarm }) => alarm);
  const [candidates] = [alarming, valid, sources].filter((each) => each.length);
  const newest = candidates.reduce((a, b) => (b.wall_time > a.wall_time ? b : a));
  const first = find(run) ?? newest;
  const second = find(compare);
  return {
    chosen: second && second !== first ? [first, second] : [first],
    absent: find(run) ? "" : run.replace(/^[^@]*@/, ""), // without the root
  };
}
