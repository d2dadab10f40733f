/** The TensorBoard around the page, which is a frame in it. */

const PREFIX = "p.clipcam.";

/** Call `listener` whenever TensorBoard has read the log directory again. */
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

/** Follow TensorBoard's dark mode or, where its page cannot be seen, the system's. */
export function followDarkMode() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let body = null;
  try {
    body = window.parent === window ? null : window.parent.document.body;
  } catch {
    // a page of another origin has embedded TensorBoard
  }
  const follow = () => {
    document.documentElement.dataset.theme = (body ? body.classList.contains("dark-mode") : dark.matches)
      ? "dark"
      : "light";
  };
  if (body) new MutationObserver(follow).observe(body, { attributes: true, attributeFilter: ["class"] });
  dark.addEventListener("change", follow);
  follow();
}

/** Let keys reach the page at once, unless something in TensorBoard has them. */
export function takeKeyboard() {
  try {
    const { activeElement, body } = window.parent.document;
    if (activeElement === body || !activeElement.matches(":focus-visible")) window.focus(); // a click on a tab leaves it
  } catch {
    // a page of another origin has embedded TensorBoard
  }
}

/** Call `listener` when the page is zoomed or moves to another screen. */
export function onResolutionChange(listener) {
  let ratio = devicePixelRatio;
  const changed = () => {
    if (devicePixelRatio === ratio) return;
    ratio = devicePixelRatio;
    follow();
    listener();
  };
  const follow = () => window.matchMedia(`(resolution: ${ratio}dppx)`).addEventListener("change", changed);
  window.addEventListener("resize", changed); // in a frame not every browser tells the former
  follow();
}

/** The part of TensorBoard's address that is ours: `#clipcam&p.clipcam.view=heat`. */
export const addressBar = {
  read() {
    try {
      const parts = window.parent.location.hash.slice(1).split("&").slice(1);
      const pairs = [...new URLSearchParams(parts.join("&"))].filter(([key]) => key.startsWith(PREFIX));
      return Object.fromEntries(pairs.map(([key, value]) => [key.slice(PREFIX.length), value]));
    } catch {
      return {};
    }
  },

  /** Call `listener` when another address is opened in the same window. */
  listen(listener) {
    try {
      window.parent.addEventListener("hashchange", listener);
    } catch {
      // then a link takes a window of its own
    }
  },

  write(values) {
    try {
      const { history, location } = window.parent;
      const [tab, ...parts] = location.hash.slice(1).split("&");
      if (tab !== "clipcam") return; // another tab has the address bar
      const others = parts.filter((part) => !part.startsWith(PREFIX));
      const ours = Object.entries(values).map(([key, value]) => `${PREFIX}${key}=${encodeURIComponent(value)}`);
      history.replaceState(history.state, "", `#${[tab, ...others, ...ours].join("&")}`);
    } catch {
      // not allowed here
    }
  },
};
