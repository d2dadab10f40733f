"""The models of the matrix cover every tower."""

from clipcam_lightning.cam.towers import TOWERS, find_tower
from tests.support.zoo import huggingface, open_clip, openai, timm


def test_the_zoo_has_a_model_of_every_tower() -> None:
    builds = [build for library in (open_clip, openai, timm, huggingface) for build in library.MODELS.values()]

    assert {type(find_tower(build())) for build in builds} == set(TOWERS)
