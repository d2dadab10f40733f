"""The state of a raw map: named, of any scale, and shown in place of heat that means nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from torch import Tensor

from clipcam_lightning import Explanation, MapState, map_state
from clipcam_lightning.cam.lettering import letter

GREY = torch.full((1, 3, 96, 128), 90, dtype=torch.uint8)
VALID, DEGENERATE = (
    torch.tensor([[4.0, -4.0], [-1.0, 0.0]]),
    {
        MapState.NOWHERE_POSITIVE: torch.tensor([[-4.0, -1.0], [-2.0, 0.0]]),
        MapState.ALL_ZERO: torch.zeros(2, 2),
        MapState.CONSTANT: torch.full((2, 2), 3.0),
        MapState.NOT_FINITE: torch.tensor([[torch.nan, 1.0], [0.0, 0.0]]),
    },
)


def explanation_of(*maps: Tensor) -> Explanation:
    """One image with one prompt per map."""
    return Explanation(torch.stack(maps)[None], torch.zeros(1, len(maps)), ("layer",), "decomposition", "similarity")


@pytest.mark.parametrize(
    ("map_", "name"),
    [
        ([[0.0, 0.0]], "all zero"),
        ([[-0.0, 0.0]], "all zero"),
        ([[0.1, 0.1]], "constant"),
        ([[-3.0, -3.0]], "constant"),
        ([[1.0, 1.0 + 2e-7]], "constant"),  # one float32 step: rounding, not a map
        ([[torch.nan, 1.0]], "not finite"),
        ([[torch.inf, 1.0]], "not finite"),
        ([[-torch.inf, 1.0]], "not finite"),
        ([[-1.0, 0.0]], "nowhere positive"),
        ([[-1.0, -2.0]], "nowhere positive"),
        ([[-1.0, 1e-7]], "nowhere positive"),  # rounding of a sum of numbers as large as 1
        ([[-1.0, 1e-5]], "valid"),
        ([[0.0, 1e-12]], "valid"),
        ([[1.0, 1.01]], "valid"),
        ([[3e38, -3e38]], "valid"),  # their difference is no float32
    ],
)
def test_a_map_has_a_state_with_a_name(map_: list[list[float]], name: str) -> None:
    state = map_state(torch.tensor(map_))

    assert (state.value, str(state), f"{state}") == (name,) * 3
    assert state.is_degenerate == bool(state.words) == (name != "valid")


@given(st.integers(0, 2**31), st.floats(-0.5, 0.5), st.integers(-60, 60))
def test_the_state_does_not_depend_on_the_scale(seed: int, offset: float, exponent: int) -> None:
    map_ = torch.rand(3, 5, generator=torch.Generator().manual_seed(seed)) - 1 + offset
    assert map_state(map_) == map_state(map_ * 2.0**exponent)


def test_an_explanation_has_one_state_per_image_and_prompt() -> None:
    assert explanation_of(VALID, *DEGENERATE.values()).states == ((MapState.VALID, *DEGENERATE),)


def test_padding_beside_a_smaller_grid_does_not_make_a_map_degenerate() -> None:
    maps = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan)])[:, None]
    maps[1, 0, :2, :2] = VALID
    explanation = Explanation(maps, torch.zeros(2, 1), ("layer",), "gradcam", "similarity", grids=((3, 3), (2, 2)))

    assert explanation.states == ((MapState.VALID,), (MapState.VALID,))


@pytest.mark.parametrize("state", DEGENERATE)
def test_the_overlay_of_a_degenerate_map_shows_words_and_no_heat(state: MapState) -> None:
    valid, degenerate = explanation_of(VALID, DEGENERATE[state]).overlay(GREY)[0].int()

    corner = degenerate[:, :8, :8]
    assert (corner == valid[:, -8:, -8:].amin((1, 2), keepdim=True)).all(), "as cold as the coldest part of a valid map"
    assert (degenerate.amin(0) > 180).sum() > 50, "white letters"
    assert not (valid.amin(0) > 180).any()


@pytest.mark.parametrize("size", [(48, 64), (208, 208), (112, 75), (10, 10), (1, 1)], ids=str)
def test_letters_stay_in_their_image(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "#808080")

    lettered = letter(image, MapState.NOWHERE_POSITIVE.words)

    assert lettered.size == size
    columns = np.nonzero((np.asarray(lettered) > 200).all(2).any(0))[0]
    assert not len(columns) or (columns.min() > 0 and columns.max() < size[0] - 1)


def test_lines_of_letters_are_of_about_equal_lengths(written: list[str]) -> None:
    letter(Image.new("RGB", (208, 208)), MapState.NOWHERE_POSITIVE.words)

    assert written == ["nothing in this", "image raises", "the similarity"]


@pytest.mark.parametrize("words", sorted({state.words for state in DEGENERATE}))
@pytest.mark.parametrize("side", [64, 112, 208, 448])
def test_no_word_is_cut_from_a_square_image(words: str, side: int, written: list[str]) -> None:
    letter(Image.new("RGB", (side, side)), words)

    assert " ".join(written) == words
