"""Figures of raw maps: how alike two are, where one points, whether it says anything at all."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.fuse import resize_maps

# Of a map's cells: for the IoU, for the place common to many maps, for a map's own new spot.
TOP_FRACTION, COMMON_FRACTION, PEAK_FRACTION = 0.2, 0.05, 0.02


def degeneracy(map_: Float[Tensor, "h w"]) -> str:
    """Why a map says nothing: ``"not finite"``, ``"all zero"`` or ``"constant"``; empty for a sound one."""
    if not map_.isfinite().all():
        return "not finite"
    if not map_.any():
        return "all zero"
    spread = (map_.max() - map_.min()) / map_.abs().max()
    return "constant" if spread < 1e-6 else ""


def correlation(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """CC: Pearson's correlation of two maps over their cells, -1 to 1; NaN where a map is degenerate.

    Source: Bylinskii et al. 2019, What do different evaluation metrics tell us about saliency models, sec. 4.1.3.
    """
    a, b = (_unit(map_.flatten(1).double()) for map_ in (a, b))
    return (a * b).sum(1).clamp(-1, 1).float()


def top_iou(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Overlap of the hottest fifth of the cells: intersection over union, 0 to 1; NaN if neither map is hot anywhere.

    A map with fewer cells above its minimum than that has only these: cold cells are never among the hottest.
    """
    top_a, top_b = _top_cells(a), _top_cells(b)
    return torch.div((top_a & top_b).sum((1, 2)), (top_a | top_b).sum((1, 2)))


def center_shift(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Distance between the centres of mass, as a fraction of the image's diagonal, 0 to 1.

    NaN where a map has no positive cell.
    """
    distance: Tensor = torch.linalg.vector_norm(_center_of_mass(a) - _center_of_mass(b), dim=1)
    return distance / math.sqrt(2)


def js_distance(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Jensen-Shannon distance of the maps' mass: 0 the same, 1 nowhere the same; NaN where a map has no positive cell.

    The square root of the divergence in bits.

    Source: Endres and Schindelin 2003, A new metric for probability distributions
    """
    a, b = (_mass(maps.double()).flatten(1) for maps in (a, b))
    middle = (a + b) / 2
    bits = (torch.special.xlogy(a, a / middle) + torch.special.xlogy(b, b / middle)) / (2 * math.log(2))
    both = torch.where(middle > 0, bits, middle)  # middle is 0 where both are, and NaN where one map has no mass
    return both.sum(1).clamp_min(0).sqrt().float()


def shared_gain(
    a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"], pictures: Int[Tensor, "n"] | None = None
) -> Float[Tensor, "n"]:
    """Share of each map's mass that ``b`` newly has at the place where the other pictures' maps gained most, -1 to 1.

    The place is a twentieth of the cells, not necessarily connected, those with the highest mean gain of all maps of
    other pictures. A picture has no part in where it is looked at: if each map moves to somewhere else, the expected
    gain is that of any cells, about 0, however few the maps. NaN for a map without positive cell, and if there is no
    sound map of another picture.

    Args:
        a: before.
        b: now.
        pictures: equal numbers, below ``n``, where maps are of the same picture; by default each is of its own.
    """
    gained = _gained(a, b).flatten(1)
    sound = gained.isfinite().all(1)
    known = torch.where(sound[:, None], gained, 0.0)
    own = torch.arange(len(a)) if pictures is None else pictures
    others = _of_others(known, own)
    places = others.topk(_few(gained.shape[1], COMMON_FRACTION), dim=1).indices
    at_place = known.gather(1, places).sum(1).float()
    has_others = _of_others(sound[:, None].to(known), own)[:, 0] > 0
    return at_place.where(sound & has_others, torch.nan)


def concentration(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Share of each map's mass that ``b`` newly has in the fiftieth of the cells that gained most, 0 to 1.

    High where a map gathers in a spot, low where it spreads. NaN for a map without positive cell.
    """
    gained = _gained(a, b).flatten(1).clamp_min(0)
    return gained.topk(_few(gained.shape[1], PEAK_FRACTION), dim=1).values.sum(1).float()


def energy_inside(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n y x"]) -> Float[Tensor, "n"]:
    """Share of a map's mass that lies inside the mask, 0 to 1; NaN for a map without mass.

    Each cell counts by the fraction of it that the mask covers.

    Source: Wang et al. 2020, Score-CAM, sec. 4.3 (energy-based pointing game), https://arxiv.org/abs/1910.01279
    """
    mass, cover = maps.clamp_min(0), F.interpolate(masks[:, None].float(), size=maps.shape[-2:], mode="area")[:, 0]
    return (mass * cover).sum((1, 2)) / mass.sum((1, 2))


def pointing_hit(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n y x"]) -> Bool[Tensor, "n"]:
    """Whether the hottest pixel of the enlarged map lies on the mask.

    Source: Zhang et al. 2016, Top-down neural attention by excitation backprop, sec. 4.2 (pointing game, without
    its 15-pixel tolerance), https://arxiv.org/abs/1608.00507
    """
    hottest = resize_maps(maps, (masks.shape[-2], masks.shape[-1])).flatten(1).argmax(1, keepdim=True)
    return masks.flatten(1).gather(1, hottest)[:, 0]


def _unit(rows: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    centered = rows - rows.mean(1, keepdim=True)
    return F.normalize(centered, dim=1, eps=0.0)


def _top_cells(maps: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """The hottest fifth; of equally hot cells the earlier ones."""
    count = max(1, round(TOP_FRACTION * maps[0].numel()))
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    top = torch.zeros_like(maps.flatten(1), dtype=torch.bool).scatter(1, order[:, :count], True)
    return top.view_as(maps) & (maps > maps.amin((1, 2), keepdim=True))


def _center_of_mass(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 2"]:
    """(y, x) with the image's sides as unit; cell centres lie half a cell in."""
    mass = _mass(maps)
    y, x = ((torch.arange(side, device=maps.device, dtype=mass.dtype) + 0.5) / side for side in maps.shape[-2:])
    return torch.stack([(mass.sum(2) * y).sum(1), (mass.sum(1) * x).sum(1)], dim=1)


def _few(cells: int, fraction: float) -> int:
    return math.ceil(fraction * cells)


def _of_others(rows: Float[Tensor, "n k"], own: Int[Tensor, "n"]) -> Float[Tensor, "n k"]:
    """The sum of all rows but those with the same number."""
    return rows.sum(0) - torch.zeros_like(rows).index_add(0, own, rows)[own]


def _gained(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    return _mass(b.double()) - _mass(a.double())


def _mass(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """The positive part, scaled to sum 1."""
    mass = maps.clamp_min(0)
    return mass / mass.sum((1, 2), keepdim=True)
