"""Drive the page of the CLIP CAM tab as a user does. No other test code depends on how the page is built."""

import base64
import io
import re
from types import TracebackType
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Frame, Locator, Page, Request, expect

Pixels = UInt8[np.ndarray, "y x 4"]
MAPS = "Maps of all probes at all evaluations"
EXPECTED = re.compile("Multiple instances of Three.js|/font-roboto/")  # of TensorBoard itself
READY = """() => !document.querySelector('.waiting') && (
    document.querySelector('[role=gridcell]') || document.querySelector('.message:not([hidden])')?.textContent
)"""
# The pixels of a canvas, or the part of a row's canvas that lies behind a cell's frame.
PIXELS = """node => {
    if (!node.isConnected) return null;
    if (node.matches('canvas')) return node.toDataURL('image/png');
    const frame = node.querySelector('.frame').getBoundingClientRect();
    const strip = node.querySelector('canvas') ?? node.closest('[role=row]').querySelector(':scope > canvas');
    const { left, top } = strip.getBoundingClientRect();
    const [x, y, width, height] = [frame.left - left, frame.top - top, frame.width, frame.height].map(
        length => Math.round(length * devicePixelRatio));
    const cut = document.createElement('canvas');
    [cut.width, cut.height] = [width, height];
    cut.getContext('2d').drawImage(strip, -x, -y);
    return cut.toDataURL('image/png');
}"""
TIMEOUT = 30_000  # milliseconds, on a busy machine
expect.set_options(timeout=TIMEOUT)


class Tab:
    """A browser window with TensorBoard, in which the CLIP CAM tab is open.

    Args:
        browser: opens the window, with empty storage.
        board: address of TensorBoard.
        options: of the window.
    """

    def __init__(self, browser: Browser, board: str, **options: Any) -> None:
        self.board = board
        self.context = browser.new_context(**{"viewport": {"width": 1500, "height": 1000}, **options})
        self.context.set_default_timeout(TIMEOUT)
        self.noise: list[str] = []  # errors, warnings, dialogs and foreign requests: a working page has none
        self.page = self._monitored(self.context.new_page())

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.context.close()

    def _monitored(self, page: Page) -> Page:
        def console(message: ConsoleMessage) -> None:
            text = f"{message.text} {message.location.get('url', '')}"
            if message.type in ("error", "warning") and not EXPECTED.search(text):
                self.noise.append(f"console: {text}")

        def request(sent: Request) -> None:
            url = urlsplit(sent.url)
            if url.scheme not in ("data", "blob") and url.netloc != urlsplit(self.board).netloc:
                self.noise.append(f"request: {sent.url}")

        page.on("console", console)
        page.on("request", request)
        page.on("pageerror", lambda error: self.noise.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.noise.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return page

    # The page as a whole.

    @property
    def frame(self) -> Frame:
        """The frame in which TensorBoard shows the page."""
        return next(frame for frame in self.page.frames if "plugin_entry" in frame.url)

    def open(self, **state: object) -> "Tab":
        """Load TensorBoard with this state in the address, by default with small tiles, and wait for the page."""
        return self.open_at(f"{self.board}/#{_hash(state)}")

    def open_at(self, url: str) -> "Tab":
        """Load an address, and wait for the page."""
        self.page.goto("about:blank")  # a change of the hash alone loads nothing
        self.page.goto(url)
        self.root.wait_for()
        return self.ready()

    def fresh(self, **state: object) -> "Tab":
        """Load the page again with empty storage and this state in the address; three times as fast as :meth:`open`."""
        frame, entry = self.frame, self.frame.url
        frame.goto("about:blank")  # drops what the page has not stored yet
        self.page.evaluate(
            "hash => { localStorage.clear(); history.replaceState(history.state, '', hash); }", f"#{_hash(state)}"
        )
        frame.goto(entry)
        return self.ready()

    def ready(self) -> "Tab":
        """Wait until everything in sight is painted, or a message explains why there is nothing."""
        self.frame.wait_for_function(READY)
        return self

    def reload_data(self, by: str = "mouse") -> None:
        """Press TensorBoard's reload button, by the mouse or else without moving the focus, as its timer does."""
        button = self.page.locator("app-header-reload button")
        if by == "mouse":
            button.click()
        else:
            button.dispatch_event("click")

    @property
    def state(self) -> dict[str, str]:
        """The state in the address bar."""
        return dict(
            self.page.evaluate(
                "[...new URLSearchParams(location.hash.slice(1).split('&').slice(1).join('&'))]"
                ".map(([key, value]) => [key.replace('p.clipcam.', ''), value])"
            )
        )

    @property
    def root(self) -> Locator:
        """The root element of the page."""
        return self.page.frame_locator("iframe").locator("main")

    @property
    def message(self) -> Locator:
        """The message that is shown instead of the maps or above them."""
        return self.page.frame_locator("iframe").locator("[role=status].message:visible")

    @property
    def headline(self) -> Locator:
        """The run in a sentence."""
        return self.root.locator(".headline")

    # Controls.

    def choose(self, name: str, entry: str) -> None:
        """Choose an entry of a select, by its value or its text."""
        self.root.get_by_label(name, exact=True).select_option(entry)

    def chosen(self, label: str) -> str:
        """Return the value of a control."""
        return self.root.get_by_label(label, exact=True).input_value()

    def options(self, label: str) -> list[str]:
        """Return the texts of a select's entries."""
        return self.root.get_by_label(label, exact=True).locator("option").all_text_contents()

    def view(self, name: str) -> None:
        """Choose Overlay, Heat, Change or Input."""
        self.root.get_by_role("radio", name=name, exact=True).click()

    def slide(self, label: str, value: float) -> None:
        """Set a slider."""
        self.root.get_by_label(label, exact=True).fill(str(value))

    # The grid.

    @property
    def grid(self) -> Locator:
        """The grid of maps."""
        return self.root.get_by_role("grid", name=MAPS)

    def order(self) -> list[str]:
        """Return the names of the probes in sight, from the top down."""
        rows = self.grid.locator("[role=row][aria-rowindex]:has([role=rowheader])")
        numbered = rows.evaluate_all(
            "rows => rows.map(row => [Number(row.getAttribute('aria-rowindex')),"
            " [...row.querySelector('.name').childNodes].at(-1).textContent])"
        )
        return [name for _, name in sorted(numbered)]

    def row(self, name: str, side: int = 0) -> Locator:
        """Return the row of a probe, of the first run or, with ``side`` 1, of the second."""
        number = 2 + self.order().index(name) + side
        return self.grid.locator(f"[role=row][aria-rowindex='{number}']")

    def cell(self, name: str, step: int) -> Locator:
        """Return the cell of a probe at a step."""
        return self.grid.get_by_role("gridcell", name=re.compile(rf"^{re.escape(name)}, step {step}, "))

    def current(self, name: str) -> Locator:
        """Return the tile beside a probe's name, which shows the current evaluation."""
        return self.row(name).get_by_role("rowheader").locator(".current")

    def head(self, step: int) -> Locator:
        """Return the head of a column."""
        return self.grid.get_by_role("columnheader", name=re.compile(rf"^step {step}, "))

    def labels(self) -> list[str]:
        """Return the accessible name of each cell in sight."""
        labels: list[str] = self.grid.get_by_role("gridcell").evaluate_all(
            "cells => cells.map(cell => cell.getAttribute('aria-label'))"
        )
        return labels

    def scroll(self, down: float = 0, across: float = 0, *, wait: bool = True) -> None:
        """Scroll to these shares of the way, and by default wait until everything in sight is painted."""
        self.grid.evaluate(
            "(grid, [down, across]) => new Promise(done => {"
            " grid.scrollTo((grid.scrollWidth - grid.clientWidth) * across,"
            " (grid.scrollHeight - grid.clientHeight) * down);"
            " requestAnimationFrame(() => requestAnimationFrame(done)); })",
            [down, across],
        )
        if wait:
            self.ready()

    # Player and large view.

    @property
    def player(self) -> Locator:
        """The player."""
        return self.root.get_by_role("group", name="Player")

    @property
    def title(self) -> Locator:
        """The title of the evaluation that is shown."""
        return self.player.get_by_role("status")

    @property
    def slider(self) -> Locator:
        """The player's slider."""
        return self.player.get_by_role("slider", name="Evaluation shown")

    @property
    def play(self) -> Locator:
        """The button to play and pause."""
        return self.player.get_by_role("button", name=re.compile("^(Play|Pause)"))

    @property
    def detail(self) -> Locator:
        """The large view of one probe."""
        return self.root.get_by_role("dialog")

    @property
    def stage(self) -> Locator:
        """The canvas with the baseline and now under the wipe."""
        return self.detail.get_by_role("img", name=re.compile("baseline beside now$"))

    @property
    def wipe(self) -> Locator:
        """The slider that moves the border between baseline and now."""
        return self.detail.get_by_role("slider", name=re.compile("^Wipe"))

    def metrics(self) -> dict[str, str]:
        """Return the table of metrics in the large view."""
        rows = self.detail.get_by_role("table").get_by_role("row")
        return {row.get_by_role("rowheader").inner_text(): row.get_by_role("cell").inner_text() for row in rows.all()}


def all_pixels(tab: Tab) -> dict[tuple[str, int], Pixels]:
    """Return the pixels of every cell in sight, by the names in :meth:`Tab.order` and the index of the column."""
    cells = tab.grid.evaluate(
        "grid => [...grid.querySelectorAll('[role=gridcell]')].map(cell => [Number(cell.dataset.row),"
        f" Number(cell.dataset.column), ({PIXELS})(cell)])"
    )
    order, top = tab.order(), min(row for row, _, _ in cells)
    return {(order[row - top], column): _decoded(url) for row, column, url in cells}


def pixels(element: Locator) -> Pixels:
    """Return the pixels of a cell or a canvas."""
    while (url := element.evaluate(PIXELS)) is None:
        pass  # it has just been replaced by another
    return _decoded(url)


def _decoded(url: str) -> Pixels:
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def _hash(state: dict[str, object]) -> str:
    state = {"size": 96, **state} if state else {}
    return "&".join(["clipcam", *(urlencode({f"p.clipcam.{key}": str(value)}) for key, value in state.items())])
