"""Probes that are photographs, which take more room as JPEG than drawn images."""

import numpy as np
from sklearn.datasets import load_sample_images

from clipcam_lightning import Probe, ProbeSet


def photographs(count: int, side: int) -> list[np.ndarray]:
    """Crop images from the two photographs that scikit-learn ships, of 427x640 pixels.

    Args:
        count: how many crops.
        side: pixels per side.
    """
    crops, sources = [], load_sample_images().images
    for i in range(count):
        left, top = 37 * i % 400, 23 * i % 200
        crops.append(sources[i % 2][top : top + side, left : left + side])
    return crops


def probe_set(count: int, side: int) -> ProbeSet:
    """Make a probe of each crop, named ``probe-<i>``."""
    return ProbeSet(
        Probe(image, "a photo of a flower" if i % 2 else "a photo of a temple", name=f"probe-{i}")
        for i, image in enumerate(photographs(count, side))
    )
