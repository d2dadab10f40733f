"""Probes that are photographs, which take more room as JPEG than drawn images."""

import numpy as np
from sklearn.datasets import load_sample_images

from clipcam_lightning import Probe, ProbeSet

THINGS = ("a temple", "a flower", "a roof", "a leaf", "a tree", "a petal", "the sky", "a garden")


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


def probe_set(count: int, side: int, masks: bool = False) -> ProbeSet:
    """Make a probe of each crop, named ``probe-<i>``, with one of eight prompts.

    Args:
        count: how many probes.
        side: pixels per side.
        masks: whether each has a mask, the middle of its image.
    """
    middle = np.zeros((side, side), dtype=bool)
    middle[side // 4 : -(side // 4), side // 4 : -(side // 4)] = True
    return ProbeSet(
        Probe(image, f"a photo of {THINGS[i % len(THINGS)]}", mask=middle if masks else None, name=f"probe-{i}")
        for i, image in enumerate(photographs(count, side))
    )
