"""A probe set shows itself: each image with its prompt and the outline of its mask."""

import numpy as np
import torch

from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from tests.support.drawn_images import pixels_of

GREY = np.full((60, 60, 3), 128, np.uint8)


def test_a_mask_is_outlined_outside_of_the_object() -> None:
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True

    ((tile,),) = ProbeSet([Probe(GREY, "a cat", mask=mask)])._gallery(60, 10).rows

    pixels = pixels_of(tile.image)
    assert (tile.caption, tile.details) == ("a cat", "a-cat")
    assert (pixels[20:40, 20:40] == 128).all()
    assert (pixels[30, 18:20] == 255).all()
    assert (pixels[30, 17] == 0).all()
    assert (pixels[:16] == 128).all()


def test_pixels_of_model_input_are_restored_from_a_usual_normalisation() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.float32)
    image = torch.from_numpy(levels / 127.5 - 1)

    ((tile,),) = ProbeSet([(image, "noise")])._gallery(32, 10).rows

    assert np.abs(pixels_of(tile.image) - levels.transpose(1, 2, 0)).max() <= 1


def test_a_page_shows_the_first_probes_and_says_how_many_there_are() -> None:
    probes = ProbeSet([(GREY, "a cat")] * 50)

    html = probes._repr_html_()

    assert html.count("<img") == 36
    assert "<b>50 probes</b>" in html
    assert "14 more probes" in html
    assert "with the outlines" not in html
