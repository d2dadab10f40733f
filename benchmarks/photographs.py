"""Probes that are photographs: drawn pictures take less room as JPEG."""

import numpy as np
from sklearn.datasets import load_sample_images

from clipcam_lightning import Probe, ProbeSet


def photographs(count: int, side: int) -> list[np.ndarray]:
    """Crops of two photographs of 427x640, so many."""
    found, sources = [], load_sample_images().images
    for i in range(count):
        left, top = 37 * i % 400, 23 * i % 200
        found.append(sources[i % 2][top : top + side, left : left + side])
    return found


def probe_set(count: int, side: int) -> ProbeSet:
    """Photographs with a prompt each."""
    return ProbeSet(
        Probe(image, "a photo of a flower" if i % 2 else "a photo of a temple", name=f"probe-{i}")
        for i, image in enumerate(photographs(count, side))
    )
