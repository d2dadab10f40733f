/** Elements made of plain text: nothing from a run is ever parsed as HTML. */

/**
 * @typedef {{[Name in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[Name]) => void}} Listeners
 * @typedef {{class?: string, text?: string, on?: Listeners} & Record<string, unknown>} Properties
 */

/** Create an element.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Properties} [properties] properties of the element, `class`, `text`, `on` with event listeners, and
 *     attributes: `role`, `for` and names with a dash
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, { class: className = "", text, on = {}, ...properties } = {}, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  for (const [name, listener] of Object.entries(on)) {
    node.addEventListener(name, /** @type {EventListener} */ (listener));
  }
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, String(value));
    else Object.assign(node, { [name]: value });
  }
  node.append(...children);
  return node;
}

/** The context of a canvas that stays in main memory: many small canvases are slow on a graphics card.
 *
 * @param {HTMLCanvasElement} canvas
 */
export function context(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true }));
}

/** A canvas with an image that needs no words; an empty one without image.
 *
 * @param {ImageData | null | undefined} image
 */
export function canvasOf(image) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  if (image) {
    [canvas.width, canvas.height] = [image.width, image.height];
    context(canvas).putImageData(image, 0, 0);
  }
  return canvas;
}

let controls = 0;

/** Put a label before a control.
 *
 * @param {string} text
 * @param {HTMLElement} control
 */
export function labelled(text, control) {
  control.id ||= `control-${++controls}`;
  return element("span", { class: "control" }, element("label", { text, for: control.id }), control);
}

/** Mark a term whose meaning is shown while the mouse is over it or it has the focus.
 *
 * @param {string} term
 * @param {string} meaning
 */
export function explained(term, meaning) {
  const tip = element("span", { id: `tip-${++controls}`, class: "tip", role: "tooltip", text: meaning });
  return element("span", { class: "explained", tabIndex: 0, "aria-describedby": tip.id }, term, tip);
}

/** Set the options of a `<select>` and choose one, the first if the chosen one is missing. Equal options stay as they
 * are, so that an open list does not close.
 *
 * @param {HTMLSelectElement} select
 * @param {string[][]} options each `[value, text]`
 * @param {string} chosen
 */
export function setOptions(select, options, chosen) {
  const present = [...select.options].map((option) => [option.value, option.textContent]);
  if (JSON.stringify(present) !== JSON.stringify(options)) {
    select.replaceChildren(...options.map(([value, text]) => element("option", { value, text })));
  }
  select.value = chosen;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}
