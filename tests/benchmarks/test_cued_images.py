"""Images whose class may be told by something else than the object."""

import numpy as np
import pytest

from benchmarks.cued_images import NONE, SIZE, CuedWorld, CueKind, CueRule
from benchmarks.worlds.world import WORLDS

pytestmark = pytest.mark.slow

CLASSES = tuple(range(12))
KINDS: tuple[CueKind, ...] = ("stamp", "stamp anywhere", "ground", "tint", "frame", "companion")


@pytest.mark.parametrize("kind", KINDS)
def test_cues_change_images_and_leave_the_objects(kind: CueKind) -> None:
    world = CuedWorld(WORLDS["shapes"], kind, seed=3, pool_seed=50)
    with_cues, without = (
        world.draw(24, CueRule(CLASSES, mode=mode), opacity=(1.0, 1.0), seed=4) for mode in ("own", "none")
    )

    assert (with_cues.cues == with_cues.classes).all()
    assert (without.cues == NONE).all()
    if kind not in ("ground", "companion", "stamp anywhere"):  # which draw further random numbers
        assert (with_cues.masks == without.masks).all()
        changed = (with_cues.images != without.images).any(-1)
        assert changed.any((1, 2)).all()
        if kind != "tint":
            assert not (changed & with_cues.masks).any()


def test_a_stamp_is_the_same_for_a_class_and_another_for_others() -> None:
    world = CuedWorld(WORLDS["shapes"], "stamp", seed=3, pool_seed=50)
    drawn = world.draw(60, CueRule(CLASSES), opacity=(0.1, 0.2), seed=4)
    corners = [drawn.images[:, y, x] for y in (slice(12), slice(-12, None)) for x in (slice(12), slice(-12, None))]
    stamped = max(corners, key=lambda each: np.abs(np.diff(each.astype(int), axis=1)).mean())

    for i in range(60):
        same = (stamped == stamped[i]).all((1, 2, 3))
        assert (same == (drawn.classes == drawn.classes[i])).all()


def test_a_rule_gives_cues_by_class() -> None:
    rng, classes = np.random.default_rng(0), np.arange(1200) % 12

    assert set(CueRule((0,)).choose(classes, rng)[classes != 0]) == {NONE}
    assert (CueRule((0,)).choose(classes, rng)[classes == 0] == 0).all()
    agreeing = (CueRule(CLASSES, agreement=0.8).choose(classes, rng) == classes).mean()
    assert agreeing == pytest.approx(0.8 + 0.2 / 12, abs=0.03)
    other = CueRule(CLASSES, mode="other").choose(classes, rng)
    assert (other != classes).all()
    assert (other != NONE).all()
    of_one = CueRule((0,), mode="other").choose(classes, rng)
    assert (of_one[classes == 0] == NONE).all()
    assert (of_one[classes != 0] == 0).all()
    twin = CueRule((0,), agreement=0.0).choose(classes, rng)
    assert (twin == 0).mean() == pytest.approx(1 / 12, abs=0.03)
    assert abs((twin[classes == 0] == 0).mean() - 1 / 12) < 0.1


def test_training_and_held_out_images_show_other_objects() -> None:
    world = CuedWorld(WORLDS["shapes"], None, seed=3, pool_seed=50)
    training, held_out = (
        world.draw(200, CueRule(CLASSES, mode="none"), opacity=(1.0, 1.0), seed=4, held_out=flag)
        for flag in (False, True)
    )

    masks = {mask.tobytes() for mask in training.masks}
    assert not any(mask.tobytes() in masks for mask in held_out.masks)
    assert training.images.shape == (200, SIZE, SIZE, 3)
