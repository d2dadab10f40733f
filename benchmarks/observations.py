"""What is observed of a fine-tuned model after each epoch, so that any rule can judge it later without a model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

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
from clipcam_lightning.monitoring.transplants import choose_donors, embed_transplants, fill_donors
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
    """

    maps: Float[Tensor, "e n h w"]
    cosines: Float[Tensor, "e n c"]
    without_object: Float[Tensor, "2 e n c"]
    transplants: Float[Tensor, "2 e n k c"]
    donors: Int[Tensor, "2 e n k"]
    classes: Int[Tensor, "n"]
    masks: Bool[Tensor, "n y x"]

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
    """Observe a run, unless that is already done.

    Args:
        run: what was run.
        folder: of the weights; the observations are written there too.
        probes: that watch it.
    """
    file = _file(run, folder, probes)
    try:
        tensors = load_tensors(file, FILE_KIND)[0]
    except SnapshotError:
        tensors = {}
    if tensors.keys() == {field.name for field in fields(Observations)}:
        return Observations(**tensors)
    observed = _observe(run, folder, probes)
    save_tensors(file, FILE_KIND, {name: value.contiguous() for name, value in vars(observed).items()}, {})
    return observed


def is_observed(run: FineTune, folder: Path, probe_sets: Sequence[ProbeChoice]) -> bool:
    """Whether a run with its present settings, and its observations on these probes, are in a folder."""
    try:
        files = [load_tensors(_file(run, folder, probes), FILE_KIND)[0] for probes in probe_sets]
    except SnapshotError:
        return False
    names = {field.name for field in fields(Observations)}
    return all(file.keys() == names for file in files) and is_done(run, folder)


def _file(run: FineTune, folder: Path, probes: ProbeChoice) -> Path:
    """Name the file of observations: without a cue, probes with and without it are the same."""
    name = str(ProbeChoice(probes.count) if run.settings.cue is None else probes)
    return folder / f"observed, {name}.safetensors"


def _observe(run: FineTune, folder: Path, probes: ProbeChoice) -> Observations:
    model, world, drawn = run.load_model(), WORLDS[run.world], run.draw_probes(probes)
    clip = find_clip(model, tokenizer=world.tokenizer)
    images = torch.stack([clip.preprocessing.image(image) for image in drawn.images])
    masks, classes = torch.from_numpy(drawn.masks), torch.from_numpy(drawn.classes)
    enlarged = F.interpolate(masks[:, None].float(), size=images.shape[-2:], mode="nearest")[:, 0] > 0.5
    regions: list[Tensor] = []
    seen: dict[str, list[Tensor]] = {"maps": [], "cosines": [], "without_object": []}

    def embed(batch: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        return _embed(clip, batch)

    for epoch in range(run.settings.epochs + 1):
        load_epoch(run, folder, epoch, model)
        texts = class_texts(run, model, run.images.captions).detach()
        maps = explain(clip, images, [[run.images.captions[each]] for each in drawn.classes]).maps[:, 0]
        if not regions:
            windows = choose_windows(maps)
            drops = spread_drops(window_drops(images, texts[classes], embed, windows), windows)
            regions = [enlarged, in_pixels(object_regions(maps, drops), images)]
        seen["maps"].append(maps)
        seen["cosines"].append(embed(images) @ texts.T)
        seen["without_object"].append(torch.stack([embed(fill_regions(images, each)) for each in regions]) @ texts.T)
    cosines = torch.stack(seen["cosines"])
    observed = Observations(
        maps=torch.stack(seen["maps"]),
        cosines=cosines,
        without_object=torch.stack(seen["without_object"], dim=1),
        transplants=cosines.expand(2, *cosines.shape)[:, :, :, None],
        donors=torch.full((2, *cosines.shape[:2], 1), NONE),
        classes=classes,
        masks=masks,
    )
    donors = torch.stack([_choose_donors(observed, *each) for each in zip((True, False), regions, strict=True)])
    transplants = []
    for epoch in range(run.settings.epochs + 1):
        load_epoch(run, folder, epoch, model)
        texts = class_texts(run, model, run.images.captions).detach()
        embedded = [embed_transplants(images, *each, embed) for each in zip(regions, donors[:, epoch], strict=True)]
        transplants.append(torch.stack(embedded) @ texts.T)
    return replace(observed, transplants=torch.stack(transplants, dim=1), donors=donors)


def _choose_donors(observed: Observations, masks: bool, regions: Bool[Tensor, "n y x"]) -> Int[Tensor, "e n k"]:
    """Choose donors as an evaluation does that looks suspicious: more of them for the grounds that stand out.

    Args:
        observed: without transplants.
        masks: whether the masks are known.
        regions: of the objects.
    """
    start, *later = observed.snapshots(masks=masks)
    images, classes = range(len(regions)), observed.classes.tolist()
    donors = choose_donors(classes, images, regions)
    outstanding = [list_outstanding(compare(start, each).probes) for each in later]
    grounds = [[int(probe.name) for probe in each] for each in outstanding]
    return torch.stack([donors, *(fill_donors(donors, each, classes, images, regions) for each in grounds)])


@torch.no_grad()
def _embed(clip: ClipModel, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
    return torch.cat([clip.embed_images(batch) for batch in images.split(64)])


def _info(epoch: int) -> SnapshotInfo:
    return SnapshotInfo(
        digest="", step=epoch, epoch=epoch, method="", target="", scales=(1.0,), flip=False, fuse="", layers=(),
        fingerprint="", dtype="", versions={},
    )  # fmt: skip
