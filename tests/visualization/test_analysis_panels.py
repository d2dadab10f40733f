"""Panels of confusions and of prompt sensitivity: each map is where it belongs."""

import pytest
import torch

from clipcam_lightning.analysis.confusion import Confusion
from clipcam_lightning.analysis.prompt_sensitivity import Sensitivity
from clipcam_lightning.visualization.analysis_panels import confusion_panel, sensitivity_panel
from tests.support.drawn_images import TEXTS, colourfulness, corners, panel_tile

GREY = torch.full((3, 64, 64), 128, dtype=torch.uint8)
TOP_LEFT, BOTTOM_RIGHT = torch.zeros(8, 8), torch.zeros(8, 8)
TOP_LEFT[0, 0], BOTTOM_RIGHT[-1, -1] = 3.0, 0.5
SIZE = (700, 430)


def confusion(prompt: str = "a cat", preferred: str = "a dog") -> Confusion:
    return Confusion(
        index=0, name="cat", prompt=prompt, preferred=preferred, similarity=0.2, preferred_similarity=0.3,
        map=TOP_LEFT, preferred_map=BOTTOM_RIGHT,
    )  # fmt: skip


def sensitivity(prompt: str = "a cat") -> Sensitivity:
    return Sensitivity(
        prompts=(prompt, f"a photo of {prompt}"), absent=("a trombone",), maps=torch.stack([TOP_LEFT, 2 * TOP_LEFT]),
        absent_maps=BOTTOM_RIGHT[None], similarity=torch.tensor([0.2, 0.3]), absent_similarity=torch.tensor([0.1]),
        correlation=1.0, top_iou=1.0, spread=TOP_LEFT.flip(1) / 3, absent_correlation=0.0,
    )  # fmt: skip


def test_a_confusion_panel_shows_both_maps_and_their_difference() -> None:
    panel = confusion_panel(GREY, confusion())

    assert panel.size == SIZE
    shown, true, preferred, change = (corners(panel_tile(panel, k)) for k in range(4))
    assert max(map(colourfulness, shown)) == 0
    assert colourfulness(true[0]) > 50 > 20 > colourfulness(true[1])
    assert colourfulness(preferred[1]) > 50 > 20 > colourfulness(preferred[0])
    assert change[1][0] > change[1][2] + 50, "preferred is red"
    assert change[0][2] > change[0][0] + 50, "true is blue"


def test_a_confusion_panel_outlines_the_mask_on_the_input() -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:32, 32:56] = True
    plain, outlined = confusion_panel(GREY, confusion()), confusion_panel(GREY, confusion(), mask)
    assert [(panel_tile(plain, k) != panel_tile(outlined, k)).any() for k in range(4)] == [True, False, False, False]


def test_a_sensitivity_panel_shows_paraphrases_spread_and_absent_things() -> None:
    panel = sensitivity_panel(GREY, sensitivity())

    assert panel.size == SIZE
    shown, own, spread, absent = (panel_tile(panel, k) for k in range(4))
    assert max(map(colourfulness, corners(shown))) == 0
    assert colourfulness(corners(own)[0]) > 50 > 20 > colourfulness(corners(own)[1])
    assert colourfulness(corners(absent)[1]) > 50 > 20 > colourfulness(corners(absent)[0])
    assert colourfulness(corners(spread[:, ::-1])[0]) > 50 > 20 > max(map(colourfulness, corners(spread)))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_prompt_changes_the_size_of_a_panel(text: str) -> None:
    assert confusion_panel(GREY, confusion(text, text)).size == sensitivity_panel(GREY, sensitivity(text)).size == SIZE
