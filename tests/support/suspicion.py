"""Evaluations that always look suspicious, so that each gathers all evidence."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.monitoring import covering


@contextmanager
def always_suspicious() -> Iterator[None]:
    """Put other objects on all grounds, and cover a place of each image that has one, however little its map moved."""
    with patch.object(DriftReport, "suspicious", True), patch.object(covering, "MIN_DRIFT", -1.0):
        yield
