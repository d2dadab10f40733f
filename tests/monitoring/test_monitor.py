"""What a monitor remembers of its looks, however many they are."""

import pickle
from itertools import pairwise

import pytest
import torch

from clipcam_lightning import Probe, ProbeSet
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.history import MAX_ENTRIES, HistoryEntry, thinned
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.visualization.contact_sheet import MAX_COLUMNS

EVALUATIONS = 500


def monitor_of() -> Monitor:
    scenes = draw_scenes(1, seed=4)
    probes = ProbeSet([Probe(scenes.images[0], "a red circle")])
    return Monitor(probes)


def test_a_long_history_keeps_the_first_the_last_and_evenly_spaced_evaluations_also_through_a_checkpoint(
    clip: ClipModel, unchecked: None
) -> None:
    monitor, sizes = monitor_of(), []
    for step in range(EVALUATIONS):
        monitor.evaluate(LocalExplainer(clip, MapSettings(method="hirescam")), step=10 * step, epoch=step)
        sizes.append(len(pickle.dumps(monitor.state()["history"])))
    resumed = monitor_of()
    resumed.restore(monitor.state())
    resumed.evaluate(LocalExplainer(clip, MapSettings(method="hirescam")), step=10 * EVALUATIONS, epoch=EVALUATIONS)

    assert max(sizes[MAX_ENTRIES:]) <= 1.1 * sizes[MAX_ENTRIES - 1], "it grows no more"
    for history, last in ((monitor.history, EVALUATIONS - 1), (resumed.history, EVALUATIONS)):
        assert [history[0].number, history[-1].number] == [0, last]
        assert [column.step for column in history] == [10 * column.number for column in history]
        *even, _ = (after.evaluation - before.evaluation for before, after in pairwise(history))
        assert max(even) <= 2 * min(even)


@pytest.mark.parametrize("evaluations", [1, 2, 3, MAX_ENTRIES, MAX_ENTRIES + 1, 100, 1000])
def test_there_are_always_enough_evaluations_for_a_full_sheet_and_never_more_than_twice_as_many(
    evaluations: int,
) -> None:
    kept: list[HistoryEntry] = []
    for evaluation in range(evaluations):
        kept = thinned([*kept, HistoryEntry(evaluation, torch.zeros(1, 1, 1), (0.0,), (False,), evaluation)])

    assert min(evaluations, MAX_COLUMNS) <= len(kept) <= MAX_ENTRIES
    assert [kept[0].evaluation, kept[-1].evaluation] == [0, evaluations - 1]
