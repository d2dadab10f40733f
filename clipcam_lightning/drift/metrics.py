"""Metrics of raw maps: how alike two maps are, and where a map points."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.cam.map_state import map_state

# Fractions of a map's cells: for the IoU, for the place shared by the images, for the spot of a single map.
TOP_FRACTION, SHARED_FRACTION, SPOT_FRACTION = 0.2, 0.05, 0.02


def correlation(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Correlate the maps of two evaluations, cell by cell (CC, Pearson's correlation).

    Source: Bylinskii et al. 2019, What do different evaluation metrics tell us about saliency models, sec. 4.1.3,
    https://arxiv.org/abs/1604.03605

    Args:
        a: raw maps.
        b: raw maps of the same probes.

    Returns:
        One value per pair of maps, -1 to 1; NaN if one of them is constant or not finite.
    """
    a, b = (_standardize(maps.flatten(1).double()) for maps in (a, b))
    return (a * b).sum(1).clamp(-1, 1).float()


def top_iou(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Intersection over union of the hottest 20 % of the cells.

    The coldest cells are never among the hottest: a map in which fewer than 20 % of the cells lie above the minimum
    has only these.

    Args:
        a: raw maps.
        b: raw maps of the same probes.

    Returns:
        One value per pair of maps, 0 to 1; NaN if both maps are constant.
    """
    top_a, top_b = _top_cells(a), _top_cells(b)
    return torch.div((top_a & top_b).sum((1, 2)), (top_a | top_b).sum((1, 2)))


def center_shift(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Distance between the centres of mass.

    Args:
        a: raw maps; negative cells have no mass.
        b: raw maps of the same probes.

    Returns:
        One value per pair of maps, as a fraction of the image's diagonal, 0 to 1; NaN if a map has no positive cell.
    """
    distance: Tensor = torch.linalg.vector_norm(_center_of_mass(a) - _center_of_mass(b), dim=1)
    return distance / math.sqrt(2)


def js_distance(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Jensen-Shannon distance of the maps' mass: the square root of the divergence in bits.

    Source: Endres and Schindelin 2003, A new metric for probability distributions

    Args:
        a: raw maps; negative cells have no mass.
        b: raw maps of the same probes.

    Returns:
        One value per pair of maps: 0 for equal maps, 1 for maps that do not overlap, NaN if a map has no positive cell.
    """
    a, b = (_mass(maps.double()).flatten(1) for maps in (a, b))
    middle = (a + b) / 2
    bits = (torch.special.xlogy(a, a / middle) + torch.special.xlogy(b, b / middle)) / (2 * math.log(2))
    both = torch.where(middle > 0, bits, middle)  # middle is 0 where both are, and NaN where one map has no mass
    return both.sum(1).clamp_min(0).sqrt().float()


def shared_gain(
    a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"], images: Int[Tensor, "n"] | None = None
) -> Float[Tensor, "n"]:
    """Share of each map's mass that is new at the place where the maps of the other images gained most.

    The place is the 5 % of the cells, not necessarily connected, with the highest mean gain over the maps of all other
    images. An image has no influence on its own place: if each map moves somewhere else, the expected gain is that of
    arbitrary cells, about 0, however few maps there are.

    Args:
        a: raw maps before.
        b: raw maps now.
        images: a number below ``n`` per map; maps of the same image have the same number. By default each map has an
            image of its own.

    Returns:
        One value per map, -1 to 1; NaN if a map has no positive cell or no other image has a valid map.
    """
    gains = _gains(a, b).flatten(1)
    is_valid = gains.isfinite().all(1)
    valid_gains = torch.where(is_valid[:, None], gains, 0.0)
    images = torch.arange(len(a), device=a.device) if images is None else images
    places = _sum_of_others(valid_gains, images).topk(_count(gains.shape[1], SHARED_FRACTION), dim=1).indices
    at_place = valid_gains.gather(1, places).sum(1).float()
    has_others = _sum_of_others(is_valid[:, None].to(gains), images)[:, 0] > 0
    return at_place.where(is_valid & has_others, torch.nan)


def concentration(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Share of each map's mass that is new in the 2 % of its cells that gained most.

    Args:
        a: raw maps before.
        b: raw maps now.

    Returns:
        One value per map, 0 to 1: high if the map concentrates in a spot, low if it spreads; NaN if a map has no
        positive cell.
    """
    gains = _gains(a, b).flatten(1).clamp_min(0)
    return gains.topk(_count(gains.shape[1], SPOT_FRACTION), dim=1).values.sum(1).float()


def energy_inside(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n y x"]) -> Float[Tensor, "n"]:
    """Share of each map's mass that lies inside the mask.

    Each cell counts by the fraction of it that the mask covers. A degenerate map has no energy anywhere: 0.

    Source: Wang et al. 2020, Score-CAM, sec. 4.3 (energy-based pointing game), https://arxiv.org/abs/1910.01279

    Args:
        maps: raw saliency; negative cells have no mass.
        masks: of the objects, in pixels.

    Returns:
        One value per map, 0 to 1.
    """
    mass, cover = _mass(maps.double()), F.interpolate(masks[:, None].double(), size=maps.shape[-2:], mode="area")[:, 0]
    return (mass * cover).sum((1, 2)).float().where(is_valid(maps), 0.0)


def pointing_hit(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n y x"]) -> Bool[Tensor, "n"]:
    """Whether the hottest pixel of the enlarged map lies on the mask. A degenerate map points nowhere: a miss.

    Source: Zhang et al. 2016, Top-down neural attention by excitation backprop, sec. 4.2 (pointing game, without
    its 15-pixel tolerance), https://arxiv.org/abs/1608.00507

    Args:
        maps: raw saliency.
        masks: of the objects, in pixels.

    Returns:
        One value per map.
    """
    hottest = resize_maps(maps, (masks.shape[-2], masks.shape[-1])).flatten(1).argmax(1, keepdim=True)
    return masks.flatten(1).gather(1, hottest)[:, 0] & is_valid(maps)


def is_valid(maps: Float[Tensor, "n h w"]) -> Bool[Tensor, "n"]:
    """Whether each map carries information: is not degenerate (:func:`~clipcam_lightning.map_state`)."""
    return torch.tensor([not map_state(map_).is_degenerate for map_ in maps], device=maps.device)


def _standardize(rows: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Rows with mean 0 and norm 1; NaN for a constant row."""
    centered = rows - rows.mean(1, keepdim=True)
    return F.normalize(centered, dim=1, eps=0.0)


def _top_cells(maps: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """The hottest 20 %; of equally hot cells the earlier ones."""
    count = max(1, round(TOP_FRACTION * maps[0].numel()))
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    top = torch.zeros_like(maps.flatten(1), dtype=torch.bool).scatter(1, order[:, :count], True)
    return top.view_as(maps) & (maps > maps.amin((1, 2), keepdim=True))


def _center_of_mass(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 2"]:
    """(y, x) in units of the image's sides; cell centres lie half a cell in."""
    mass = _mass(maps)
    y, x = ((torch.arange(side, device=maps.device, dtype=mass.dtype) + 0.5) / side for side in maps.shape[-2:])
    return torch.stack([(mass.sum(2) * y).sum(1), (mass.sum(1) * x).sum(1)], dim=1)


def _count(cells: int, fraction: float) -> int:
    return math.ceil(fraction * cells)


def _sum_of_others(rows: Float[Tensor, "n k"], images: Int[Tensor, "n"]) -> Float[Tensor, "n k"]:
    """For each row the sum of the rows of all other images."""
    return rows.sum(0) - torch.zeros_like(rows).index_add(0, images, rows)[images]


def _gains(a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    return _mass(b.double()) - _mass(a.double())


def _mass(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """The positive part, scaled to sum 1."""
    mass = maps.clamp_min(0)
    return mass / mass.sum((1, 2), keepdim=True)
