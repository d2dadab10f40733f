"""Wrong names get a suggestion."""

from collections.abc import Callable

import pytest

from clipcam_lightning.cam.arguments import require_choice, suggest
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import resolve_method
from clipcam_lightning.cam.targets import target_of
from clipcam_lightning.errors import ClipCamError
from tests.support.zoo.open_clip import vit


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("gradcamm", " Did you mean 'gradcam'?"),
        ("Grad-CAM", " Did you mean 'gradcam'?"),
        ("vit-b-32", " Did you mean 'ViT-B-32'?"),
        ("rollout", ""),
        ("", ""),
        (3, ""),
    ],
)
def test_the_closest_choice_is_suggested_if_one_is_close(value: object, hint: str) -> None:
    assert suggest(value, ["gradcam", "layercam", "ViT-B-32"]) == hint


@pytest.mark.parametrize(
    ("refuse", "meant"),
    [
        (lambda: require_choice("on_drift", "wran", ("log", "warn")), "warn"),
        (lambda: resolve_method("auot", find_clip(vit()).tower), "auto"),
        (lambda: target_of("contrats"), "contrast"),
        (lambda: find_clip(vit()).tower.resolve("visual.transformer.resblock.0"), "visual.transformer.resblocks.0"),
        (lambda: find_clip(vit()).tower.resolve("visual.ln_pots"), "visual.ln_post"),
    ],
)
def test_each_kind_of_name_is_suggested(refuse: Callable[[], object], meant: str, unchecked: None) -> None:
    with pytest.raises(ClipCamError, match=rf"Did you mean '{meant}'\?$"):
        refuse()
