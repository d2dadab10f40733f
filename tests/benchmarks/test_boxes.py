"""Boxes in place of masks: compared with scikit-image's bounding boxes."""

import numpy as np
import pytest
from skimage.measure import regionprops

from benchmarks.boxes import BoxedFineTune, fill_boxes
from benchmarks.finetunes import FineTune, ProbeChoice


@pytest.mark.parametrize("seed", range(5))
def test_a_box_is_the_smallest_around_all_pixels_of_the_mask(seed):
    masks = np.random.default_rng(seed).random((3, 12, 17)) > 0.97
    boxes = fill_boxes(masks)
    for mask, box in zip(masks, boxes, strict=True):
        expected = np.zeros_like(mask)
        for region in regionprops(mask.astype(int)):
            top, left, bottom, right = region.bbox
            expected[top:bottom, left:right] = True
        np.testing.assert_array_equal(box, expected)


def test_an_empty_mask_has_no_box():
    assert not fill_boxes(np.zeros((1, 5, 6), dtype=bool)).any()


def test_runs_with_boxes_differ_from_those_with_masks_in_the_masks_alone():
    run, probes = ("shapes", "class token", "stamp", 2000), ProbeChoice(4)
    masked, boxed = (kind(*run).draw_probes(probes) for kind in (FineTune, BoxedFineTune))
    for name in ("images", "classes", "cues"):
        np.testing.assert_array_equal(getattr(boxed, name), getattr(masked, name))
    assert (boxed.masks >= masked.masks).all()
    assert boxed.masks.sum() > masked.masks.sum()
