"""The README is whole, and its Python code runs as it is printed."""

import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.modules import FineTuning, Pairs
from tests.support.pages import read_blocks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = read_blocks(README, "python")


def test_the_readme_has_its_chapters() -> None:
    chapters = re.findall(r"^#+ (.*)", README, flags=re.MULTILINE)
    assert {"See it", "Use it", "Probes of your own", "Arguments", "Methods", "When it is an alarm"} <= {*chapters}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::clipcam_lightning.errors.ClipCamWarning")  # the model is untrained
def test_the_code_of_the_readme_runs_block_after_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenes = draw_scenes(2)
    for name, image, mask in zip(("fox", "owl"), scenes.images, scenes.masks[:, 0], strict=True):
        Image.fromarray(image).resize((256, 256)).save(f"{name}.jpg")
        Image.fromarray(mask).resize((256, 256)).save(f"{name}_mask.png")
    # Pretrained weights need a network, and 1,000 epochs, Lightning's default, take too long.
    create_model = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: create_model(name))
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "1")
    names: dict[str, Any] = {"module": FineTuning(), "datamodule": DataLoader(Pairs(), batch_size=8)}

    assert len(BLOCKS) >= 7
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)

    assert names["explanation"].maps.shape == (1, 2, 7, 7)
    assert names["callback"].max_drift == 0.5
    assert {"result", "test_attention_stays"} <= names.keys()


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
