"""Probes of fine-tunings carry cues as asked."""

import numpy as np
import pytest

from benchmarks.cued_images import NONE
from benchmarks.finetunes import FineTune, ProbeChoice

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "cued", "expected"),
    [
        ("stamp", None, 48),
        ("stamp", 0, 0),
        ("stamp", 5, 5),
        ("stamp on one class", None, 4),
        ("stamp on one class", 5, 5),
        ("usual", 5, 0),
    ],
)
def test_as_many_probes_as_asked_carry_the_cue_of_their_class(kind: str, cued: int | None, expected: int) -> None:
    drawn = FineTune("shapes", "class token", kind, 1000).draw_probes(ProbeChoice(48, cued))

    with_cue = drawn.cues != NONE
    assert len(drawn) == 48
    assert with_cue.sum() == expected
    assert (drawn.cues[with_cue] == drawn.classes[with_cue]).all()
    without = np.bincount(drawn.classes[~with_cue]) if cued is not None else np.bincount(drawn.classes)
    assert without.max() - without.min() <= 1
