"""Observations of fine-tunings that were made with the donors of an earlier rule."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import observations
from benchmarks.finetunes import FineTune, ProbeChoice
from benchmarks.observations import Observations, observe
from clipcam_lightning.analysis.interventions import in_pixels
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.monitoring.transplants import choose_donors, fill_donors

EPOCHS, PROBES, CLASSES, SIZE = 3, 12, 4, 8
RUN, CHOICE = FineTune("shapes", "class token", "usual", 1000), ProbeChoice(PROBES)


class LinearRun:
    """A run whose model of each epoch is a linear map of the pixels, and counts the images that it embeds."""

    def __init__(self, *_: object) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(PROBES, 3, SIZE, SIZE, generator=generator)
        self.weights = torch.randn(EPOCHS, 3 * SIZE * SIZE, 16, generator=generator)
        self.texts = F.normalize(torch.randn(CLASSES, 16, generator=generator), dim=1)
        self.embedded = 0

    def load_epochs(self) -> Iterator[Tensor]:
        for self.epoch in range(EPOCHS):
            yield self.texts

    def embed(self, images: Tensor) -> Tensor:
        self.embedded += len(images)
        return F.normalize(images.flatten(1) @ self.weights[self.epoch], dim=1)

    def regions(self, masks: Tensor, cells: Tensor) -> list[Tensor]:
        return [masks, in_pixels(cells, self.images)]


def observe_without_transplants(run: LinearRun) -> Observations:
    masks, cells = torch.zeros(PROBES, SIZE, SIZE, dtype=torch.bool), torch.zeros(PROBES, 4, 4, dtype=torch.bool)
    masks[:, 2:5, 2:5], cells[:, 1:3, 1:3] = True, True
    cosines = torch.stack([run.embed(run.images) @ texts.T for texts in run.load_epochs()])
    return Observations(
        maps=torch.rand(EPOCHS, PROBES, 4, 4, generator=torch.Generator().manual_seed(1)),
        cosines=cosines,
        without_object=cosines.expand(2, *cosines.shape).clone(),
        transplants=torch.zeros(2, EPOCHS, PROBES, observations.TRANSPLANTS, CLASSES),
        donors=torch.full((2, EPOCHS, PROBES, observations.TRANSPLANTS), NONE),
        classes=torch.arange(PROBES) % CLASSES,
        masks=masks,
        object_cells=cells,
    )


def test_composites_of_other_donors_are_observed_anew_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[object, Observations] = {}
    runs: list[LinearRun] = []
    monkeypatch.setattr(observations, "_ObservedRun", lambda *_: runs.append(LinearRun()) or runs[-1])
    monkeypatch.setattr(observations, "_observe_without_transplants", observe_without_transplants)
    monkeypatch.setattr(observations, "_load", files.get)
    monkeypatch.setattr(observations, "_save", lambda observed, file: files.update({file: observed}))
    monkeypatch.setattr(observations, "_file", lambda *_: "file")
    # The benchmark's prompts are numbers of classes, which the type checks of the tests refuse.
    monkeypatch.setattr(
        observations, "choose_donors", lambda prompts, *rest: choose_donors([*map(str, prompts)], *rest)
    )
    monkeypatch.setattr(
        observations,
        "fill_donors",
        lambda donors, rows, prompts, *rest: fill_donors(donors, rows, [*map(str, prompts)], *rest),
    )

    first = observe(RUN, tmp_path, CHOICE)
    assert (first.donors != NONE).any()
    assert runs[-1].embedded == EPOCHS * PROBES + int((first.donors != NONE).sum())
    again = observe(RUN, tmp_path, CHOICE)
    assert runs[-1].embedded == 0
    assert torch.equal(again.transplants, first.transplants)

    donors, transplants = first.donors.clone(), first.transplants.clone()
    donors[0, 1, 3, 0] = donors[1, 2, 5, 1] = 3
    transplants[0, 1, 3, 0] = transplants[1, 2, 5, 1] = 9.0
    files["file"] = replace(first, donors=donors, transplants=transplants)
    updated = observe(RUN, tmp_path, CHOICE)
    assert runs[-1].embedded == 2
    assert torch.equal(updated.donors, first.donors)
    torch.testing.assert_close(updated.transplants, first.transplants)
    assert torch.equal(files["file"].donors, first.donors)
