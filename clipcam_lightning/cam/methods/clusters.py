"""Clusters of similar patches, which some perturbation-based methods hide one at a time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

ROUNDS = 10


def cluster_patches(activations: Float[Tensor, "b c h w"], count: int) -> Float[Tensor, "b {count} h w"]:
    """Divide the patches of each image into clusters.

    Args:
        activations: output of a layer on its grid.
        count: number of clusters; some are empty if fewer patches differ.

    Returns:
        For each cluster a mask: 1 for its patches, else 0.
    """
    clusters = torch.stack([_cluster(each.flatten(1).T, count) for each in activations])
    numbers = torch.arange(count, device=clusters.device)
    members = (clusters[:, None] == numbers[:, None]).to(activations.dtype)
    masks: Tensor = members.unflatten(2, activations.shape[-2:])
    return masks


def _cluster(patches: Float[Tensor, "s c"], count: int) -> Int[Tensor, "s"]:
    """Assign patches to clusters by k-means on cosines, started deterministically from farthest points."""
    patches = F.normalize(patches, dim=1)
    centers = F.normalize(patches.mean(dim=0, keepdim=True), dim=1)
    for _ in range(count - 1):
        farthest = (patches @ centers.T).amax(dim=1).argmin()
        centers = torch.cat([centers, patches.index_select(0, farthest[None])])  # indexing would wait for the device
    for _ in range(ROUNDS):
        nearest = (patches @ centers.T).argmax(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, patches)
        centers = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=1), centers)
    return (patches @ centers.T).argmax(dim=1)
