/** The user's choices: kept in the address and, for an address without any, in the browser's storage. */

import { LARGEST, SMALLEST } from "./size.js";

export const LAST = "last";
export const SPEEDS = ["0.5", "1", "2", "4"];

/** @typedef {{-readonly [Key in keyof typeof DEFAULTS]: string}} Choices */

export const DEFAULTS = Object.freeze({
  run: "", // key of a source
  compare: "", // key of a second source; empty for none
  view: "overlay",
  opacity: "0.85",
  colors: "inferno",
  baseline: "callback", // or "previous", or a step
  scale: "map", // or "probe"
  size: "fit", // of the tiles: to fill the width, or CSS pixels
  speed: "1", // of the player, in units of its usual speed
  sort: "flagged",
  filter: "",
  evaluation: LAST, // or a step
  open: "", // name of the probe in the large view
});

/** The other choices depend on the runs.
 *
 * @type {Partial<Record<keyof Choices, (value: string) => boolean>>}
 */
const IS_VALID = {
  view: (value) => ["overlay", "heat", "change", "input"].includes(value),
  opacity: (value) => Number(value) >= 0 && Number(value) <= 1,
  baseline: (value) => /^(callback|previous|\d+)$/.test(value),
  scale: (value) => ["map", "probe"].includes(value),
  size: (value) => value === "fit" || (/^\d+$/.test(value) && SMALLEST <= Number(value) && Number(value) <= LARGEST),
  speed: (value) => SPEEDS.includes(value),
  sort: (value) => ["flagged", "drift", "similarity", "name"].includes(value),
};
const NOT_STORED = new Set(["run", "compare"]); // for an address that names none, the page chooses a run with an alarm
const DELAY = 200; // milliseconds; browsers refuse an address that changes with each move of a slider

/**
 * @typedef {Object} Store
 * @property {() => Record<string, unknown>} read
 * @property {(values: Record<string, string>) => void} write
 */

export class State {
  /**
   * @param {Store & {listen: (listener: () => void) => void}} address
   * @param {Store} storage
   */
  constructor(address, storage) {
    this.address = address;
    this.storage = storage;
    /** @type {((changed: Set<keyof Choices>) => void)[]} */
    this.listeners = [];
    /** @type {ReturnType<typeof setTimeout> | null} */
    this.timer = null;
    /** @type {Choices} */
    this.values = { ...DEFAULTS, ...(this.#addressed() ?? validChoices(storage.read())) };
    address.listen(() => {
      const addressed = this.#addressed();
      if (addressed) this.set({ ...DEFAULTS, ...addressed });
    });
  }

  /** Call `listener` with the changed keys after each change.
   *
   * @param {(changed: Set<keyof Choices>) => void} listener
   */
  listen(listener) {
    this.listeners.push(listener);
  }

  /** Change values and call the listeners.
   *
   * @param {Partial<Record<keyof Choices, string | number>>} patch
   */
  set(patch) {
    const keys = /** @type {(keyof Choices)[]} */ (Object.keys(patch));
    const changed = keys.filter((key) => this.values[key] !== String(patch[key]));
    if (!changed.length) return;
    this.adopt(Object.fromEntries(changed.map((key) => [key, String(patch[key])])));
    for (const listener of this.listeners) listener(new Set(changed));
  }

  /** Change values that the page found and the user did not choose: the listeners are not called.
   *
   * @param {Partial<Choices>} patch
   */
  adopt(patch) {
    Object.assign(this.values, patch);
    this.timer ??= setTimeout(() => this.#keep(), DELAY);
  }

  #keep() {
    this.timer = null;
    const entries = /** @type {[keyof Choices, string][]} */ (Object.entries(this.values));
    const chosen = Object.fromEntries(entries.filter(([key, value]) => value !== DEFAULTS[key]));
    this.address.write(chosen);
    this.storage.write(Object.fromEntries(Object.entries(chosen).filter(([key]) => !NOT_STORED.has(key))));
  }

  /** The choices in the address; null if there are none. A link shows what its sender saw, whatever is stored here. */
  #addressed() {
    const choices = validChoices(this.address.read());
    return Object.keys(choices).length ? choices : null;
  }
}

/** Keep the values that can be chosen.
 *
 * @param {Record<string, unknown>} values
 * @returns {Partial<Choices>}
 */
export function validChoices(values) {
  return Object.fromEntries(
    Object.entries(values).filter(([key, value]) => {
      if (!Object.hasOwn(DEFAULTS, key) || typeof value !== "string") return false;
      return IS_VALID[/** @type {keyof Choices} */ (key)]?.(value) ?? true;
    }),
  );
}
