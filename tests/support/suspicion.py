"""Evaluations that look suspicious, so that they gather evidence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.monitoring import covering, snapshots
from clipcam_lightning.monitoring.background import Background, observe_background


@contextmanager
def always_suspicious() -> Iterator[None]:
    """Put other objects on all grounds, and cover a place of each image that has one, however little its map moved."""
    with patch.object(DriftReport, "suspicious", True), patch.object(covering, "MIN_DRIFT", -1.0):
        yield


@contextmanager
def background_tells(probes: Sequence[int]) -> Iterator[None]:
    """Evaluate as if the images of these probes without their objects, and of no others, gave their prompts."""

    def observe(*args: Any) -> Background:
        observed, rows = observe_background(*args), torch.tensor(probes)
        named = torch.zeros_like(observed.named)
        return replace(observed, score=observed.score.index_fill(0, rows, 20.0), named=named.index_fill(0, rows, 1))

    with patch.object(snapshots, "observe_background", observe):
        yield
