"""The README is whole, and its Python code runs as it is printed."""

import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel

from clipcam_lightning import ClipCamCallback, ClipCamMonitor, evaluate, explain, find_clip
from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.modules import FineTuning, Pairs

ROOT = Path(__file__).parents[1]
README, MODULES, LOGGERS = ((ROOT / name).read_text() for name in ("README.md", "docs/modules.md", "docs/loggers.md"))
BLOCKS, MODULE_BLOCKS, LOGGER_BLOCKS = (
    re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL) for text in (README, MODULES, LOGGERS)
)


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


@pytest.mark.slow
@pytest.mark.parametrize("block", MODULE_BLOCKS, ids=[re.findall(r"class (\w+)", block)[0] for block in MODULE_BLOCKS])
def test_each_module_of_the_guide_is_read_with_the_line_beside_it(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create_model = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: create_model(name))
    names: dict[str, Any] = {
        **{each.__name__: each for each in (ClipCamCallback, LightningModule, BertModel, BertConfig)},
        **{"nn": nn, "timm": timm, "open_clip": open_clip},
    }
    exec(compile(block, "modules.md", "exec"), names)
    module = next(
        value
        for value in names.values()
        if isinstance(value, type) and issubclass(value, LightningModule) and value is not LightningModule
    )()
    callback = names["callback"]
    clip = find_clip(module, encode_image=callback.encode_image, encode_text=callback.encode_text)
    images = torch.rand(2, 3, *clip.tower.input_size)
    embeddings = clip.embed_images(images)
    assert explain(clip, images, torch.rand(2, embeddings.shape[1])).maps.isfinite().all()
    if names.get("NAMES"):
        assert clip.embed_texts(names["NAMES"]).shape == embeddings.shape


def test_the_code_of_the_page_on_loggers_runs(s3_server: object, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    assert len(LOGGER_BLOCKS) == 2
    for block in LOGGER_BLOCKS:
        exec(compile(block, "loggers.md", "exec"), names)
    scenes = draw_scenes(2)
    probes = list(zip(scenes.images, scenes.captions, strict=True))
    evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
    names["PrintingSink"]().write(evaluation)
    assert "no alarm at step 0" in capsys.readouterr().out
    assert names["callback"].dirpath == "s3://bucket/runs/1"


def test_the_files_that_the_page_on_loggers_lists_are_those_of_a_run(tmp_path: Path) -> None:
    listed = re.findall(r"^\| `([\w.<>-]+)` \|", LOGGERS[LOGGERS.index("| file |") :], flags=re.M)
    scenes = draw_scenes(2)
    probes = list(zip(scenes.images, scenes.captions, strict=True))
    with ClipCamMonitor(probes, tokenizer=WordTokenizer(), dirpath=tmp_path) as monitor:
        monitor.evaluate(trained_clip("vit"), 0)
    assert {name.replace("<n>", "00000000") for name in listed} == {path.name for path in tmp_path.iterdir()}


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{link} in {page.name}"
