"""Animations of the maps of one probe through a training, as GIF or MP4."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from clipcam_lightning.cam.display.drawing import to_image
from clipcam_lightning.cam.lettering import font, shorten, text_width, wrap
from clipcam_lightning.errors import ConfigError, SnapshotError
from clipcam_lightning.monitoring.recorded_run import RecordedRun
from clipcam_lightning.visualization.drawing import FAINT, FLAG, INK, PAPER, enlarge
from clipcam_lightning.visualization.run_report import MapFrame, choose_evaluations, draw_frames, read_pixels
from clipcam_lightning.visualization.timeline import Extent

SIDE, GAP = 320, 16  # pixels of the larger side of an image, and between parts
TITLE, CAPTION, SMALL = 20, 17, 14  # pixels of the fonts
TITLE_LINES, LINE = 2, 27
CHART = 56  # pixels of the height of the chart
BAR, FRAME = "#c9c5bd", 5  # of the part of the chart that is still to come; pixels of the red frame

MAX_FRAMES = 120  # of more evaluations, evenly spread ones are shown
LENGTH, SHORTEST, LONGEST, HELD = 8000, 120, 900, 2500  # milliseconds: of all frames, of one, and of the last one
COLORS, SAMPLED = 256, 12  # of the palette of a GIF, and frames from which it is made
MP4_RATE = 25  # images per second


@dataclass(frozen=True, eq=False)
class Animation:
    """Images with the time for which each is shown.

    Attributes:
        frames: of equal, even sizes.
        durations: one per frame, in milliseconds.
    """

    frames: Sequence[Image.Image]
    durations: Sequence[int]


def animate(run: RecordedRun, name: str) -> Animation:
    """Draw the maps of a probe through a run: input beside map, with step, drift and a chart of the drift.

    Args:
        run: with the maps of at least one evaluation.
        name: of the probe.

    Returns:
        One frame per evaluation, with a red frame around the map while the probe is flagged. Of more than 120
        evaluations the first, the last, that of the first alarm and evenly spread ones are shown. The last frame is
        held.

    Raises:
        SnapshotError: the run has no map of the probe.
    """
    problems: list[str] = []
    pixels = read_pixels(run, name, problems)
    evaluations = [each for each in choose_evaluations(run, MAX_FRAMES) if name in each.probes]
    maps = draw_frames(run, name, evaluations, pixels, SIDE)
    if not maps:
        raise SnapshotError(f"the run {run.folder} has no map of the probe {name!r}.")
    canvas = _Canvas(run, name, pixels, maps[0].image.size)
    frames = [canvas.draw(each) for each in maps]
    duration = min(LONGEST, max(SHORTEST, LENGTH // len(frames)))
    return Animation(frames, [*[duration] * (len(frames) - 1), HELD])


def encode_gif(animation: Animation) -> bytes:
    """Encode an animation as a GIF that repeats for ever, with one palette for all frames, so that nothing flickers."""
    frames = animation.frames
    sample = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, SAMPLED).round().astype(int))]
    together = Image.fromarray(np.concatenate([np.asarray(each) for each in sample]))
    palette = together.quantize(COLORS, Image.Quantize.MAXCOVERAGE)  # heat is bright, but covers few pixels
    first, *others = (each.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for each in frames)
    file = io.BytesIO()
    first.save(
        file, "GIF", save_all=True, append_images=others, duration=list(animation.durations), loop=0, optimize=False
    )
    return file.getvalue()


def encode_mp4(animation: Animation) -> bytes:
    """Encode an animation as an H.264 video that browsers and presentations play.

    Raises:
        ConfigError: PyAV is not installed.
    """
    require_av()
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=MP4_RATE, options={"crf": "16", "preset": "medium"})
        stream.width, stream.height = animation.frames[0].size
        stream.pix_fmt = "yuv420p"  # the only format that all players decode
        for image, duration in zip(animation.frames, animation.durations, strict=True):
            for _ in range(round(duration * MP4_RATE / 1000)):
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return file.getvalue()


def require_av() -> None:
    """Refuse to encode a video without PyAV, with what to install.

    Raises:
        ConfigError: PyAV is not installed.
    """
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "a video needs PyAV, which is not installed: pip install 'clipcam-lightning[video]'. --gif needs nothing."
        ) from error


class _Canvas:
    """Draws the frames of an animation, which differ only in the map and what is said of it.

    Args:
        run: whose drift is charted.
        name: of the probe.
        pixels: input of the model; ``None`` leaves the input out.
        size: of the maps, width and height.
    """

    def __init__(
        self, run: RecordedRun, name: str, pixels: UInt8[Tensor, "3 y x"] | None, size: tuple[int, int]
    ) -> None:
        extent = Extent.of(run)
        probes = [(each.step, each.probes[name]) for each in run.evaluations if name in each.probes]
        self.tiles = [] if pixels is None else [to_image(enlarge(pixels, SIDE))]
        self.tile_width, self.tile_height = size
        self.width = _even((self.tile_width + GAP) * (1 + len(self.tiles)) + GAP)
        self.title = wrap(probes[-1][1].prompt, TITLE, self.width - 2 * GAP, TITLE_LINES)
        self.top = GAP + LINE * max(1, len(self.title)) + GAP // 2
        self.chart_top = self.top + self.tile_height + 2 * LINE + GAP
        self.height = _even(self.chart_top + CHART + LINE + GAP // 2)
        self.name, self.limit = name, extent.drift
        self.points = {step: (self._x(extent, step), probe) for step, probe in probes}

    def draw(self, map_: MapFrame) -> Image.Image:
        """Draw one frame."""
        image = Image.new("RGB", (self.width, self.height), PAPER)
        draw = ImageDraw.Draw(image)
        for i, line in enumerate(self.title):
            draw.text((GAP, GAP + LINE * i), line, INK, font(TITLE))
        left, below = GAP, self.top + self.tile_height + GAP // 2
        for tile in self.tiles:
            image.paste(tile, (left, self.top))
            draw.text((left, below), "input", FAINT, font(CAPTION))
            left += self.tile_width + GAP
        image.paste(map_.image, (left, self.top))
        color = FLAG if map_.flagged else INK
        if map_.flagged:
            corner = left + self.tile_width - 1, self.top + self.tile_height - 1
            draw.rectangle((left, self.top, *corner), outline=FLAG, width=FRAME)
        draw.text((left, below), map_.when, color, font(CAPTION))
        drift = f"drift {map_.drift}" if map_.drift else ""
        right = left + self.tile_width - text_width(drift, CAPTION)
        draw.text((right, below), drift, color, font(CAPTION))
        if map_.flagged:
            middle = left + (self.tile_width - text_width("flagged", CAPTION)) // 2
            draw.text((middle, below), "flagged", FLAG, font(CAPTION))
        self._draw_chart(draw, map_)
        return image

    def _draw_chart(self, draw: ImageDraw.ImageDraw, map_: MapFrame) -> None:
        """Draw the drift up to now in ink and the rest faintly, with a dot at now."""
        bottom = self.chart_top + CHART
        draw.line((GAP, bottom, self.width - GAP, bottom), fill=BAR)
        places = [(x, bottom - CHART * probe.drift / self.limit, probe) for x, probe in self.points.values()]
        now = next((i for i, step in enumerate(self.points) if map_.when == f"step {step}"), 0)
        draw.line([(x, y) for x, y, _ in places], fill=BAR, width=2)
        for (x, y, _), (later, there, probe) in islice(pairwise(places), now):
            draw.line((x, y, later, there), fill=FLAG if probe.flagged else INK, width=3)
        x, y, probe = places[now]
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=FLAG if probe.flagged else INK)
        note = f"drift, 0 to {self.limit:.1f}; map on its own scale"
        draw.text((GAP, bottom + 5), shorten(note, SMALL, self.width - 2 * GAP), FAINT, font(SMALL))

    def _x(self, extent: Extent, step: int) -> float:
        first, last = extent.steps
        share = (step - first) / (last - first) if last > first else 0.5
        return GAP + 6 + (self.width - 2 * GAP - 12) * share


def _even(length: int) -> int:
    """Round up to an even length, as H.264 needs."""
    return length + length % 2
