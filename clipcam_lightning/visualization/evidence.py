"""Images of the evidence: what the maps look at, and which prompts other objects get on a background."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.analysis.interventions import fill_regions, transplant
from clipcam_lightning.cam.display.drawing import to_image
from clipcam_lightning.cam.lettering import letter
from clipcam_lightning.cam.map_state import map_state
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.visualization.drawing import TILE, enlarge

CROP = 1 / 3  # of the shorter side of the image
GROUNDS, OBJECTS = 4, 5  # of the images of transplants: rows, and objects per row

PixelsOf = Callable[[list[int]], UInt8[Tensor, "n 3 y x"]]


@dataclass(frozen=True)
class Ground:
    """A ground and what other objects on it are called.

    Attributes:
        probe: number of the probe whose ground it is.
        donors: numbers of the probes whose objects are put on it.
        called: for each, the number of a probe with the prompt that it is closest to.
        called_before: the same at the run's first baseline; -1 if it was not tried then.
    """

    probe: int
    donors: list[int]
    called: list[int]
    called_before: list[int]


@dataclass(frozen=True, eq=False)
class TransplantImage:
    """One object on a ground.

    Attributes:
        image: what the model sees.
        called: the prompt it is closest to.
        called_before: the same at the run's first baseline; ``None`` if it was not tried then.
        follows: whether ``called`` is the prompt of the ground.
    """

    image: Image.Image
    called: str
    called_before: str | None
    follows: bool


@dataclass(frozen=True, eq=False)
class GroundImages:
    """One ground with several objects.

    Attributes:
        name: of the probe whose ground it is.
        prompt: of this probe.
        ground: without object.
        transplants: with other objects.
    """

    name: str
    prompt: str
    ground: Image.Image
    transplants: list[TransplantImage]


def draw_crop(pixels: UInt8[Tensor, "3 y x"], map_: Float[Tensor, "h w"]) -> Image.Image:
    """Cut out what a map looks at: a third of the image around its hottest place.

    Args:
        pixels: input of the model.
        map_: raw. In place of a degenerate map stands what its state says.

    Returns:
        A square, enlarged.
    """
    state = map_state(map_)
    if state.is_degenerate:
        return letter(to_image(torch.full((3, TILE, TILE), 128, dtype=torch.uint8, device="cpu")), state.words)
    height, width = pixels.shape[1:]
    side = max(1, round(CROP * min(height, width)))
    cells = map_.float().clamp_min(0)
    heat = cells + F.avg_pool2d(cells[None, None], 3, stride=1, padding=1)[0, 0]  # a large spot before a small one
    row, column = divmod(int(heat.argmax()), heat.shape[1])
    middles = (row + 0.5) * height / heat.shape[0], (column + 0.5) * width / heat.shape[1]
    top, left = (
        min(max(0, round(middle - side / 2)), length - side)
        for middle, length in zip(middles, (height, width), strict=True)
    )
    return to_image(enlarge(pixels[:, top : top + side, left : left + side], TILE))


def draw_crops(
    pixels: UInt8[Tensor, "3 y x"], baseline: Float[Tensor, "h w"], now: Float[Tensor, "h w"]
) -> tuple[Image.Image, Image.Image]:
    """Cut out what a map looked at before, and what it looks at now and did not before.

    Args:
        pixels: input of the model.
        baseline: raw map.
        now: raw map.

    Returns:
        The hottest place of the baseline, and the place where the map gained most in units of its largest value.
    """
    before, after = relative_saliency(torch.stack([baseline, now]))
    gain = (after - before).clamp_min(0)
    moved = not map_state(now).is_degenerate and not map_state(gain).is_degenerate
    return draw_crop(pixels, baseline), draw_crop(pixels, gain if moved else now)


def draw_transplants(
    pixels_of: PixelsOf, baseline: Snapshot, snapshot: Snapshot, report: DriftReport
) -> list[GroundImages]:
    """Draw other objects on the grounds that the evidence is about, most conspicuous first.

    Args:
        pixels_of: gets the images of probes by their numbers.
        baseline: with objects and donors.
        snapshot: with donors, and what the transplants are called.
        report: the comparison.

    Returns:
        At most four grounds; none if no evidence is shown.
    """
    prompts = snapshot.prompts
    drawn = []
    for ground in list_grounds(baseline, snapshot, report):
        empty, *images = draw_ground(pixels_of, baseline, ground)
        own = prompts[ground.probe]
        called = [
            (prompts[now], None if before == NONE else prompts[before])
            for now, before in zip(ground.called, ground.called_before, strict=True)
        ]
        transplants = [
            TransplantImage(image, now, before, now == own) for image, (now, before) in zip(images, called, strict=True)
        ]
        drawn.append(GroundImages(snapshot.names[ground.probe], own, empty, transplants))
    return drawn


def list_grounds(baseline: Snapshot, snapshot: Snapshot, report: DriftReport) -> list[Ground]:
    """List the grounds that the evidence is about, most conspicuous first.

    Args:
        baseline: with objects and donors.
        snapshot: with what the transplants are called.
        report: the comparison.

    Returns:
        At most four grounds; none if no evidence is shown.
    """
    evidence, named, named_before = report.evidence, snapshot.transplants_named, baseline.transplants_named
    if evidence is None or not evidence.shown or baseline.objects is None:
        return []
    if snapshot.donors is None or baseline.donors is None or named is None or named_before is None:
        return []
    named_before = named_before.where(snapshot.donors == baseline.donors, NONE)
    probes = report.probes
    grounds = [i for i, probe in enumerate(probes) if evidence.is_about(probe)]
    grounds.sort(key=lambda i: probes[i].transplants_before.pull - probes[i].transplants.pull)
    listed = []
    for i in grounds[:GROUNDS]:
        columns = [k for k, donor in enumerate(snapshot.donors[i, :OBJECTS].tolist()) if donor != NONE]
        donors, called, called_before = (each[i, columns].tolist() for each in (snapshot.donors, named, named_before))
        listed.append(Ground(i, donors, called, called_before))
    return listed


def draw_ground(pixels_of: PixelsOf, baseline: Snapshot, ground: Ground) -> list[Image.Image]:
    """Draw a ground without its object, and then with the object of each donor.

    Args:
        pixels_of: gets the images of probes by their numbers.
        baseline: with objects.
        ground: what to draw.
    """
    assert baseline.objects is not None
    own, donors = [ground.probe], ground.donors
    empty = fill_regions(pixels_of(own).float(), baseline.objects[own])
    filled = transplant(empty.expand(len(donors), -1, -1, -1), pixels_of(donors).float(), baseline.objects[donors])
    return [_draw(image) for image in torch.cat([empty, filled])]


def _draw(image: Float[Tensor, "3 y x"]) -> Image.Image:
    return to_image(enlarge(image.round().clamp(0, 255).to(torch.uint8), TILE))
