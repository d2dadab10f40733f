"""Every probe of a set has a unique name that is safe as a file name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.names import MAX_LENGTH
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from tests.support.hostile import examples

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
CAT = Probe(PIXELS, "a cat", "cat")


def test_names_are_unique_slugs_of_the_file_or_the_prompt(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "My Cat (1).png")
    probes = ProbeSet(
        [
            (tmp_path / "My Cat (1).png", "whatever"),
            (PIXELS, "A red circle!"),
            (PIXELS, "a red circle"),
            Probe(PIXELS, "x", "a-red-circle-2"),  # a given name takes precedence over a made one
            (PIXELS, "日本"),
            (PIXELS, "../.."),
            (PIXELS, "word " * 40),
        ]
    )
    assert probes.names[:6] == ["my-cat-1", "a-red-circle", "a-red-circle-3", "a-red-circle-2", "probe", "probe-2"]
    assert len(probes.names[6]) <= MAX_LENGTH


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6))
@examples(100)
def test_names_are_unique_and_safe_in_a_path_for_any_prompts(prompts: list[str]) -> None:
    names = ProbeSet([(PIXELS, prompt) for prompt in prompts]).names
    assert len(set(names)) == len(prompts)
    assert all(name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in names)
    assert not any(name.startswith(".") for name in names)


def test_probes_of_a_set_keep_their_names_in_another() -> None:
    probes = ProbeSet([(PIXELS, "a cat"), (PIXELS, "a cat")])
    assert ProbeSet([probes[1], (PIXELS, "a dog")]).names == ["a-cat-2", "a-dog"]


def test_a_repeated_name_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"probe 2: an earlier probe has the name 'cat' too"):
        ProbeSet([CAT, replace(CAT, prompt="another")])


@pytest.mark.parametrize(("name", "slug"), [("My Cat", "my-cat"), ("../cat", "cat"), ("a/b", "a-b"), ("-", "probe")])
def test_a_name_that_is_no_slug_is_refused_and_a_slug_proposed(name: str, slug: str) -> None:
    with pytest.raises(ProbeError, match=f"is not a slug; write '{slug}'"):
        ProbeSet([replace(CAT, name=name)])
