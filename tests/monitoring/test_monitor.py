"""What a monitor makes of its evaluations: means, and a history of bounded length."""

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from clipcam_lightning import Explanation, MapState, Probe, ProbeSet
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.history import MAX_ENTRIES, HistoryEntry, thinned
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.visualization.contact_sheet import MAX_COLUMNS

EVALUATIONS = 500


class KnownMaps:
    """Explainer that returns the same map of each probe every time.

    Args:
        clip: the model, which is not asked.
        maps: one per probe.
        similarity: one per probe.
    """

    def __init__(self, clip: ClipModel, maps: Sequence[Tensor], similarity: Sequence[float]) -> None:
        self.clip, self.settings = clip, MapSettings()
        self._explanation = Explanation(
            maps=torch.stack(list(maps))[:, None],
            similarity=torch.tensor(similarity)[:, None],
            layers=("a layer",),
            method="known",
            target="similarity",
        )

    def __call__(self, images: Tensor, prompts: object) -> Explanation:
        return self._explanation

    def embed_images(self, images: Tensor) -> Tensor:
        return LocalExplainer(self.clip).embed_images(images)


def two_masked_probes() -> ProbeSet:
    """Two probes whose object is the left half of the image."""
    scenes, left = draw_scenes(2, seed=4), torch.zeros(64, 64, dtype=torch.bool)
    left[:, :32] = True
    return ProbeSet(Probe(image, prompt, mask=left.numpy()) for image, prompt in zip(scenes.images, "ab", strict=True))


def monitor_of_one_probe() -> Monitor:
    return Monitor(ProbeSet([Probe(draw_scenes(1, seed=4).images[0], "a red circle")]))


# On the grid of both, the object covers the left column: its energy is 9 / 10 of the first and 3 / 10 of the second.
ON_OBJECT, OFF_OBJECT = torch.tensor([[8.0, 1.0], [1.0, 0.0]]), torch.tensor([[2.0, 6.0], [1.0, 1.0]])
DEGENERATE = {
    "all zero": torch.zeros(2, 2),
    "constant": torch.full((2, 2), 3.0),
    "not finite": torch.tensor([[math.nan, 1.0], [0.0, 0.0]]),
    "nowhere positive": torch.tensor([[-1.0, -2.0], [-2.0, -2.0]]),
}


@pytest.mark.parametrize("kind", DEGENERATE)
def test_a_degenerate_map_counts_as_the_worst_value_in_the_means(kind: str, clip: ClipModel) -> None:
    monitor = Monitor(two_masked_probes())
    means = []
    for maps in ((ON_OBJECT, OFF_OBJECT), (ON_OBJECT, DEGENERATE[kind]), (DEGENERATE[kind], OFF_OBJECT)):
        outcome = monitor.evaluate(KnownMaps(clip, maps, (0.5, 0.3)), step=0, epoch=0)
        means.append(
            (outcome.metrics["energy_inside_mask"], outcome.metrics["pointing"], outcome.metrics["degenerate"])
        )

    assert means[0] == pytest.approx(((0.9 + 0.3) / 2, (1 + 0) / 2, 0))
    # Without the worse of the two maps the mean of the other would be 0.9 and 1: better than before.
    assert means[1] == pytest.approx(((0.9 + 0.0) / 2, (1 + 0) / 2, 1))
    assert means[2] == pytest.approx(((0.0 + 0.3) / 2, (0 + 0) / 2, 1))


def test_the_energy_never_rises_when_a_map_vanishes(clip: ClipModel) -> None:
    """The mean of two maps falls from 0.6 to 0.15, rather than rising to the 0.3 of the one that is left."""
    monitor = Monitor(two_masked_probes())
    energies = []
    for first in (ON_OBJECT, *DEGENERATE.values()):
        monitor.evaluate(KnownMaps(clip, (first, OFF_OBJECT), (0.5, 0.3)), step=0, epoch=0)
        assert monitor.last is not None
        energies.append(monitor.last.snapshot.energy_inside_mask.tolist())

    assert energies == [pytest.approx([0.9, 0.3])] + [pytest.approx([0.0, 0.3])] * len(DEGENERATE)


def test_a_restored_history_has_the_states_of_its_maps(clip: ClipModel) -> None:
    monitor, resumed = Monitor(two_masked_probes()), Monitor(two_masked_probes())
    monitor.evaluate(KnownMaps(clip, (ON_OBJECT, DEGENERATE["constant"]), (0.5, 0.3)), step=0, epoch=0)

    state = monitor.state()
    resumed.restore(state)

    assert [type(name) for name in state["history"][0]["states"]] == [str, str], "no class in a checkpoint"
    assert resumed.history[0].states == (MapState.VALID, MapState.CONSTANT)


def test_all_means_are_finite_if_every_map_is_degenerate(clip: ClipModel) -> None:
    monitor = Monitor(two_masked_probes())
    monitor.evaluate(KnownMaps(clip, (ON_OBJECT, OFF_OBJECT), (0.5, 0.3)), step=0, epoch=0)

    outcome = monitor.evaluate(KnownMaps(clip, [DEGENERATE["not finite"]] * 2, (math.nan, 0.3)), step=1, epoch=0)

    assert outcome.metrics == pytest.approx(
        {
            "drift": 1,
            "drift_max": 1,
            "named_without_object": 1,
            "similarity": (-1 + 0.3) / 2,
            "flagged": 2,
            "alarm": 1,
            "degenerate": 2,
            "energy_inside_mask": 0,
            "pointing": 0,
        }
    )


@pytest.mark.slow
def test_a_long_history_keeps_the_first_the_last_and_evenly_spaced_evaluations(
    clip: ClipModel, unchecked: None
) -> None:
    explainer = LocalExplainer(clip, MapSettings(method="hirescam"))
    monitor, sizes = monitor_of_one_probe(), []
    for step in range(EVALUATIONS):
        monitor.evaluate(explainer, step=10 * step, epoch=step)
        sizes.append(len(pickle.dumps(monitor.state()["history"])))
    resumed = monitor_of_one_probe()
    resumed.restore(monitor.state())
    resumed.evaluate(explainer, step=10 * EVALUATIONS, epoch=EVALUATIONS)

    assert max(sizes[MAX_ENTRIES:]) <= 1.1 * sizes[MAX_ENTRIES - 1], "its size is bounded"
    for history, last in ((monitor.history, EVALUATIONS - 1), (resumed.history, EVALUATIONS)):
        assert [history[0].number, history[-1].number] == [0, last]
        assert [entry.step for entry in history] == [10 * entry.number for entry in history]
        *distances, _ = (after.number - before.number for before, after in pairwise(history))
        assert max(distances) <= 2 * min(distances)


@pytest.mark.parametrize("evaluations", [1, 2, 3, MAX_ENTRIES, MAX_ENTRIES + 1, 100, 1000])
def test_the_history_fills_a_contact_sheet_and_is_at_most_twice_as_long(evaluations: int) -> None:
    kept: list[HistoryEntry] = []
    for number in range(evaluations):
        kept = thinned([*kept, HistoryEntry(number, torch.zeros(1, 1, 1), (0.0,), (False,), (MapState.VALID,), number)])

    assert min(evaluations, MAX_COLUMNS) <= len(kept) <= MAX_ENTRIES
    assert [kept[0].number, kept[-1].number] == [0, evaluations - 1]


def test_the_history_keeps_the_first_alarm() -> None:
    kept: list[HistoryEntry] = []
    for number in range(200):
        newest = HistoryEntry(number, torch.zeros(1, 1, 1), (0.0,), (False,), (MapState.VALID,), number)
        kept = thinned([*kept, replace(newest, alarm=number in (7, 25, 90))])

    assert next(entry.number for entry in kept if entry.alarm) == 7
    assert len(kept) <= MAX_ENTRIES + 1
