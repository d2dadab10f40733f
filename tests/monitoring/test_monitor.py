"""What a monitor remembers of its looks, however many they are."""

import pickle
from itertools import pairwise

import pytest
import torch

from clipcam_lightning import Probe, ProbeSet
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.drift.compare import DriftRule
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.visualization.panels import MAX_COLUMNS, MAX_HISTORY, SheetColumn, thinned

LOOKS = 500


def monitor_of() -> Monitor:
    scenes = draw_scenes(1, seed=4)
    probes = ProbeSet([Probe(scenes.images[0], "a red circle")])
    return Monitor(probes, method="hirescam", layers=None, target="similarity", rule=DriftRule())


def test_a_long_history_keeps_the_first_the_last_and_evenly_spaced_looks_also_through_a_checkpoint(
    clip: ClipModel, unchecked: None
) -> None:
    monitor, sizes = monitor_of(), []
    for step in range(LOOKS):
        monitor.look(clip, step=10 * step, epoch=step)
        sizes.append(len(pickle.dumps(monitor.state()["history"])))
    resumed = monitor_of()
    resumed.restore(monitor.state())
    resumed.look(clip, step=10 * LOOKS, epoch=LOOKS)

    assert max(sizes[MAX_HISTORY:]) <= 1.1 * sizes[MAX_HISTORY - 1], "it grows no more"
    for history, last in ((monitor.history, LOOKS - 1), (resumed.history, LOOKS)):
        assert [history[0].look, history[-1].look] == [0, last]
        assert [column.step for column in history] == [10 * column.look for column in history]
        *even, _ = (after.look - before.look for before, after in pairwise(history))
        assert max(even) <= 2 * min(even)


@pytest.mark.parametrize("looks", [1, 2, 3, MAX_HISTORY, MAX_HISTORY + 1, 100, 1000])
def test_there_are_always_enough_looks_for_a_full_sheet_and_never_more_than_twice_as_many(looks: int) -> None:
    kept: list[SheetColumn] = []
    for look in range(looks):
        kept = thinned([*kept, SheetColumn(look, torch.zeros(1, 1, 1), (0.0,), (False,), look)])

    assert min(looks, MAX_COLUMNS) <= len(kept) <= MAX_HISTORY
    assert [kept[0].look, kept[-1].look] == [0, looks - 1]
