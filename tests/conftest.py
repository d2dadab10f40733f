"""What the tests share: small models and a browser."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jaxtyping
import open_clip
import pytest
import torch
from hypothesis import settings
from PIL import ImageDraw
from playwright.sync_api import Browser, sync_playwright

from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip, trained_clip

# Compiled code depends on the vector instructions in use, by which torch's own cache does not distinguish it.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
    Path(tempfile.gettempdir()) / f"inductor-{torch.backends.cpu.get_cpu_capability()}"
)

settings.register_profile("busy machine", deadline=None)  # an example may take long where other tests run
settings.load_profile("busy machine")

pytest_plugins = ["pytester", "tests.support.forks", "tests.support.loggers", "tests.support.stores"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """With CLIPCAM_TEST_DEVICE=cuda, tests create their models and inputs on the GPU, as ``make gpu`` does."""
    device = os.environ.get("CLIPCAM_TEST_DEVICE")
    with torch.device(device) if device else nullcontext():
        yield


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the run-time shape checks of the test suite, as users run it: the package's own checks must do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts drawn on images during the test, line by line."""
    lines: list[str] = []
    draw_text = ImageDraw.ImageDraw.text

    def record(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, *args: Any, **kwargs: Any) -> None:
        lines.append(text)
        draw_text(draw, place, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return lines


@pytest.fixture(scope="session")
def shapes_vit() -> open_clip.CLIP:
    return trained_clip("vit")


@pytest.fixture(scope="session")
def shapes_resnet() -> open_clip.CLIP:
    return trained_clip("resnet")


@pytest.fixture
def untrained() -> open_clip.CLIP:
    return build_clip("vit")


@pytest.fixture
def clip(untrained: open_clip.CLIP) -> ClipModel:
    return find_clip(untrained, tokenizer=WordTokenizer())


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing = "the page is not looked at: no chromium on the PATH"
        if os.environ.get("CI"):
            pytest.fail(f"{missing}, and CI is set; install one.")
        pytest.skip(missing)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()
