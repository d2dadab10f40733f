"""Probes are values: their repr is short, and comparing or hashing them never fails."""

from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image

from clipcam_lightning.cam.compact_images import CompactImages
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.probes.load import load_probe
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.probes.probe import Probe

PIXELS = np.zeros((300, 400, 3), np.uint8)
PROBE = Probe(PIXELS, "a cat " * 100, "cat", mask=np.ones((300, 400), bool), tokens=torch.ones(77, dtype=torch.long))
VALUES = {
    "Probe": PROBE,
    "Probe of a tensor": Probe(torch.zeros(3, 300, 400), "a cat"),
    "Probe of a PIL image": Probe(Image.fromarray(PIXELS), "a cat", mask=Image.fromarray(PIXELS[..., 0])),
    "LoadedProbe": load_probe(PROBE, "probe 1"),
    "PreparedProbes": PreparedProbes(
        images=CompactImages(torch.zeros(2, 3, 8, 8)),
        texts=["a cat", torch.ones(77, dtype=torch.long)],
        masks=torch.zeros(2, 8, 8, dtype=torch.bool),
        has_mask=torch.tensor([False, False]),
        preprocessing=Preprocessing(PreprocessCfg()),
    ),
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_the_repr_is_one_short_line(value: Any) -> None:
    assert repr(value).startswith(f"{type(value).__name__}(")
    assert "\n" not in repr(value)
    assert len(repr(value)) < 300


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_every_value_equals_only_itself_and_can_be_hashed(value: Any) -> None:
    assert value == value
    assert [other == value for other in VALUES.values()].count(True) == 1
    assert len({value, *VALUES.values()}) == len(VALUES)


def test_a_loaded_probe_shows_dtype_and_shape_of_its_arrays() -> None:
    probe = load_probe(Probe(PIXELS, "a cat", box=(0, 0, 5, 5)), "probe 1")
    assert (
        repr(probe)
        == "LoadedProbe(image=uint8[300, 400, 3], prompt='a cat', name='', mask=bool[300, 400], tokens=None, "
        "embedding=None)"
    )


def test_the_digest_does_not_depend_on_the_name() -> None:
    cat, dog = (load_probe(Probe(PIXELS, "a pet", name), "probe 1") for name in ("cat", "dog"))
    assert cat.digest == dog.digest
