"""A run whose maps are easy to tell apart: one corner of each is lit, and moves as ``PROBES`` says."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from clipcam_lightning.monitoring.evaluation import Evaluation
from tests.support.synthetic_evaluations import evaluations_of, snapshot_of

GRID, SIZE = (3, 5), (96, 160)  # rows and columns of a map, height and width of an image; neither is square
STEPS = (0, 10, 20, 30)
TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = (0, 0), (0, -1), (-1, 0), (-1, -1)
CORNERS = (TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT)
NOWHERE = None
PROBES = {  # the lit corner and its brightness at each step
    "unknown": [(NOWHERE, 0.0), (TOP_LEFT, 1.0), (BOTTOM_RIGHT, 1.0), (BOTTOM_RIGHT, 1.0)],
    "still": [(BOTTOM_LEFT, 2.0)] * 4,
    "walks": [(TOP_LEFT, 1.0), (TOP_RIGHT, 1.0), (BOTTOM_RIGHT, 1.0), (BOTTOM_RIGHT, 1.0)],
    "fades": [(TOP_RIGHT, 4.0), (TOP_RIGHT, 2.0), (TOP_RIGHT, 1.0), (TOP_RIGHT, 0.0625)],
    "vanishes": [(TOP_LEFT, 1.0), (TOP_LEFT, 1.0), (TOP_LEFT, 1.0), (NOWHERE, 0.0)],
    "slow": [(TOP_LEFT, 1.0), (TOP_LEFT, 1.0), (TOP_LEFT, 1.0), (TOP_RIGHT, 1.0)],
}
NAMES = tuple(PROBES)
PROMPTS = tuple(f"a photo of what {name}" for name in NAMES)
COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128), (220, 220, 60))
STEADY = 0.125  # share of the brightness that all cells of a lit map have


def lit(corner: tuple[int, int] | None, brightness: float) -> Float[Tensor, "3 5"]:
    """Make a map with one lit corner; all zero without a corner."""
    map_ = torch.zeros(GRID)
    if corner is not None:
        map_ += STEADY * brightness
        map_[corner] = brightness
    return map_


def known_maps() -> dict[int, Float[Tensor, "n 3 5"]]:
    """Make the raw maps of all probes, by step."""
    return {step: torch.stack([lit(*places[i]) for places in PROBES.values()]) for i, step in enumerate(STEPS)}


def images() -> UInt8[Tensor, "n 3 96 160"]:
    """Make an image per probe, of one colour, which a JPEG preserves.

    That of "slow" is a ramp: redder to the right and greener to the bottom.
    """
    height, width = SIZE
    flat = torch.tensor(COLORS, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, *SIZE)
    red, green = torch.linspace(0, 250, width).expand(SIZE), torch.linspace(0, 250, height)[:, None].expand(SIZE)
    ramp = torch.stack([red, green, torch.full(SIZE, 60.0)]).round().to(torch.uint8)
    return torch.cat([flat, ramp[None]])


def known_evaluations(baseline: tuple[int, int] | None = None) -> list[Evaluation]:
    """Evaluate the known maps, against a stored baseline with this lit corner if there is one."""
    digests = [f"digest of {name}" for name in NAMES]
    before = torch.stack([lit(baseline, 1.0)] * len(NAMES))
    stored = snapshot_of(before, PROMPTS, NAMES, digests, step=5) if baseline else None
    return evaluations_of(known_maps(), PROMPTS, NAMES, images(), stored, digests)
