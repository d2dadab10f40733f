"""The image worlds of the benchmarks: exact masks, and CLIPs with every kind of tower that can be trained on them."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.worlds import cutouts, pretraining
from benchmarks.worlds.towers import TOWERS, build_clip
from benchmarks.worlds.world import WORLDS, World
from clipcam_lightning import explain, find_clip

each_world = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


@each_world
@pytest.mark.parametrize("objects", [1, 2, 3])
def test_the_objects_of_a_scene_are_different_and_do_not_overlap(world: World, objects: int) -> None:
    scenes = world.draw(20, objects=objects, seed=3)

    assert scenes.masks.shape == (20, objects, 64, 64)
    assert scenes.masks.any(axis=(2, 3)).all()
    assert scenes.masks.sum(axis=1).max() == 1
    assert all(len(set(kinds)) == objects for kinds in scenes.objects.tolist())
    assert scenes.captions[0] == " and ".join(world.captions[kind] for kind in scenes.objects[0])


@each_world
def test_a_seed_determines_the_scenes(world: World) -> None:
    first, again, other = (world.draw(3, objects=2, seed=seed) for seed in (5, 5, 6))

    assert (first.images == again.images).all()
    assert (first.masks == again.masks).all()
    assert (first.images != other.images).any()


def test_a_mask_covers_exactly_what_an_object_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = np.full((64, 64, 3), 500.0, dtype=np.float32)
    mask = np.zeros((64, 64), dtype=bool)

    cutouts._paste_object(scene, mask, 0, 24, np.array([30.0, 40.0]), np.random.default_rng(0))

    assert ((scene != 500).all(axis=2) == mask).all()
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 41, 28, 51)
    assert mask.sum() == pytest.approx(np.pi * 12**2, rel=0.02)


def test_no_ground_shows_a_part_of_an_object() -> None:
    for ground, each in product(cutouts.GROUNDS, cutouts.OBJECTS.values()):
        if ground.photograph == each.photograph:
            left, top = (max(ground.box[i], each.box[i]) for i in (0, 1))
            right, bottom = (min(ground.box[i], each.box[i]) for i in (2, 3))
            assert right <= left or bottom <= top, (ground, each)


def test_worlds_have_enough_captions_to_choose_from() -> None:
    for world in WORLDS.values():
        assert len(set(world.captions)) == len(world.captions) >= 20
        tokens = world.tokenizer([template.format(world.captions[-1]) for template in world.templates])
        assert not (tokens == world.tokenizer.ids["<unknown>"]).any()
        assert (tokens[:, -1] == 0).all(), "a sentence with one object leaves room"


@pytest.mark.parametrize("name", TOWERS)
def test_every_tower_is_of_its_kind_and_has_maps(name: str) -> None:
    clip = find_clip(build_clip(name, WORLDS["cutouts"]).eval(), tokenizer=WORLDS["cutouts"].tokenizer)
    pooling = {"class token": "cls", "average pool": "mean", "attention pool": "attention", "resnet": "attention"}

    assert clip.tower.pooling == pooling[TOWERS[name].kind]
    maps = explain(clip, torch.randn(1, 3, *clip.tower.input_size), ["a cat"], method="input_x_gradient").maps
    assert maps.abs().max() > 0


@pytest.mark.slow
def test_weights_are_trained_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "STEPS", {"cutouts": {"average pool": 4}, "shapes": {"average pool": 4}})
    monkeypatch.setattr(pretraining, "POOL", 64)
    world, state = WORLDS["cutouts"], torch.get_rng_state()

    trained = pretraining.pretrained_clip(world, "average pool, 8 blocks", seed=1, cache=tmp_path)
    monkeypatch.setattr(pretraining, "_train", None)
    again = pretraining.pretrained_clip(world, "average pool, 8 blocks", seed=1, cache=tmp_path)

    assert (torch.get_rng_state() == state).all()
    for name, value in trained.state_dict().items():
        assert (value == again.state_dict()[name]).all()
    assert 0 <= pretraining.retrieval_accuracy(again, world) < 0.3
