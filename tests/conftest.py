"""What the tests share: small models, trained once and then cached."""

from collections.abc import Iterator

import jaxtyping
import open_clip
import pytest
import torch

from clipcam_lightning.cam.model import ClipModel, find_clip
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
from clipcam_lightning.shapes_world.pretraining import pretrained_clip

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the run-time shape checks of the test suite, as users run it: the package's own checks must do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def shapes_vit() -> open_clip.CLIP:
    return pretrained_clip("vit")


@pytest.fixture(scope="session")
def shapes_resnet() -> open_clip.CLIP:
    return pretrained_clip("resnet")


@pytest.fixture
def untrained() -> open_clip.CLIP:
    return build_clip("vit")


@pytest.fixture
def clip(untrained: open_clip.CLIP) -> ClipModel:
    return find_clip(untrained, tokenizer=WordTokenizer())
