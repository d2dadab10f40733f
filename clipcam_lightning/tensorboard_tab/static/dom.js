/** Elements made of plain text: nothing a run says is ever parsed as HTML. */

/**
 * @param {string} tag
 * @param {Object} properties of the element; `class`, `text`, `on` (event listeners) and what has a dash are set as such.
 * @param {...(Node|string)} children
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name === "on")
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** The pixels of a canvas, kept where the processor writes them: there are too many small ones for a graphics card. */
export const context = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

let numbers = 0;

/** A control with its label before it. */
export function labelled(text, control, properties = {}) {
  control.id ||= `control-${++numbers}`;
  return element("span", { class: "control", ...properties }, element("label", { text, for: control.id }), control);
}

/** Replace the options of a `<select>`, each `[value, text]`, and choose one, the first if there is no such; nothing is
 * touched if nothing changed.
 */
export function setOptions(select, options, chosen) {
  const known = [...select.options].map((option) => [option.value, option.textContent]);
  if (JSON.stringify(known) !== JSON.stringify(options.map(([value, text]) => [String(value), text]))) {
    select.replaceChildren(...options.map(([value, text]) => element("option", { value, text })));
  }
  select.value = chosen;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
}
