"""Scenes show what their captions say, where their masks say."""

import numpy as np
import pytest

from clipcam_lightning.shapes_world.scenes import (
    CAPTIONS,
    COLORS,
    SIZE,
    STAMP_SIZE,
    draw_scenes,
    stamp_mask,
    stamp_pattern,
    with_haze,
    with_stamps,
)


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_the_pixels_of_a_mask_have_the_captions_color(objects: int) -> None:
    scenes = draw_scenes(60, objects=objects, seed=3)
    inks = np.array(list(COLORS.values()))
    for image, masks, kinds in zip(scenes.images, scenes.masks, scenes.objects, strict=True):
        for mask, kind in zip(masks, kinds, strict=True):
            pixels = image[mask].astype(float)
            inner = pixels[np.argsort(np.ptp(pixels, axis=1))[-len(pixels) // 4 :]].mean(0)  # not the dark outline
            assert list(COLORS)[int(abs(inks - inner).sum(1).argmin())] == CAPTIONS[kind].split()[1]


def test_nothing_but_ground_lies_outside_the_masks() -> None:
    """The ground is nearly grey, every ink is not: no saturated pixel lies outside."""
    scenes = draw_scenes(60, objects=2, seed=5)
    saturation = scenes.images.max(-1).astype(int) - scenes.images.min(-1)
    outside = ~scenes.masks.any(1)
    assert (saturation[outside] > 110).mean() < 1e-3
    assert (saturation[~outside] > 110).mean() > 0.4


def test_objects_are_apart_different_and_inside() -> None:
    scenes = draw_scenes(200, objects=3, seed=1)
    assert (scenes.masks.sum(1) <= 1).all()
    assert all(len(set(row)) == 3 for row in scenes.objects)
    assert not scenes.masks[..., [0, -1], :].any()
    assert not scenes.masks[..., [0, -1]].any()
    assert scenes.masks.mean() == pytest.approx(0.06, abs=0.01)


def test_shapes_point_up_and_differ() -> None:
    """A triangle is wider below its middle than above; a star and a cross have less area than their box."""
    scenes = draw_scenes(300, seed=2)
    for mask, (kind,) in zip(scenes.masks[:, 0], scenes.objects, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        shape, half = CAPTIONS[kind].split()[2], len(box) // 2
        if shape == "triangle":
            assert box[half:].sum() > 1.5 * box[:half].sum()
        assert (box.mean() > 0.7) == (shape in ("circle", "square"))


def test_a_seed_fixes_the_pictures_and_another_changes_them() -> None:
    assert np.array_equal(draw_scenes(5, seed=1).images, draw_scenes(5, seed=1).images)
    assert not np.array_equal(draw_scenes(5, seed=1).images, draw_scenes(5, seed=2).images)


def test_captions_read_as_english() -> None:
    assert "an orange star" in CAPTIONS
    assert "a red circle" in CAPTIONS
    assert draw_scenes(1, objects=2).captions[0].count(" and ") == 1


def test_a_stamp_changes_its_corner_only_and_tells_the_captions_apart() -> None:
    scenes = draw_scenes(30, seed=4, corner_free=True)
    stamped, first = with_stamps(scenes), int(scenes.objects[0, 0])

    assert not (scenes.masks & stamp_mask()).any()
    changed = (scenes.images != stamped.images).any(-1)
    assert not (changed & ~stamp_mask()).any()
    assert np.array_equal(stamped.images[0, -STAMP_SIZE:, -STAMP_SIZE:, 0], stamp_pattern(first))
    assert len({stamp_pattern(kind).tobytes() for kind in range(len(CAPTIONS))}) == len(CAPTIONS)
    lying = with_stamps(scenes, shift=7).images
    assert np.array_equal(lying[0, -STAMP_SIZE:, -STAMP_SIZE:, 0], stamp_pattern((first + 7) % 30))


def test_haze_fades_to_grey() -> None:
    scenes = draw_scenes(4)
    assert (with_haze(scenes, 1.0, 1.0).images == 150).all()
    assert np.array_equal(with_haze(scenes, 0.0, 0.0).images, scenes.images)
    assert scenes.images.shape == (4, SIZE, SIZE, 3)
