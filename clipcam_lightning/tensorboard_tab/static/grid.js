/** Probes down, evaluations across; the page holds only what is in sight. */

import { element } from "./dom.js";
import { GridRow } from "./grid_row.js";
import { SIZE } from "./size.js";

const NO_HIT = "No probe has all the words of the filter in its name or prompt.";
const NO_PAIR = "The two runs have no probe in common.";
const AHEAD = 12; // rows that are requested before they come into sight

/** Movement of the keyboard's cell, in rows.
 *
 * @type {Record<string, number | undefined>}
 */
const KEYS = { ArrowUp: -1, ArrowDown: 1, PageUp: -5, PageDown: 5, Home: -Infinity, End: Infinity };

export class Grid {
  /**
   * @param {import("./board.js").Board} board
   * @param {(row: number, column: number) => void} open
   */
  constructor(board, open) {
    this.board = board;
    this.open = open;
    /** @type {Map<number, GridRow>} rows in sight, by number */
    this.rows = new Map();
    /** @type {Map<number, HTMLElement>} column heads in sight */
    this.heads = new Map();
    this.counter = element("span", { class: "count" });
    this.shown = element("span", { class: "pinned" });
    const baseline = element("span", { class: "pinned" }, element("span", { text: "baseline" }));
    this.corner = element("div", { class: "corner", role: "columnheader" }, this.counter, baseline, this.shown);
    this.head = element("div", { class: "head", role: "row", "aria-rowindex": 1 }, this.corner);
    this.body = element("div", { class: "body", role: "presentation" });
    this.marker = element("div", { class: "marker" });
    this.node = element(
      "div",
      {
        class: "grid",
        role: "grid",
        tabIndex: 0,
        "aria-label": "Maps of all probes at all evaluations",
        on: { scroll: () => this.#schedule(), keydown: (event) => this.#key(event) },
      },
      this.head,
      this.body,
    );
    this.#setLengths();
    this.selected = 0; // row of the keyboard's cell
    this.isScheduled = false;
    this.onResize = () => {};
    new ResizeObserver(() => {
      this.onResize();
      this.#schedule();
    }).observe(this.node);
  }

  /** Change the lengths of the grid; what is in sight stays there.
   *
   * @param {{tile: number, about: number}} lengths
   */
  resize(lengths) {
    const { node } = this;
    const [row, column] = [node.scrollTop / SIZE.row, node.scrollLeft / SIZE.cell];
    Object.assign(SIZE, lengths);
    this.#setLengths();
    this.reset();
    node.scrollTo(column * SIZE.cell, row * SIZE.row);
  }

  #setLengths() {
    for (const [name, length] of Object.entries(SIZE)) this.node.style.setProperty(`--${name}`, `${length}px`);
    this.node.style.setProperty("--lines", String(1 + Math.floor((SIZE.row - 132) / 36)));
  }

  /** Number of rows. */
  get count() {
    return this.board.probes.length * this.board.runs.length;
  }

  /** Build the grid again for other runs, probes or evaluations. */
  reset() {
    const hadFocus = this.#hasFocus();
    for (const row of this.rows.values()) row.remove();
    for (const head of this.heads.values()) head.remove();
    this.rows.clear();
    this.heads.clear();
    const { columns } = this.board;
    this.body.replaceChildren(this.count ? this.marker : this.#message());
    this.body.style.height = this.count ? `${this.count * SIZE.row}px` : "";
    for (const part of [this.head, this.body]) part.style.width = `${SIZE.side + columns.length * SIZE.cell}px`;
    this.node.setAttribute("aria-rowcount", String(this.count + 1));
    this.node.setAttribute("aria-colcount", String(columns.length + 1));
    this.selected = Math.min(this.selected, Math.max(0, this.count - 1));
    this.update(true);
    if (hadFocus) this.#focus();
  }

  #message() {
    const text = this.board.matched ? NO_HIT : NO_PAIR;
    const cell = element("span", { role: "gridcell", text });
    return element("div", { class: "message nothing", role: "row", "aria-live": "polite" }, cell);
  }

  #schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      this.update(false);
    });
  }

  /** Show what is in sight.
   *
   * @param {boolean} repaint whether to paint all, and not only what is new
   */
  update(repaint) {
    const { clientWidth, clientHeight, scrollLeft, scrollTop } = this.node;
    const { columns } = this.board;
    if (!clientWidth || !columns.length) return; // another tab is shown
    const [first, last] = rangeInSight(scrollTop, clientHeight - SIZE.head, SIZE.row, this.count);
    const [from, to] = rangeInSight(scrollLeft, clientWidth - SIZE.side, SIZE.cell, columns.length);
    const hadFocus = this.#hasFocus();
    this.#requestRows(first, last);
    this.#updateHead(from, to);
    for (const [number, row] of this.rows) {
      if (number < first || number > last) {
        row.remove();
        this.rows.delete(number);
      }
    }
    for (let number = first; number <= last; number++) {
      const row = this.rows.get(number) ?? this.#addRow(number);
      row.update(from, to, repaint);
    }
    if (hadFocus && !this.#hasFocus()) this.node.focus({ preventScroll: true });
    this.marker.style.left = `${SIZE.side + this.board.current * SIZE.cell}px`;
  }

  /** @param {number} number */
  #addRow(number) {
    const row = new GridRow(this.board, number, (column) => {
      this.selected = number; // as if the keyboard had moved there
      this.open(number, column);
    });
    this.rows.set(number, row);
    this.body.append(row.node);
    return row;
  }

  /** Request the rows in sight, and then those around them.
   *
   * @param {number} first
   * @param {number} last
   */
  #requestRows(first, last) {
    const { probes, runs, open } = this.board;
    const [top, bottom] = [first, last].map((number) => Math.floor(number / runs.length));
    const visible = [...(open ? [open] : []), ...probes.slice(top, bottom + 1)];
    const near = [...probes.slice(bottom + 1, bottom + 1 + AHEAD), ...probes.slice(Math.max(0, top - AHEAD), top)];
    for (const [side, run] of runs.entries()) {
      run.want(
        visible.map((indices) => indices[side]),
        near.map((indices) => indices[side]),
      );
    }
  }

  /**
   * @param {number} from
   * @param {number} to
   */
  #updateHead(from, to) {
    const { board } = this;
    const [step, epoch] = board.title(board.current).split(", ");
    this.counter.textContent = board.countText;
    this.shown.replaceChildren(
      element("span", { text: step }),
      element("span", { class: "epoch", text: `${epoch}, shown` }),
    );
    for (const [column, head] of this.heads) {
      if (column < from || column > to) {
        head.remove();
        this.heads.delete(column);
      }
    }
    for (let column = from; column <= to; column++) {
      const head = this.heads.get(column) ?? this.#addHead(column);
      head.classList.toggle("now", column === board.current);
    }
  }

  /** @param {number} column */
  #addHead(column) {
    const { board } = this;
    const [step, epoch] = board.title(column).split(", ");
    const hasAlarm = board.hasAlarm(column);
    const head = element(
      "button",
      {
        class: "column",
        role: "columnheader",
        tabIndex: -1,
        title: hasAlarm ? "The callback raised an alarm at this evaluation." : "",
        "aria-label": `${board.title(column)}${hasAlarm ? ", alarm" : ""}`,
        "aria-colindex": column + 2,
        on: { click: () => board.go(column) },
      },
      element("span", { class: hasAlarm ? "step alarm" : "step", text: step }),
      element("span", { class: "epoch", text: epoch }),
    );
    head.style.left = `${SIZE.side + column * SIZE.cell}px`;
    this.heads.set(column, head);
    this.head.append(head);
    return head;
  }

  /** Follow to the current evaluation, with the keyboard's cell if it has the focus. */
  follow() {
    const hadFocus = this.#hasFocus();
    this.reveal();
    this.update(false);
    if (hadFocus) this.#focus();
  }

  #hasFocus() {
    return this.body.contains(document.activeElement);
  }

  #focus() {
    this.rows.get(this.selected)?.cells.get(this.board.current)?.focus({ preventScroll: true });
  }

  /** Scroll the current evaluation into sight. */
  reveal() {
    const { node, board } = this;
    node.scrollLeft = scrollIntoSight(
      node.scrollLeft,
      node.clientWidth - SIZE.side,
      board.current * SIZE.cell,
      SIZE.cell,
    );
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const by = KEYS[event.key];
    if (!this.count || /** @type {Element} */ (event.target).closest("button")) return;
    if (event.key === "Enter") this.open(this.selected, this.board.current);
    else if (by !== undefined) this.#select(Math.max(0, Math.min(this.count - 1, this.selected + by)));
    else return;
    event.preventDefault();
  }

  /** Move the keyboard's cell to a row, at the current evaluation.
   *
   * @param {number} number
   */
  #select(number) {
    const { node } = this;
    this.selected = number;
    node.scrollTop = scrollIntoSight(node.scrollTop, node.clientHeight - SIZE.head, number * SIZE.row, SIZE.row);
    this.reveal();
    this.update(false);
    this.#focus();
  }
}

/** First and last of `count` items that are in sight, and one more on either side.
 *
 * @param {number} scroll pixels that are scrolled over
 * @param {number} room pixels in sight
 * @param {number} size of an item, in pixels
 * @param {number} count
 * @returns {[number, number]}
 */
export function rangeInSight(scroll, room, size, count) {
  return [Math.max(0, Math.floor(scroll / size) - 1), Math.min(count - 1, Math.floor((scroll + room) / size) + 1)];
}

/** Scroll position nearest to `scroll` that has an item in sight.
 *
 * @param {number} scroll pixels that are scrolled over
 * @param {number} room pixels in sight
 * @param {number} start of the item, in pixels
 * @param {number} size of the item, in pixels
 */
export function scrollIntoSight(scroll, room, start, size) {
  if (start < scroll) return start;
  return Math.max(scroll, start + size - room);
}
