"""The page of the CLIP CAM tab, as a user sees and moves it: the one place that knows how it is built."""

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
MAPS = "Maps of all probes at all looks"
EXPECTED = re.compile("Multiple instances of Three.js|/font-roboto/")  # TensorBoard's own: no fonts below a prefix
READY = """() => !document.querySelector('.waiting') && (
    document.querySelector('[role=gridcell]') || document.querySelector('.message:not([hidden])')?.textContent
)"""
# What a canvas has on it, or what the canvas behind a cell's frame has at the frame's place.
SHOWN = """found => {
    if (!found.isConnected) return null;
    if (found.matches('canvas')) return found.toDataURL('image/png');
    const frame = found.querySelector('.frame').getBoundingClientRect();
    const strip = found.querySelector('canvas') ?? found.closest('[role=row]').querySelector(':scope > canvas');
    const { left, top } = strip.getBoundingClientRect();
    const [x, y, width, height] = [frame.left - left, frame.top - top, frame.width, frame.height].map(
        length => Math.round(length * devicePixelRatio));
    const cut = document.createElement('canvas');
    [cut.width, cut.height] = [width, height];
    cut.getContext('2d').drawImage(strip, -x, -y);
    return cut.toDataURL('image/png');
}"""
expect.set_options(timeout=10_000)


class Tab:
    """A browser window with a TensorBoard whose CLIP CAM tab is chosen.

    Args:
        browser: in which a window with nothing kept is opened.
        board: TensorBoard's address.
        options: of the window.
    """

    def __init__(self, browser: Browser, board: str, **options: Any) -> None:
        self.board = board
        self.context = browser.new_context(**{"viewport": {"width": 1500, "height": 1000}, **options})
        self.context.set_default_timeout(10_000)
        self.noise: list[str] = []  # what a page that works does not do
        self.page = self._watched(self.context.new_page())

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.context.close()

    def _watched(self, page: Page) -> Page:
        def console(message: ConsoleMessage) -> None:
            said = f"{message.text} {message.location.get('url', '')}"
            if message.type in ("error", "warning") and not EXPECTED.search(said):
                self.noise.append(f"console: {said}")

        def request(asked: Request) -> None:
            url = urlsplit(asked.url)
            if url.scheme not in ("data", "blob") and url.netloc != urlsplit(self.board).netloc:
                self.noise.append(f"request: {asked.url}")

        page.on("console", console)
        page.on("request", request)
        page.on("pageerror", lambda error: self.noise.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.noise.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        return page

    # The page as a whole.

    @property
    def frame(self) -> Frame:
        """The page itself, which TensorBoard has in a frame."""
        return next(frame for frame in self.page.frames if "plugin_entry" in frame.url)

    def open(self, **state: object) -> "Tab":
        """Load TensorBoard with this state in the address, and wait for the page."""
        return self.open_at(f"{self.board}/#{_hash(state)}")

    def open_at(self, url: str) -> "Tab":
        """Load an address, and wait for the page."""
        self.page.goto("about:blank")  # a change of the hash alone loads nothing
        self.page.goto(url)
        self.root.wait_for()
        return self.ready()

    def fresh(self, **state: object) -> "Tab":
        """The page alone anew, with nothing kept but this state; takes a third of :meth:`open`."""
        frame, entry = self.frame, self.frame.url
        frame.goto("about:blank")  # what the page still means to keep is lost with it
        self.page.evaluate(
            "hash => { localStorage.clear(); history.replaceState(history.state, '', hash); }", f"#{_hash(state)}"
        )
        frame.goto(entry)
        return self.ready()

    def ready(self) -> "Tab":
        """Wait until all that is in sight is painted, or a message says why there is nothing."""
        self.frame.wait_for_function(READY)
        return self

    def reload_data(self, by: str = "mouse") -> None:
        """TensorBoard's own button; by anything else than the mouse as TensorBoard presses it from time to time."""
        button = self.page.locator("app-header-reload button")
        if by == "mouse":
            button.click()
        else:
            button.dispatch_event("click")

    @property
    def state(self) -> dict[str, str]:
        """What the address bar says of the page."""
        return dict(
            self.page.evaluate(
                "[...new URLSearchParams(location.hash.slice(1).split('&').slice(1).join('&'))]"
                ".map(([key, value]) => [key.replace('p.clipcam.', ''), value])"
            )
        )

    @property
    def root(self) -> Locator:
        """All that the page shows."""
        return self.page.frame_locator("iframe").locator("main")

    @property
    def message(self) -> Locator:
        """What is said instead of, or besides, the maps."""
        return self.page.frame_locator("iframe").locator("[role=status].message:visible")

    @property
    def headline(self) -> Locator:
        """The run in a sentence."""
        return self.root.locator(".headline")

    # What can be chosen.

    def choose(self, name: str, entry: str) -> None:
        """An entry of a select, by its value or its text."""
        self.root.get_by_label(name, exact=True).select_option(entry)

    def chosen(self, label: str) -> str:
        """The value of a control."""
        return self.root.get_by_label(label, exact=True).input_value()

    def options(self, label: str) -> list[str]:
        """The texts of a select's entries."""
        return self.root.get_by_label(label, exact=True).locator("option").all_text_contents()

    def view(self, name: str) -> None:
        """Overlay, Heat, Change or Input."""
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
        """Names of the probes from the top down."""
        rows = self.grid.locator("[role=row][aria-rowindex]:has([role=rowheader])")
        found = rows.evaluate_all(
            "rows => rows.map(row => [Number(row.getAttribute('aria-rowindex')),"
            " [...row.querySelector('.name').childNodes].at(-1).textContent])"
        )
        return [name for _, name in sorted(found)]

    def row(self, name: str, side: int = 0) -> Locator:
        """The row of a probe; ``side`` 1 for the second run's."""
        number = 2 + self.order().index(name) + side
        return self.grid.locator(f"[role=row][aria-rowindex='{number}']")

    def cell(self, name: str, step: int) -> Locator:
        """A probe at a look."""
        return self.grid.get_by_role("gridcell", name=re.compile(rf"^{re.escape(name)}, step {step}, "))

    def present(self, name: str) -> Locator:
        """The look that is shown now, beside the probe's name."""
        return self.row(name).get_by_role("rowheader").locator(".present")

    def head(self, step: int) -> Locator:
        """The head of a column."""
        return self.grid.get_by_role("columnheader", name=re.compile(rf"^step {step}, "))

    def labels(self) -> list[str]:
        """What each cell in sight is called."""
        found: list[str] = self.grid.get_by_role("gridcell").evaluate_all(
            "cells => cells.map(cell => cell.getAttribute('aria-label'))"
        )
        return found

    def scroll(self, down: float = 0, across: float = 0, *, wait: bool = True) -> None:
        """To these shares of the way, and wait until what comes into sight is painted, or do not."""
        self.grid.evaluate(
            "(grid, [down, across]) => new Promise(done => {"
            " grid.scrollTo((grid.scrollWidth - grid.clientWidth) * across,"
            " (grid.scrollHeight - grid.clientHeight) * down);"
            " requestAnimationFrame(() => requestAnimationFrame(done)); })",
            [down, across],
        )
        if wait:
            self.ready()

    # Player and detail.

    @property
    def player(self) -> Locator:
        """The player."""
        return self.root.get_by_role("group", name="Player")

    @property
    def title(self) -> Locator:
        """Which look the player shows."""
        return self.player.get_by_role("status")

    @property
    def slider(self) -> Locator:
        """The player's slider."""
        return self.player.get_by_role("slider", name="Look that is shown")

    @property
    def play(self) -> Locator:
        """The button that plays and pauses."""
        return self.player.get_by_role("button", name=re.compile("^(Play|Pause)"))

    @property
    def detail(self) -> Locator:
        """The large view of one probe."""
        return self.root.get_by_role("dialog")

    @property
    def stage(self) -> Locator:
        """Baseline and now under the wipe."""
        return self.detail.get_by_role("img", name=re.compile("baseline beside now$"))

    @property
    def wipe(self) -> Locator:
        """What moves the border between baseline and now."""
        return self.detail.get_by_role("slider", name=re.compile("^Wipe"))

    def figures(self) -> dict[str, str]:
        """The table of the detail."""
        rows = self.detail.get_by_role("table").get_by_role("row")
        return {row.get_by_role("rowheader").inner_text(): row.get_by_role("cell").inner_text() for row in rows.all()}


def all_pixels(tab: Tab) -> dict[tuple[str, int], Pixels]:
    """Of every cell in sight, by the names in :meth:`Tab.order` and the number of the look."""
    found = tab.grid.evaluate(
        "grid => [...grid.querySelectorAll('[role=gridcell]')].map(cell => [Number(cell.dataset.row),"
        f" Number(cell.dataset.column), ({SHOWN})(cell)])"
    )
    order, top = tab.order(), min(row for row, _, _ in found)
    return {(order[row - top], column): _decoded(url) for row, column, url in found}


def pixels(element: Locator) -> Pixels:
    """What is painted in a cell, or on a canvas."""
    while (url := element.evaluate(SHOWN)) is None:
        pass  # it was replaced by another just then
    return _decoded(url)


def _decoded(url: str) -> Pixels:
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGBA"))


def _hash(state: dict[str, object]) -> str:
    return "&".join(["clipcam", *(urlencode({f"p.clipcam.{key}": str(value)}) for key, value in state.items())])
