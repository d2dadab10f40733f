"""Draw the images of each evaluation once, for all sinks that write them."""

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

from PIL import Image

from clipcam_lightning.cam.colors import load_color_maps
from clipcam_lightning.cam.lettering import load_fonts
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.visualization.contact_sheet import contact_sheet
from clipcam_lightning.visualization.page import load_page
from clipcam_lightning.visualization.panels import probe_panel
from clipcam_lightning.visualization.report import ILLUSTRATED, PAGE, html_pages, html_report

LOGGED_COLUMNS = 4  # of contact sheets in loggers, which show them small and keep that of every evaluation
PNG_LEVEL = 1  # 12 % larger than level 6, in 25 % of the time
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Panel:
    """One probe at one evaluation, as loggers show it.

    Attributes:
        index: of the probe in its set.
        name: of the probe.
        prompt: of the probe.
        image: input, baseline, now and change, with prompt and metrics.
    """

    index: int
    name: str
    prompt: str
    image: Image.Image


class Drawings:
    """The images of one evaluation, each drawn when it is first asked for.

    Args:
        evaluation: what to draw.
        num_images: how many probes get a panel, flagged ones first.
    """

    def __init__(self, evaluation: Evaluation, num_images: int) -> None:
        self.evaluation = evaluation
        self._num_images = num_images
        self._lock = threading.RLock()
        self._drawn: dict[str, object] = {}

    @property
    def panels(self) -> list[Panel]:
        """Panels of the first probes of the report, in the order of the probe set, so that an image stays in place."""
        shown = sorted(self.evaluation.report.flagged_first[: self._num_images])
        return self._once("panels", lambda: [self._draw_panel(i) for i in shown])

    @property
    def sheet(self) -> Image.Image:
        """The contact sheet with all its columns, for a file."""
        return self._once("sheet", self._draw_sheet)

    @property
    def sheet_png(self) -> bytes:
        """The same as a PNG file."""
        return self._once("sheet_png", lambda: _encode_png(self.sheet))

    @property
    def is_sheet_due(self) -> bool:
        """Whether loggers get the contact sheet of this evaluation.

        Each sheet repeats the maps of those before, so that loggers get that of the evaluations 1, 2, 4, 8 and so on,
        and of a first alarm. That of the last evaluation is written when a sink is closed.
        """
        *before, newest = self.evaluation.history
        count = newest.number + 1
        return count.bit_count() == 1 or (newest.alarm and not any(entry.alarm for entry in before))

    @property
    def logged_sheet(self) -> Image.Image:
        """A narrower contact sheet: with all columns the sheets would take more room than the panels."""
        return self._once("logged_sheet", partial(self._draw_sheet, LOGGED_COLUMNS))

    @property
    def report(self) -> str:
        """The HTML report in one page."""
        evaluation = self.evaluation
        return self._once("report", lambda: html_report(evaluation.baseline, evaluation.snapshot, evaluation.report))

    def report_pages(self, file: str) -> Iterator[tuple[str, str]]:
        """Yield path and HTML of each page of the report; of few probes it is the same as :attr:`report`.

        Args:
            file: name of the first page.
        """
        evaluation = self.evaluation
        if len(evaluation.report.probes) <= ILLUSTRATED:
            yield file, self.report
        else:
            yield from html_pages(evaluation.baseline, evaluation.snapshot, evaluation.report, file)

    def _once(self, name: str, draw: Callable[[], T]) -> T:
        with self._lock:
            if name not in self._drawn:
                self._drawn[name] = draw()
            return cast(T, self._drawn[name])

    def _draw_panel(self, i: int) -> Panel:
        evaluation, probe = self.evaluation, self.evaluation.report.probes[i]
        pixels, mask = evaluation.pixels[i], evaluation.masks[i]
        before, now = evaluation.baseline.maps[i], evaluation.snapshot.maps[i]
        steps = evaluation.report.baseline_step, evaluation.report.step
        return Panel(
            index=i,
            name=probe.name,
            prompt=probe.prompt,
            image=probe_panel(pixels, before, now, probe, steps=steps, mask=mask),
        )

    def _draw_sheet(self, *columns: int) -> Image.Image:
        evaluation = self.evaluation
        return contact_sheet(
            evaluation.pixels,
            _title_rows(evaluation.snapshot.prompts, evaluation.snapshot.names),
            evaluation.history,
            evaluation.report.flagged_first,
            *columns,
        )


class Drawer:
    """Gives all sinks of a run the same drawings of an evaluation, in whichever threads they write.

    Args:
        num_images: how many probes get a panel per evaluation.
    """

    def __init__(self, num_images: int) -> None:
        # Modules must not be imported in a thread while a dataloader forks its workers.
        load_color_maps()
        load_fonts()
        load_page(PAGE)
        self._num_images = num_images
        self._lock = threading.Lock()
        self._newest: Drawings | None = None

    def __call__(self, evaluation: Evaluation) -> Drawings:
        """Return the drawings of an evaluation; those of the newest are kept."""
        with self._lock:
            if self._newest is None or self._newest.evaluation is not evaluation:
                self._newest = Drawings(evaluation, self._num_images)
            return self._newest


def _title_rows(prompts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Title each row with its prompt; where several probes have one, the names tell them apart."""
    counts = Counter(prompts)
    return [
        prompt if counts[prompt] == 1 else f"{prompt} · {name}" for prompt, name in zip(prompts, names, strict=True)
    ]


def _encode_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()
