/** What the user has chosen: kept in the address bar and, for one that says nothing, in this browser. */

import { addressBar } from "./host.js";

export const LAST = "last";
export const DEFAULTS = {
  run: "", // key of a run, see keyOf
  beside: "", // of a second one, or none
  view: "overlay", // overlay, heat, change, input
  opacity: "0.85",
  colors: "inferno",
  baseline: "callback", // callback, previous, or a step
  scale: "map", // map, probe
  sort: "drift", // drift, name, similarity
  filter: "",
  look: LAST, // a step, or the newest
  open: "", // name of the probe that is shown large
};
const SOUND = {
  view: (value) => ["overlay", "heat", "change", "input"].includes(value),
  opacity: (value) => value >= 0 && value <= 1,
  baseline: (value) => /^(callback|previous|\d+)$/.test(value),
  scale: (value) => ["map", "probe"].includes(value),
  sort: (value) => ["drift", "name", "similarity"].includes(value),
}; // what else can be chosen depends on the runs
const QUIET = 200; // milliseconds; browsers refuse an address that changes with each move of a slider
const KEPT = `clipcam ${new URL("..", location.href).pathname}`;

export class State {
  constructor() {
    this.listeners = [];
    this.values = { ...DEFAULTS, ...(addressed() ?? known(stored())) };
    addressBar.listen(() => addressed() && this.set({ ...DEFAULTS, ...addressed() }));
  }

  /** Take over what was found out, not chosen: nobody is told. */
  adopt(patch) {
    Object.assign(this.values, patch);
    this.timer ??= setTimeout(() => this.#keep(), QUIET);
  }

  /** Call `listener(changed keys)` after each change. */
  listen(listener) {
    this.listeners.push(listener);
  }

  set(patch) {
    const changed = Object.keys(patch).filter((key) => this.values[key] !== String(patch[key]));
    if (!changed.length) return;
    for (const key of changed) this.values[key] = String(patch[key]);
    this.timer ??= setTimeout(() => this.#keep(), QUIET);
    for (const listener of this.listeners) listener(new Set(changed));
  }

  #keep() {
    this.timer = null;
    const chosen = Object.fromEntries(Object.entries(this.values).filter(([key, value]) => value !== DEFAULTS[key]));
    addressBar.write(chosen);
    store(chosen);
  }
}

/** What the address says, if it says anything: a link shows what its sender saw. */
function addressed() {
  const told = known(addressBar.read());
  return Object.keys(told).length ? told : null;
}

/** Of what an address or this browser says all that can be chosen. */
function known(values) {
  const sound = ([key, value]) =>
    Object.hasOwn(DEFAULTS, key) && typeof value === "string" && (SOUND[key]?.(value) ?? true);
  return Object.fromEntries(Object.entries(values).filter(sound));
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEPT)) ?? {};
  } catch {
    return {}; // storage is switched off, or holds something else
  }
}

function store(values) {
  try {
    localStorage.setItem(KEPT, JSON.stringify(values));
  } catch {
    // then the choice lasts as long as the page
  }
}
