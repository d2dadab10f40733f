"""Captions of a single word are read where they are certain to be words."""

from typing import Any

import pytest
import torch

from clipcam_lightning.probes.batch import find_images_and_prompts
from clipcam_lightning.probes.batch_texts import TextInput
from clipcam_lightning.probes.load import ProbeError

IMAGES = torch.randn(3, 3, 32, 32)
WORDS = ["cat", "dog", "guinea-pig"]


def read(batch: Any) -> list[Any]:
    found = find_images_and_prompts(
        batch, (32, 32), lambda size: size == (32, 32), None, are_names_given=False, text_input=TextInput(None, True)
    )
    return list(found.prompts)


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, WORDS),
        *({"image": IMAGES, key: WORDS} for key in ("class", "className", "title", "query", "imageCaption")),
    ],
)
def test_single_words_are_prompts_without_a_key_or_under_one_that_names_them(batch: Any) -> None:
    assert read(batch) == WORDS


@pytest.mark.parametrize("codes", [["PA", "AP", "PA"], ["id_1", "id_2", "id_3"], ["M", "F", "F"]])
def test_codes_are_no_prompts(codes: list[str]) -> None:
    with pytest.raises(ProbeError):
        read((IMAGES, codes))
