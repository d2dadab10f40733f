/** Probes down, looks across; only what is in sight is in the page. */

import { element } from "./dom.js";
import { GridRow, SIZE } from "./row.js";

const NO_HIT = "No probe has all the words of the filter in its name or prompt.";
const NO_PAIR = "The two runs have no probe in common.";
const AHEAD = 12; // rows that are asked for before they come into sight

export class Grid {
  /**
   * @param {import("./board.js").Board} board
   * @param {(row: number, column: number) => void} open
   */
  constructor(board, open) {
    this.board = board;
    this.open = open;
    this.live = new Map(); // rows in sight, by number
    this.heads = new Map(); // column heads in sight
    this.corner = element("div", { class: "corner", role: "columnheader" });
    this.head = element("div", { class: "head", role: "row", "aria-rowindex": 1 }, this.corner);
    this.body = element("div", { class: "body", role: "presentation" });
    this.marker = element("div", { class: "marker" });
    this.node = element(
      "div",
      {
        class: "grid",
        role: "grid",
        tabIndex: 0,
        "aria-label": "Maps of all probes at all looks",
        on: { scroll: () => this.#soon() },
      },
      this.head,
      this.body,
    );
    for (const [name, length] of Object.entries(SIZE)) this.node.style.setProperty(`--${name}`, `${length}px`);
    this.node.addEventListener("keydown", (event) => this.#key(event));
    this.selected = 0; // row with the keyboard's cell
    new ResizeObserver(() => this.#soon()).observe(this.node);
  }

  get count() {
    return this.board.probes.length * this.board.runs.length;
  }

  /** Build anew: other runs, probes or looks. */
  reset() {
    const hadFocus = this.body.contains(document.activeElement);
    for (const row of this.live.values()) row.remove();
    for (const head of this.heads.values()) head.remove();
    this.live.clear();
    this.heads.clear();
    const { columns } = this.board;
    this.body.replaceChildren(...(this.count ? [this.marker] : [this.#nothing()]));
    this.body.style.height = this.count ? `${this.count * SIZE.row}px` : "";
    for (const part of [this.head, this.body]) part.style.width = `${SIZE.side + columns.length * SIZE.cell}px`;
    this.node.setAttribute("aria-rowcount", this.count + 1);
    this.node.setAttribute("aria-colcount", columns.length + 1);
    this.selected = Math.min(this.selected, Math.max(0, this.count - 1));
    this.update(true);
    if (hadFocus) this.#focus();
  }

  #nothing() {
    return element("p", { class: "message nothing", role: "status", text: this.board.matched ? NO_HIT : NO_PAIR });
  }

  #soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.update(false);
    });
  }

  /** Show what is in sight, painting what is new, or all. */
  update(all) {
    const { clientWidth, clientHeight, scrollLeft, scrollTop } = this.node;
    if (!clientWidth || !this.board.columns.length) return; // another tab is shown
    const first = Math.max(0, Math.floor(scrollTop / SIZE.row) - 1);
    const last = Math.min(this.count - 1, Math.floor((scrollTop + clientHeight - SIZE.head) / SIZE.row) + 1);
    const from = Math.max(0, Math.floor(scrollLeft / SIZE.cell) - 1);
    const to = Math.min(
      this.board.columns.length - 1,
      Math.floor((scrollLeft + clientWidth - SIZE.side) / SIZE.cell) + 1,
    );
    const hadFocus = this.body.contains(document.activeElement);
    this.#ask(first, last);
    this.#updateHead(from, to);
    for (const [number, row] of this.live) {
      if (number < first || number > last) {
        row.remove();
        this.live.delete(number);
      }
    }
    for (let number = first; number <= last; number++) {
      if (!this.live.has(number)) {
        const row = new GridRow(this.board, number, (column) => this.#openAt(number, column));
        this.live.set(number, row);
        this.body.append(row.node);
      }
      this.live.get(number).update(from, to, all);
    }
    if (hadFocus && !this.body.contains(document.activeElement)) this.node.focus({ preventScroll: true });
    this.marker.style.left = `${SIZE.side + this.board.now * SIZE.cell}px`;
  }

  /** Have the rows in sight come, and then those around them. */
  #ask(first, last) {
    const { probes, runs } = this.board;
    const [top, bottom] = [first, last].map((number) => Math.floor(number / runs.length));
    const large = this.board.open;
    runs.forEach((run, side) => {
      const visible = [...(large ? [large] : []), ...probes.slice(top, bottom + 1)];
      const near = [...probes.slice(bottom + 1, bottom + 1 + AHEAD), ...probes.slice(Math.max(0, top - AHEAD), top)];
      run.want(...[visible, near].map((pairs) => pairs.map((pair) => pair[side])));
    });
  }

  #updateHead(from, to) {
    const { board } = this;
    this.corner.textContent = `${board.inWords} · shown: ${board.title(board.now)}`;
    for (const [column, head] of this.heads) {
      if (column < from || column > to) {
        head.remove();
        this.heads.delete(column);
      }
    }
    for (let column = from; column <= to; column++) {
      if (!this.heads.has(column)) this.heads.set(column, this.#columnHead(column));
      this.heads.get(column).classList.toggle("now", column === board.now);
    }
  }

  #columnHead(column) {
    const { board } = this;
    const [step, epoch] = board.title(column).split(", ");
    const alarmed = board.alarmed(column);
    const head = element(
      "button",
      {
        class: "column",
        role: "columnheader",
        tabIndex: -1,
        title: alarmed ? "At this look the callback raised an alarm." : "",
        "aria-label": `${board.title(column)}${alarmed ? ", alarm" : ""}`,
        "aria-colindex": column + 2,
        on: { click: () => board.go(column) },
      },
      element("span", { class: alarmed ? "step alarm" : "step", text: step }),
      element("span", { class: "epoch", text: epoch }),
    );
    head.style.left = `${SIZE.side + column * SIZE.cell}px`;
    this.head.append(head);
    return head;
  }

  /** Go along to the look that is shown now, with the keyboard if it is here. */
  follow() {
    const hadFocus = this.body.contains(document.activeElement);
    this.reveal();
    this.update(false);
    if (hadFocus) this.#focus();
  }

  #focus() {
    this.live.get(this.selected)?.cells.get(this.board.now)?.focus({ preventScroll: true });
  }

  /** Bring the look that is shown now into sight. */
  reveal() {
    const left = this.board.now * SIZE.cell;
    const room = this.node.clientWidth - SIZE.side;
    const { scrollLeft } = this.node;
    if (left < scrollLeft) this.node.scrollLeft = left;
    else if (left + SIZE.cell > scrollLeft + room) this.node.scrollLeft = left + SIZE.cell - room;
  }

  /** As a click does: the keyboard goes on from there. */
  #openAt(row, column) {
    this.selected = row;
    this.open(row, column);
  }

  #key(event) {
    const by = { ArrowUp: -1, ArrowDown: 1, PageUp: -5, PageDown: 5, Home: -Infinity, End: Infinity }[event.key];
    if (event.target.closest("button")) return;
    if (event.key === "Enter" && this.count) this.open(this.selected, this.board.now);
    else if (by !== undefined && this.count) this.select(Math.max(0, Math.min(this.count - 1, this.selected + by)));
    else return;
    event.preventDefault();
  }

  /** Move the keyboard's cell to a row, at the look that is shown now. */
  select(number) {
    this.selected = number;
    const top = number * SIZE.row;
    const room = this.node.clientHeight - SIZE.head;
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    else if (top + SIZE.row > this.node.scrollTop + room) this.node.scrollTop = top + SIZE.row - room;
    this.reveal();
    this.update(false);
    this.#focus();
  }
}
