"""Spread the probes of a report over several HTML files, so that each of them opens fast."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import quote

from clipcam_lightning.errors import ConfigError
from clipcam_lightning.visualization.page import probe_anchor

ILLUSTRATED_PAGES = 5  # pages with images; a training of 10,000 probes would otherwise write 300 MB at an alarm
LISTED = 1000  # probes on a page without images

RenderPage = Callable[["Page"], str]


@dataclass(frozen=True)
class Page:
    """One HTML file of a report.

    Attributes:
        number: counted from 1.
        illustrated: places in the report of the probes that it shows with images, counted from 0.
        listed: places of the probes that it shows in a table.
        report: all pages.
    """

    number: int
    illustrated: range
    listed: range
    report: "Pages" = field(repr=False)

    @property
    def is_first(self) -> bool:
        """Whether the page holds the verdict."""
        return self.number == 1

    @property
    def path(self) -> PurePosixPath:
        """Its file, relative to the folder of the first one."""
        file = PurePosixPath(self.report.file)
        return file if self.is_first else PurePosixPath(f"{file.stem}_pages", f"{self.number}.html")

    @property
    def span(self) -> str:
        """Which probes it holds, for people."""
        places = [*self.illustrated, *self.listed]
        return f"{places[0] + 1:,} to {places[-1] + 1:,}"

    def href_of(self, page: "Page") -> str:
        """Return the link from this page to another one."""
        if page is self:
            return ""
        path = quote(os.fsencode(page.path))
        if self.is_first:
            return path
        return f"../{path}" if page.is_first else quote(page.path.name)

    def href(self, name: str) -> str:
        """Return the link from this page to a probe, wherever it is; to this page if it is nowhere."""
        return f"{self.href_of(self.report.page_of(name) or self)}#{probe_anchor(name)}"


class Pages(Sequence[Page]):
    """The HTML files of a report: some with images, and then some with tables.

    Args:
        names: of the probes, in the order of the report.
        illustrated: probes with images per page.
        file: name of the first file; others lie in a folder beside it. ``None`` for all probes in one page, of which
            those beyond ``illustrated`` are listed.
    """

    def __init__(self, names: Sequence[str], illustrated: int, file: str | None) -> None:
        if file is not None and PurePosixPath(file).name != file:
            raise ConfigError(f"file must be a name without a folder (got {file!r}); put the pages where they belong.")
        self.file = file or ""
        self.total = count = len(names)
        if file is None:
            parts = [(range(min(illustrated, count)), range(illustrated, count))]
        else:
            limit = min(ILLUSTRATED_PAGES * illustrated, count)
            starts = [*range(0, limit, illustrated)] or [0]
            parts = [(range(start, min(start + illustrated, limit)), range(0)) for start in starts]
            parts += [(range(0), range(start, min(start + LISTED, count))) for start in range(limit, count, LISTED)]
        self._pages = [Page(number, *part, self) for number, part in enumerate(parts, 1)]
        self._page_of = {names[i]: page for page in self._pages for i in (*page.illustrated, *page.listed)}

    def __getitem__(self, index: int) -> Page:  # type: ignore[override]
        return self._pages[index]

    def __len__(self) -> int:
        return len(self._pages)

    def page_of(self, name: str) -> Page | None:
        """Return the page that holds a probe; ``None`` for one that is not in the report, as after a renaming."""
        return self._page_of.get(name)

    def render(self, render: RenderPage) -> Iterator[tuple[str, str]]:
        """Yield path and HTML of each file, the first one last, so that its links lead somewhere when it is there.

        It is made first, so that an error there comes before anything is written.

        Args:
            render: makes the HTML of a page.
        """
        first, *others = self._pages
        html = render(first)
        for page in reversed(others):
            yield str(page.path), render(page)
        yield str(first.path), html
