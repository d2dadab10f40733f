"""A run whose second evaluation is an alarm: other objects are called after the ground that they are put on."""

from dataclasses import replace

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.monitoring.evaluation import Evaluation
from tests.support.synthetic_evaluations import evaluations_of

NAMES, PROMPTS = ("fox", "hen", "cow", "dog"), ("a fox", "a hen", "a cow", "a dog")
SIDE, EDGE = 96, 24  # of the images and of the square objects
GREYS, COLORS = (60, 110, 160, 210), ((250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0))
CORNERS = ((8, 8), (8, 64), (64, 8), (64, 64))  # top and left of each object
DONORS = ((1, 2), (2, 3), (3, 0), (0, 1))
CALLED = ((0, 0), (1, 3), (2, 2), (3, 3))  # at the second evaluation
BEFORE = ((1, 2), (2, 3), (3, 0), (0, NONE))  # at the first: each object is called by its name, and one is not tried
VISIBLE = (1.0, 2 / 3, 1.0, 1.0)


def objects() -> Bool[Tensor, "4 y x"]:
    """Make the masks: a square in another corner of each image."""
    masks = torch.zeros(4, SIDE, SIDE, dtype=torch.bool)
    for mask, (top, left) in zip(masks, CORNERS, strict=True):
        mask[top : top + EDGE, left : left + EDGE] = True
    return masks


def images() -> UInt8[Tensor, "4 3 y x"]:
    """Make the images: a coloured object on a ground that is grey, each of its own."""
    grounds = torch.tensor(GREYS, dtype=torch.uint8).view(4, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    return torch.where(objects()[:, None], torch.tensor(COLORS, dtype=torch.uint8)[:, :, None, None], grounds)


def shortcut_evaluations() -> list[Evaluation]:
    """Make an evaluation that is the baseline, and one that is an alarm."""
    maps = {0: torch.zeros(4, 4, 4), 40: torch.zeros(4, 4, 4)}
    maps[0][[0, 1, 2, 3], [0, 0, 3, 3], [0, 3, 0, 3]] = 1.0  # on the objects
    maps[40][:, 1, 2] = 1.0  # beside them
    first, second = evaluations_of(maps, PROMPTS, NAMES, images())
    before = torch.tensor(BEFORE)
    baseline = replace(
        first.snapshot,
        objects=objects(),
        donors=before,
        transplants_named=before,
        background_score=torch.zeros(4),
        named_without_object=torch.zeros(4),
        closest=torch.arange(4),
    )
    now = replace(
        second.snapshot,
        donors=torch.tensor(DONORS),
        transplants_named=torch.tensor(CALLED),
        background_score=torch.full((4,), 20.0),
        named_without_object=torch.ones(4),
        closest=torch.arange(4),
        covered_loss=torch.tensor([0.5, 0.3, 0.4, torch.nan]),
        control_loss=torch.tensor([0.0, 0.1, -0.1, torch.nan]),
    )
    shared = {"masks": [*objects()], "baseline": baseline, "visible": VISIBLE}
    return [
        replace(first, snapshot=baseline, report=compare(baseline, baseline, DriftRule()), **shared),
        replace(second, snapshot=now, report=compare(baseline, now, DriftRule()), **shared),
    ]
