/** The views of a map, as a group of radio buttons. */

import { element } from "./dom.js";

export const VIEWS = [
  ["overlay", "Overlay"],
  ["heat", "Heat"],
  ["change", "Change"],
  ["input", "Input"],
];

/** Movement of the arrow keys in the group.
 *
 * @type {Record<string, number | undefined>}
 */
const KEYS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

/** Make a group of radio buttons: one stop of the tab key; the arrows move within it.
 *
 * @param {(value: string, text: string) => Node[]} content of each button
 * @param {(value: string) => void} choose
 */
export function viewGroup(content, choose) {
  const buttons = VIEWS.map(([value, text]) => {
    const button = element("button", { value, role: "radio" }, ...content(value, text));
    button.addEventListener("click", ({ detail }) => {
      if (detail) button.blur(); // a click of the mouse leaves the keys to the player
      choose(value);
    });
    return button;
  });
  const node = element("span", { class: "views", role: "radiogroup", "aria-label": "View" }, ...buttons);
  node.addEventListener("keydown", (event) => {
    const by = KEYS[event.key];
    if (by === undefined) return;
    const at = buttons.findIndex((button) => button === document.activeElement);
    const next = buttons[(at + by + buttons.length) % buttons.length];
    next.focus();
    next.click();
    event.preventDefault();
  });
  return node;
}

/** Check the button of a view.
 *
 * @param {HTMLElement} group
 * @param {string} view
 */
export function checkView(group, view) {
  for (const button of group.querySelectorAll("button")) {
    const isChosen = button.value === view;
    button.setAttribute("aria-checked", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1;
  }
}
