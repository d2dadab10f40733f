"""Check that there is a map to compare with."""

from collections import Counter

from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import SnapshotError


def has_valid_map(baseline: Snapshot) -> bool:
    """Check whether at least one map of a baseline carries information."""
    return MapState.VALID in baseline.states


def require_valid_map(baseline: Snapshot) -> None:
    """Refuse a baseline whose maps are all degenerate: nothing could be compared with it, and no check would fail.

    Raises:
        SnapshotError: the message says why the maps are degenerate, and what to do.
    """
    if has_valid_map(baseline):
        return
    counts = Counter(baseline.states)
    reasons = "; ".join(f"{count} {state}: {state.words}" for state, count in counts.items())
    raise SnapshotError(
        f"a baseline needs a valid map, but all {len(baseline.states)} are degenerate ({reasons}). "
        + (
            "Repair the model: its weights or activations hold NaN or infinity."
            if MapState.NOT_FINITE in counts
            else "Use another method or other layers; clipcam rank compares methods."
        )
    )
