/** The TensorBoard around the page, which is a frame in it, and the browser. */

const PREFIX = "p.clipcam.";

/** Call `listener` whenever TensorBoard has read the log directory again.
 *
 * @param {() => void} listener
 */
export function onDataReloaded(listener) {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.isReply) return;
    if (message.type === "experimental.DataReloaded") listener();
    port1.postMessage(JSON.stringify({ ...message, payload: null, error: null, isReply: true }));
  };
  window.parent.postMessage("experimental.bootstrap", "*", [port2]);
}

/** Follow TensorBoard's dark mode or, if its page is of another origin, the system's. */
export function followDarkMode() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  /** @type {HTMLElement | null} */
  let body = null;
  try {
    body = window.parent === window ? null : window.parent.document.body;
  } catch {
    // A page of another origin embeds TensorBoard.
  }
  const follow = () => {
    const isDark = body ? body.classList.contains("dark-mode") : dark.matches;
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
  };
  if (body) new MutationObserver(follow).observe(body, { attributes: true, attributeFilter: ["class"] });
  dark.addEventListener("change", follow);
  follow();
}

/** Move the focus into the page, unless an element of TensorBoard has it visibly. */
export function takeKeyboard() {
  try {
    const { activeElement, body } = window.parent.document;
    // After a click on a tab the focus stays on it, but not visibly.
    if (activeElement === body || !activeElement?.matches(":focus-visible")) window.focus();
  } catch {
    // A page of another origin embeds TensorBoard.
  }
}

/** Call `listener` when the page is zoomed or moves to another screen.
 *
 * @param {() => void} listener
 */
export function onResolutionChange(listener) {
  let ratio = devicePixelRatio;
  const check = () => {
    if (devicePixelRatio === ratio) return;
    ratio = devicePixelRatio;
    follow();
    listener();
  };
  const follow = () => window.matchMedia(`(resolution: ${ratio}dppx)`).addEventListener("change", check);
  window.addEventListener("resize", check); // in a frame some browsers do not fire the event above
  follow();
}

/** Read our part of TensorBoard's address: `#clipcam&p.clipcam.view=heat`.
 *
 * @param {string} hash
 * @returns {Record<string, string>}
 */
export function parseHash(hash) {
  const parts = hash.slice(1).split("&").slice(1);
  const pairs = [...new URLSearchParams(parts.join("&"))].filter(([key]) => key.startsWith(PREFIX));
  return Object.fromEntries(pairs.map(([key, value]) => [key.slice(PREFIX.length), value]));
}

/** Replace our part of TensorBoard's address.
 *
 * @param {string} hash
 * @param {Record<string, string>} values
 * @returns {string | null} null if another tab is shown
 */
export function formatHash(hash, values) {
  const [tab, ...parts] = hash.slice(1).split("&");
  if (tab !== "clipcam") return null;
  const others = parts.filter((part) => !part.startsWith(PREFIX));
  const ours = Object.entries(values).map(([key, value]) => `${PREFIX}${key}=${encodeURIComponent(value)}`);
  return `#${[tab, ...others, ...ours].join("&")}`;
}

/** The address bar of TensorBoard; without effect where a page of another origin embeds it. */
export const addressBar = {
  read() {
    try {
      return parseHash(window.parent.location.hash);
    } catch {
      return {};
    }
  },

  /** Call `listener` when another address is opened in the same window.
   *
   * @param {() => void} listener
   */
  listen(listener) {
    try {
      window.parent.addEventListener("hashchange", listener);
    } catch {
      // No access: see above.
    }
  },

  /** @param {Record<string, string>} values */
  write(values) {
    try {
      const { history, location } = window.parent;
      const hash = formatHash(location.hash, values);
      if (hash !== null) history.replaceState(history.state, "", hash);
    } catch {
      // No access: see above.
    }
  },
};

/** What this browser remembers for this TensorBoard; nothing if its storage is disabled. */
export const browserStorage = {
  /** @returns {Record<string, unknown>} */
  read() {
    try {
      return JSON.parse(localStorage.getItem(storageKey()) ?? "null") ?? {};
    } catch {
      return {};
    }
  },

  /** @param {Record<string, string>} values */
  write(values) {
    try {
      localStorage.setItem(storageKey(), JSON.stringify(values));
    } catch {
      // Then the choice lasts as long as the page.
    }
  },
};

function storageKey() {
  return `clipcam ${new URL("..", location.href).pathname}`;
}
