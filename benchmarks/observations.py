"""What is observed of a fine-tuned model after each epoch, so that any rule can judge it later without a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cued_images import Drawn
from benchmarks.finetunes import FineTune, ProbeChoice, class_texts, is_done, load_epoch
from benchmarks.worlds.world import WORLDS
from clipcam_lightning import ClipModel, Snapshot, compare, explain, find_clip
from clipcam_lightning.analysis.interventions import (
    choose_windows,
    fill_regions,
    in_pixels,
    object_regions,
    spread_drops,
    window_drops,
)
from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.evidence import list_outstanding
from clipcam_lightning.drift.snapshot import SnapshotInfo
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.monitoring.background import score_background
from clipcam_lightning.monitoring.transplants import TRANSPLANTS, choose_donors, embed_transplants, fill_donors
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

FILE_KIND = "observations"


@dataclass(frozen=True, eq=False)
class Observations:
    """What is observed at the start and after each epoch, of probes with known classes.

    Attributes:
        maps: raw, of ``auto``.
        cosines: of each whole image with the caption of each class.
        without_object: the same without the objects: by their masks, and by the regions found at the start.
        transplants: the same of other probes' objects on the ground of each probe.
        donors: whose objects these are: more on the grounds that stand out.
        classes: of the objects.
        masks: of the objects.
        object_cells: of each object's region as it is found at the start, on the grid of the maps.
    """

    maps: Float[Tensor, "e n h w"]
    cosines: Float[Tensor, "e n c"]
    without_object: Float[Tensor, "2 e n c"]
    transplants: Float[Tensor, "2 e n k c"]
    donors: Int[Tensor, "2 e n k"]
    classes: Int[Tensor, "n"]
    masks: Bool[Tensor, "n y x"]
    object_cells: Bool[Tensor, "n h w"]

    def snapshots(self, *, masks: bool) -> list[Snapshot]:
        """Make the snapshots that a monitor with these probes would take.

        Args:
            masks: whether the masks are known.
        """
        prompts, names = (tuple(map(str, each)) for each in (self.classes.tolist(), range(len(self.classes))))
        by, unknown = 0 if masks else 1, torch.full((len(names),), torch.nan)
        present, classes = self.classes.unique(return_inverse=True)
        images = torch.arange(len(names))  # all are different
        snapshots = []
        for epoch, maps in enumerate(self.maps):
            similarity = self.cosines[epoch].gather(1, self.classes[:, None])[:, 0]
            background = score_background(self.without_object[by, epoch][:, present], classes, classes, images)
            donors = self.donors[by, epoch]
            named = self.transplants[by, epoch][..., self.classes].argmax(2).where(donors != NONE, NONE)
            snapshots.append(
                Snapshot(
                    maps=maps,
                    similarity=similarity,
                    energy_inside_mask=metrics.energy_inside(maps, self.masks) if masks else unknown,
                    pointing=metrics.pointing_hit(maps, self.masks).float() if masks else unknown,
                    names=names,
                    prompts=prompts,
                    info=_info(epoch),
                    closest=self.cosines[epoch][:, self.classes].argmax(1),
                    background_score=background.score,
                    named_without_object=background.named,
                    donors=donors,
                    transplants_named=named,
                )
            )
        return snapshots

    def accuracy(self) -> list[float]:
        """Share of the probes, 0 to 1, whose own caption is the closest, at the start and after each epoch."""
        return (self.cosines.argmax(2) == self.classes).float().mean(1).tolist()


def observe(run: FineTune, folder: Path, probes: ProbeChoice) -> Observations:
    """Observe a run, unless that is already done, with the donors that the present rule chooses.

    Args:
        run: what was run.
        folder: of the weights; the observations are written there too.
        probes: that watch it.
    """
    file, observed_run = _file(run, folder, probes), _ObservedRun(run, folder, probes)
    observed = _load(file)
    if observed is None:
        observed = _observe_without_transplants(observed_run)
        _save(observed, file)
    donors = torch.stack([_choose_donors(observed, masks=masks) for masks in (True, False)])
    if not torch.equal(donors, observed.donors):
        observed = _observe_transplants(observed_run, observed, donors)
        _save(observed, file)
    return observed


def is_observed(run: FineTune, folder: Path, probe_sets: Sequence[ProbeChoice]) -> bool:
    """Whether a run with its present settings, and its observations on these probes, are in a folder.

    The donors may be others than the present rule chooses.
    """
    return is_done(run, folder) and all(_load(_file(run, folder, probes)) is not None for probes in probe_sets)


def _load(file: Path) -> Observations | None:
    """Load observations; ``None`` if there are none with the present fields."""
    try:
        tensors = load_tensors(file, FILE_KIND)[0]
    except SnapshotError:
        return None
    return Observations(**tensors) if tensors.keys() == {field.name for field in fields(Observations)} else None


def _save(observed: Observations, file: Path) -> None:
    save_tensors(file, FILE_KIND, {name: value.contiguous() for name, value in vars(observed).items()}, {})


def _file(run: FineTune, folder: Path, probes: ProbeChoice) -> Path:
    """Name the file of observations: without a cue, probes with and without it are the same."""
    name = str(ProbeChoice(probes.count) if run.settings.cue is None else probes)
    return folder / f"observed, {name}.safetensors"


class _ObservedRun:
    """A run and the probes that watch it; models and images are loaded when they are needed.

    Args:
        run: what was run.
        folder: of the weights.
        probes: that watch it.
    """

    def __init__(self, run: FineTune, folder: Path, probes: ProbeChoice) -> None:
        self._run, self._folder, self._probes = run, folder, probes
        self.captions = run.images.captions

    @cached_property
    def drawn(self) -> Drawn:
        """The probes."""
        return self._run.draw_probes(self._probes)

    @cached_property
    def clip(self) -> ClipModel:
        """The model."""
        return find_clip(self._run.load_model(), tokenizer=WORLDS[self._run.world].tokenizer)

    @cached_property
    def images(self) -> Float[Tensor, "n 3 y x"]:
        """The probes as the model's input."""
        return torch.stack([self.clip.preprocessing.image(image) for image in self.drawn.images])

    def load_epochs(self) -> Iterator[Float[Tensor, "c d"]]:
        """Load the weights of the start and of one epoch after another, and embed the captions."""
        model = self.clip.module
        for epoch in range(self._run.settings.epochs + 1):
            load_epoch(self._run, self._folder, epoch, model)
            yield class_texts(self._run, model, self.captions).detach()

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Embed images with the weights that were loaded last."""
        return torch.cat([self.clip.embed_images(batch) for batch in images.split(64)])

    def regions(self, masks: Bool[Tensor, "n y x"], cells: Bool[Tensor, "n h w"]) -> list[Bool[Tensor, "n y x"]]:
        """Enlarge masks and cells of the objects to the size of the model's input."""
        enlarged = F.interpolate(masks[:, None].float(), size=self.images.shape[-2:], mode="nearest")[:, 0] > 0.5
        return [enlarged, in_pixels(cells, self.images)]


def _observe_without_transplants(run: _ObservedRun) -> Observations:
    """Observe all but other objects on the grounds of the probes."""
    images, drawn = run.images, run.drawn
    masks, classes = torch.from_numpy(drawn.masks), torch.from_numpy(drawn.classes)
    values: dict[str, list[Tensor]] = {"maps": [], "cosines": [], "without_object": []}
    cells: Tensor | None = None
    for texts in run.load_epochs():
        maps = explain(run.clip, images, [[run.captions[each]] for each in drawn.classes]).maps[:, 0]
        if cells is None:
            windows = choose_windows(maps)
            drops = spread_drops(window_drops(images, texts[classes], run.embed, windows), windows)
            cells = object_regions(maps, drops)
        without = [run.embed(fill_regions(images, each)) for each in run.regions(masks, cells)]
        values["maps"].append(maps)
        values["cosines"].append(run.embed(images) @ texts.T)
        values["without_object"].append(torch.stack(without) @ texts.T)
    assert cells is not None
    cosines = torch.stack(values["cosines"])
    epochs, probes, captions = cosines.shape
    return Observations(
        maps=torch.stack(values["maps"]),
        cosines=cosines,
        without_object=torch.stack(values["without_object"], dim=1),
        transplants=torch.zeros(2, epochs, probes, TRANSPLANTS, captions),
        donors=torch.full((2, epochs, probes, TRANSPLANTS), NONE),
        classes=classes,
        masks=masks,
        object_cells=cells,
    )


def _choose_donors(observed: Observations, *, masks: bool) -> Int[Tensor, "e n k"]:
    """Choose donors as an evaluation does that looks suspicious: more of them for the grounds that stand out.

    Args:
        observed: from which the snapshots are made.
        masks: whether the masks are known.
    """
    start, *later = observed.snapshots(masks=masks)
    objects = observed.masks if masks else observed.object_cells
    images, classes = range(len(objects)), observed.classes.tolist()
    donors = choose_donors(classes, images, objects)
    outstanding = [list_outstanding(compare(start, each).probes) for each in later]
    grounds = [[int(probe.name) for probe in each] for each in outstanding]
    return torch.stack([donors, *(fill_donors(donors, each, classes, images, objects) for each in grounds)])


def _observe_transplants(run: _ObservedRun, observed: Observations, donors: Int[Tensor, "2 e n k"]) -> Observations:
    """Observe other objects on the grounds of the probes, where they are others than before.

    Args:
        run: to observe.
        observed: with the transplants of other donors.
        donors: whose objects.
    """
    transplants, new = observed.transplants.clone(), donors.where(donors != observed.donors, NONE)
    regions = run.regions(observed.masks, observed.object_cells)
    for epoch, texts in enumerate(run.load_epochs()):
        for by, objects in enumerate(regions):
            rows = new[by, epoch] != NONE
            if rows.any():
                embedded = embed_transplants(run.images, objects, new[by, epoch], run.embed)
                transplants[by, epoch][rows] = embedded[rows] @ texts.T
    return replace(observed, transplants=transplants, donors=donors)


def _info(epoch: int) -> SnapshotInfo:
    return SnapshotInfo(
        digest="", step=epoch, epoch=epoch, method="", target="", scales=(1.0,), flip=False, fuse="", layers=(),
        fingerprint="", dtype="", versions={},
    )  # fmt: skip
