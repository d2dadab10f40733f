"""What the tests of drawn images share: measurements, texts that are hard to draw, and a probe."""

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.transplants import Transplants

TEXTS = {
    "long": "a very long prompt " * 30,
    "one word": "x" * 400,
    "newlines": "one\ntwo\r\nthree\n" * 20,
    "emoji": "a 🐈‍⬛ on a 🛋️ " * 40,
    "right to left": "קטגוריה ארוכה مرحبا بالعالم " * 20,
    "overrides": "\u202e\u2066abc\u202d" * 60,
    "control": "\0\a\b\x1b[31m\x7f" * 60,
    "combining": "e\u0301\u0327" * 200,
    "markup": "<b>&amp;</b> {x} %s " * 30,
    "surrogate": "\ud800 alone",
    "blank": " ",
}


def probe_drift(**changes: Any) -> ProbeDrift:
    """A probe without mask that is not flagged, but for the changes."""
    fields = {
        "name": "cat", "prompt": "a cat", "drift": 0.5, "top_iou": 0.1, "center_shift": 0.2, "js_distance": 0.4,
        "noise_ratio": 5.0, "shared_gain": 0.1, "concentration": 0.2, "similarity": 0.3, "similarity_change": 0.1,
        "energy_inside_mask": math.nan, "energy_change": math.nan, "pointing": math.nan,
        "background_score": math.nan, "background_score_before": math.nan, "named_without_object": math.nan,
        "named_before": math.nan, "closest_prompt": "", "closest_prompt_before": "",
        "transplants": Transplants(), "transplants_before": Transplants(),
        "covered_loss": math.nan, "control_loss": math.nan,
        "state": MapState.VALID, "baseline_state": MapState.VALID, "severity": 0.5, "reason": "",
    }  # fmt: skip
    return ProbeDrift(**{**fields, **changes})


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def corners(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour of the top left and the bottom right cell of 8x8."""
    side = len(pixels) // 8
    return pixels[:side, :side].mean((0, 1)), pixels[-side:, -side:].mean((0, 1))


def colourfulness(color: np.ndarray) -> float:
    return float(np.ptp(color))


def panel_tile(panel: Image.Image, k: int) -> np.ndarray:
    """The pixels of tile ``k`` of a panel: two by two, counted from the top left."""
    left, top, side = 332 + k % 2 * 184, 8 + k // 2 * 210, 176
    return pixels_of(panel)[top : top + side, left : left + side]


def limit_measuring(monkeypatch: pytest.MonkeyPatch, characters: int) -> None:
    """Fail as soon as more than this many characters of text are measured, all texts together."""
    measured, getlength = 0, ImageFont.FreeTypeFont.getlength

    def counted(font: ImageFont.FreeTypeFont, text: str, *args: Any, **kwargs: Any) -> float:
        nonlocal measured
        measured += len(text)
        assert measured <= characters, "measures much more text than it draws"
        return getlength(font, text, *args, **kwargs)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", counted)
