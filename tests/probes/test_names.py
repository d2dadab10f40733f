"""Every probe of a set has a unique name that is safe as a file name."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.names import MAX_BYTES, MAX_LENGTH
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
            (PIXELS, "狐狸、雪地"),
            (PIXELS, "Рыжая ЛИСА"),
            (PIXELS, "🦊"),
            (PIXELS, "../.."),
            (PIXELS, "word " * 40),
        ]
    )
    assert probes.names[:4] == ["my-cat-1", "a-red-circle", "a-red-circle-3", "a-red-circle-2"]
    assert probes.names[4:8] == ["狐狸-雪地", "рыжая-лиса", "probe", "probe-2"]
    assert len(probes.names[8]) <= MAX_LENGTH


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6))
@examples(100)
def test_names_are_unique_and_safe_in_a_path_for_any_prompts(prompts: list[str]) -> None:
    names = ProbeSet([(PIXELS, prompt) for prompt in prompts]).names
    assert len(set(names)) == len(prompts)
    for name in names:
        kinds = {unicodedata.category(character) for character in name if character not in "-_."}
        kinds.discard("Cn")  # this Python does not have the newest letters yet
        assert {kind[0] for kind in kinds} <= {"L", "M", "N"}, "letters, their marks, and digits"
        assert name == unicodedata.normalize("NFC", name), "a file system may change the form of a name"
        assert not name.startswith((".", "-"))
        assert 0 < len(f"{name}--{name}.png".encode()) < 255, "the file of an image and a prompt"
    assert ProbeSet([Probe(PIXELS, "any", name) for name in names]).names == names, "made names can be given"


def test_a_name_is_cut_between_characters_as_a_reader_sees_them() -> None:
    (name,) = ProbeSet([(PIXELS, "क्षि" * 20)]).names  # four code points that are one syllable
    assert name == "क्षि" * (MAX_BYTES // len("क्षि".encode()))


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
