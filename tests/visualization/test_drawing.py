"""Colour scales, overlays and text: hot is bright, more is red, less is blue, and text stays on its line."""

import pytest
import torch

from clipcam_lightning.cam.colors import CHANGE, HEAT, colored, overlaid
from clipcam_lightning.cam.lettering import shorten, text_width, wrap
from tests.support.drawn_images import TEXTS

GREY = torch.full((3, 64, 64), 128, dtype=torch.uint8)
LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)


def test_heat_gets_steadily_brighter() -> None:
    light = (colored(torch.linspace(0, 1, 256)[None], HEAT) * LUMINANCE).sum(0)[0]
    assert (light.diff() > 0).all()
    assert light[-1] - light[0] > 0.8


def test_change_is_neutral_in_the_middle_blue_below_and_red_above() -> None:
    less, none, more = colored(torch.tensor([[0.2, 0.5, 0.8]]), CHANGE)[:, 0].T
    assert none.min() > 0.85
    assert none.max() - none.min() < 0.1
    assert less[2] > less[0] + 0.3
    assert more[0] > more[2] + 0.3


def test_a_value_out_of_range_has_the_nearest_colour_and_nan_the_coldest() -> None:
    odd, plain = colored(torch.tensor([[-3.0, 7.0, torch.nan]])), colored(torch.tensor([[0.0, 1.0, 0.0]]))
    assert torch.equal(odd, plain)


def test_an_overlay_colours_the_image_where_it_is_hot_and_hides_it_nowhere() -> None:
    pixels = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    heat = torch.zeros(4, 6)
    heat[:, 3:] = 1
    covered = overlaid(pixels, heat).float()
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)

    dim = 20 + 0.6 * grey  # less contrast, so that heat stands out on black and on white
    assert (covered[:, :, :3] - 0.95 * dim[:, :3]).abs().max() < 2, "under 5 % of black"
    hottest = 255 * colored(torch.ones(1, 1))
    assert (covered[:, :, 3:] - (0.65 * hottest + 0.35 * dim[:, 3:])).abs().max() < 2


def test_an_overlay_is_cold_where_the_heat_is_nan() -> None:
    heat = torch.eye(64)
    assert torch.equal(overlaid(GREY, torch.where(heat == 0, torch.nan, heat)), overlaid(GREY, heat))


@pytest.mark.parametrize("room", [40, 200])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_line_of_text_is_wider_than_its_room(text: str, room: int) -> None:
    lines = wrap(text, 14, room, 3)
    assert len(lines) <= 3
    assert all(text_width(line, 14) <= room for line in [*lines, shorten(text, 14, room)])


def test_a_short_text_is_kept_as_it_is_and_a_long_one_ends_in_an_ellipsis() -> None:
    assert shorten("a red circle", 14, 200) == "a red circle"
    assert wrap("a red circle", 14, 200, 3) == ["a red circle"]
    assert shorten(TEXTS["long"], 14, 200).endswith("…")
    first, *_, last = wrap(TEXTS["long"], 14, 200, 3)
    assert TEXTS["long"].startswith(first)
    assert last.endswith("…")
