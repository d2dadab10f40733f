"""Read Markdown pages, and give their Python blocks what a reader has: images, probes, a model, a training."""

import re
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from clipcam_lightning import ClipCamCallback, ClipCamMonitor, ProbeSet
from clipcam_lightning.shapes_world import WordTokenizer, build_clip, draw_scenes, trained_clip
from tests.support.modules import FineTuning, Pairs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = "README.md"
PAGES = {
    README: (ROOT / README).read_text(),
    **{str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))},
}


def read_blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of a page in one language, also those in lists."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, flags=re.M | re.S)
    return [re.sub(rf"^{indent}", "", block, flags=re.M) for indent, block in blocks]


def read_table(text: str, head: str) -> list[list[str]]:
    """Return the cells of the rows below the line of a table that begins with ``head``, without those of its rule."""
    table = re.search(rf"^{re.escape(head)}.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", text, flags=re.M)
    assert table, f"no table {head}"
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()]


def small_clip(*_: object, **__: object) -> nn.Module:
    """Build what stands for a published CLIP: the small one of the package, with its tokenizer."""
    model: nn.Module = trained_clip("vit")
    model.tokenizer = WordTokenizer()
    return model


class StudentAndTeacher(FineTuning):
    """Two CLIPs, one of which is trained."""

    def __init__(self) -> None:
        super().__init__(name="student", clip=trained_clip("vit").train())
        self.teacher = trained_clip("vit").requires_grad_(False)


def prepare_reader(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put a reader's files into ``folder``, and return the names that the blocks of a page may use.

    Args:
        folder: the working directory of the blocks.
        monkeypatch: replaces published weights, which need a network, and 1,000 epochs, Lightning's default.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setattr(open_clip, "create_model", small_clip)
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "1")
    scenes = draw_scenes(2)
    for name, image, mask in zip(("fox", "owl"), scenes.images, scenes.masks[:, 0], strict=True):
        Image.fromarray(image).resize((256, 256)).save(f"{name}.jpg")
        Image.fromarray(mask).resize((256, 256)).save(f"{name}_mask.png")
    return {
        "module": FineTuning(clip=trained_clip("vit").train()),
        "datamodule": DataLoader(Pairs(), batch_size=8),
        "model": small_clip(),
        "images": ["fox.jpg"],
        "probes": ProbeSet([("fox.jpg", "a photo of a fox"), ("owl.jpg", "a photo of an owl")]),
        "train_one_epoch": lambda _model: None,
        "ClipCamCallback": ClipCamCallback,
    }


def write_run(probes: ProbeSet) -> None:
    """Write the folders of runs that some pages read, and a snapshot beside them."""
    with ClipCamMonitor(probes, dirpath="clipcam", on_drift="log") as monitor:
        for step, model in ((0, small_clip()), (100, build_clip("vit").eval())):
            model.tokenizer = WordTokenizer()
            monitor.evaluate(model, step)
    for run in ("run_a", "run_b"):
        shutil.copytree("clipcam", run)
    shutil.copy("clipcam/step-00000000.safetensors", ".")
