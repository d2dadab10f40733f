"""What is observed of a fine-tuned model after each epoch, so that any rule can judge it later without a model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from benchmarks.finetunes import FineTune, class_texts, load_epoch
from benchmarks.worlds.world import WORLDS
from clipcam_lightning import ClipModel, Snapshot, explain, find_clip
from clipcam_lightning.analysis.interventions import fill_regions, in_pixels, object_regions, window_drops
from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.snapshot import SnapshotInfo
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.monitoring.background import score_background
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

FILE_KIND = "observations"


@dataclass(frozen=True, eq=False)
class Observations:
    """What is observed at the start and after each epoch, of probes with known classes.

    Attributes:
        maps: raw, of ``auto``.
        cosines: of each whole image with the caption of each class.
        masked: the same without the objects, by their masks.
        guessed: the same without the objects, by the regions found at the start.
        classes: of the objects.
        masks: of the objects.
    """

    maps: Float[Tensor, "e n h w"]
    cosines: Float[Tensor, "e n c"]
    masked: Float[Tensor, "e n c"]
    guessed: Float[Tensor, "e n c"]
    classes: Int[Tensor, "n"]
    masks: Bool[Tensor, "n y x"]

    def snapshots(self, rows: Int[Tensor, "m"], *, masks: bool) -> list[Snapshot]:
        """Make the snapshots that a monitor with these probes would take.

        Args:
            rows: numbers of the probes.
            masks: whether the masks are known.
        """
        classes = self.classes[rows]
        prompts = tuple(str(each) for each in classes.tolist())
        names = tuple(str(row) for row in rows.tolist())
        snapshots = []
        for epoch, maps in enumerate(self.maps[:, rows]):
            cosines = (self.masked if masks else self.guessed)[epoch][rows][:, classes]
            background = score_background(cosines, prompts)
            unknown = torch.full((len(rows),), torch.nan)
            snapshots.append(
                Snapshot(
                    maps=maps,
                    similarity=self.cosines[epoch, rows, classes],
                    energy_inside_mask=metrics.energy_inside(maps, self.masks[rows]) if masks else unknown,
                    pointing=metrics.pointing_hit(maps, self.masks[rows]).float() if masks else unknown,
                    names=names,
                    prompts=prompts,
                    info=_info(epoch),
                    background_score=background.score,
                    named_without_object=background.named,
                )
            )
        return snapshots

    def accuracy(self) -> list[float]:
        """Share of the probes, 0 to 1, whose own caption is the closest, at the start and after each epoch."""
        return (self.cosines.argmax(2) == self.classes).float().mean(1).tolist()


def observe(run: FineTune, folder: Path, count: int) -> Observations:
    """Observe a run on probes that carry cues as its training images do, unless that is already done.

    Args:
        run: what was run.
        folder: of the weights; the observations are written there too.
        count: of the probes.
    """
    file = folder / f"observed-{count}.safetensors"
    try:
        return Observations(**load_tensors(file, FILE_KIND)[0])
    except SnapshotError:
        observed = _observe(run, folder, count)
        save_tensors(file, FILE_KIND, {name: value.contiguous() for name, value in vars(observed).items()}, {})
        return observed


def _observe(run: FineTune, folder: Path, count: int) -> Observations:
    model, world, drawn = run.load_model(), WORLDS[run.world], run.draw_probes(count)
    clip = find_clip(model, tokenizer=world.tokenizer)
    images = torch.stack([clip.preprocessing.image(image) for image in drawn.images])
    masks, classes = torch.from_numpy(drawn.masks), torch.from_numpy(drawn.classes)
    enlarged = F.interpolate(masks[:, None].float(), size=images.shape[-2:], mode="nearest")[:, 0] > 0.5
    captions = run.images.captions
    regions: Tensor | None = None
    seen: dict[str, list[Tensor]] = {"maps": [], "cosines": [], "masked": [], "guessed": []}
    for epoch in range(run.settings.epochs + 1):
        load_epoch(run, folder, epoch, model)
        texts = class_texts(run, model, captions).detach()
        maps = explain(clip, images, [[captions[each]] for each in drawn.classes]).maps[:, 0]
        if regions is None:
            found = object_regions(maps, window_drops(images, texts[classes], lambda batch: _embed(clip, batch)))
            regions = in_pixels(found, images)
        seen["maps"].append(maps)
        seen["cosines"].append(_embed(clip, images) @ texts.T)
        seen["masked"].append(_embed(clip, fill_regions(images, enlarged)) @ texts.T)
        seen["guessed"].append(_embed(clip, fill_regions(images, regions)) @ texts.T)
    stacked = {name: torch.stack(each) for name, each in seen.items()}
    return Observations(**stacked, classes=classes, masks=masks)


@torch.no_grad()
def _embed(clip: ClipModel, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
    return torch.cat([clip.embed_images(batch) for batch in images.split(64)])


def _info(epoch: int) -> SnapshotInfo:
    return SnapshotInfo(
        digest="", step=epoch, epoch=epoch, method="", target="", scales=(1.0,), flip=False, fuse="", layers=(),
        fingerprint="", dtype="", versions={},
    )  # fmt: skip
