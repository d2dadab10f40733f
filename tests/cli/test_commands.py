"""The shell as people and build servers meet it: real processes and their exit codes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

import clipcam_lightning
from tests.support.shell import ENVIRONMENT, OPTIONS, clipcam, files_in, make_project

COMMANDS = ("explain", "snapshot", "compare", "check", "demo")
LIT = '''
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip


class Head(torch.nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))


class LitClip(pl.LightningModule):
    """As people write them for LightningCLI: typed arguments, a nested class, saved hyper-parameters."""

    def __init__(self, head: Head, tower: str, learning_rate: float = 1e-3):
        super().__init__()
        self.save_hyperparameters(ignore=["head"])
        self.backbone, self.head, self.tokenizer = build_clip(tower), head, WordTokenizer()

    def training_step(self, batch, batch_idx):
        texts = self.backbone.encode_text(self.tokenizer(["a red circle"]).to(self.device), normalize=True)
        return -(self.head.scale * self.backbone.encode_image(batch[0], normalize=True) @ texts.T).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.hparams.learning_rate)


class Pictures(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(2, 3, 64, 64)), batch_size=2)
'''
TRAIN = '''
from lightning.pytorch.cli import LightningCLI

from lit import LitClip, Pictures

if __name__ == "__main__":
    once = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    once += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    head = '{"class_path": "lit.Head", "init_args": {"scale": 2.0}}'
    LightningCLI(
        datamodule_class=Pictures,
        args=["fit", *once, "--trainer.default_root_dir=any", "--model=lit.LitClip", "--model.tower=vit",
              "--model.head=" + head],
    )
    LightningCLI(
        LitClip, Pictures,
        args=["fit", *once, "--trainer.default_root_dir=fixed", "--model.tower=vit", "--model.head=" + head],
    )
'''  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, shapes_vit: open_clip.CLIP) -> Path:
    """Nothing in it is changed by a test, except for new files."""
    return make_project(tmp_path_factory.mktemp("project"), shapes_vit)


@pytest.fixture(scope="module")
def baseline(project: Path) -> Path:
    """A snapshot of ``before.pt``."""
    done = clipcam(project, "snapshot", "--probes", "probes", "--out", "before.safetensors", *OPTIONS, "before.pt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote before.safetensors: 2 probes, ")
    assert done.stdout.endswith(", step 7\n")
    return project / "before.safetensors"


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert clipcam(tmp_path, "--version").stdout == f"clipcam {clipcam_lightning.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_comes_at_once_and_each_command_s_with_an_example(command: str, tmp_path: Path) -> None:
    program = f"import sys\nfrom clipcam_lightning.cli import main\ntry: main({[*command.split(), '--help']})\n"
    program += "finally: print({'torch', 'lightning', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)

    assert done.stdout.endswith("\nset()\n")
    for text in [f"example:\n  clipcam {command} "] if command else COMMANDS:
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_explain_draws_a_picture_for_each_image_and_prompt(project: Path) -> None:
    prompts = ("--prompt", "../a red CIRCLE", "--prompt", "an [bold]\x1b[31morange star")

    done = clipcam(
        project, "explain", "probes/0.png", "probes/1.png", *prompts, "--out", "a/maps", *OPTIONS, "before.pt"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "wrote 4 pictures to a/maps: " in done.stdout
    names = [f"{image}--{prompt}.png" for image in "01" for prompt in ("a-red-circle", "an-bold-31morange-star")]
    assert sorted(path.name for path in (project / "a" / "maps").iterdir()) == names
    for name in names:
        assert f" {name} " in done.stdout
        with Image.open(project / "a" / "maps" / name) as picture:
            assert picture.format == "PNG"
            assert picture.width > 2 * 448
            left, right = (picture.crop((x, 12, x + 448, 460)).convert("RGB") for x in (12, 472))
            assert left.tobytes() != right.tobytes()
            assert max(len(part.getcolors(1 << 20) or ()) for part in (left, right)) > 1000
    assert done.stdout.count("an [bold] [31morange star") == 2, "a prompt is data"


def test_check_fails_with_1_and_writes_the_reports(project: Path, baseline: Path) -> None:
    done = clipcam(
        project, "check", "--probes", "probes", "--baseline", baseline, *OPTIONS, "after.pt",
        "--json", "out/drift.json", "--html", "out/drift.html",
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (1, "")
    assert "attention drifted on " in done.stdout
    assert "wrote out/drift.json\nwrote out/drift.html\n" in done.stdout
    written = json.loads((project / "out" / "drift.json").read_text())
    assert written["alarm"] is True
    assert (written["baseline_step"], written["step"]) == (7, 70)
    assert [probe["name"] for probe in written["probes"]] == ["0", "1"]
    assert (project / "out" / "drift.html").read_text().startswith("<!DOCTYPE html>")


def test_a_reader_that_has_seen_enough_changes_no_exit_code(project: Path, baseline: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clipcam_lightning", "compare", baseline, baseline],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


def test_ctrl_c_leaves_the_old_baseline_and_nothing_else(project: Path, baseline: Path) -> None:
    before = files_in(project)
    options = ("--class-path", "eyes.SleepyEyes", "--checkpoint", "before.pt")
    process = subprocess.Popen(
        [sys.executable, "-m", "clipcam_lightning", "check", "--probes", "probes", "--baseline", baseline,
         "--update-baseline", *options],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT,
        # A shell that started the tests in the background has its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not (project / "asleep").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)

    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, b"")
    (project / "asleep").unlink()
    assert files_in(project) == before


def test_a_full_disk_is_one_line_and_leaves_the_old_baseline(project: Path, baseline: Path) -> None:
    before = files_in(project)

    done = clipcam(
        project, "check", "--probes", "probes", "--baseline", baseline, "--update-baseline", *OPTIONS, "after.pt",
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"clipcam: error: {baseline} cannot be written: File too large.\n"
    assert files_in(project) == before


def test_a_file_that_wants_to_run_something_is_refused(project: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("touch ran",)

    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, project / "evil.ckpt")

    done = clipcam(project, "snapshot", "--probes", "probes", "--out", "x.safetensors", *OPTIONS, "evil.ckpt")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("clipcam: error: evil.ckpt is refused: ")
    assert "posix.system" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / "ran").exists()
    assert not (project / "x.safetensors").exists()


def test_a_model_of_open_clip_by_name_with_the_weights_of_a_training(project: Path) -> None:
    model = open_clip.create_model("ViT-S-32-alt").eval()  # the smallest
    weights = {f"net.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": {**weights, "head.weight": torch.zeros(1)}}, project / "small.ckpt")
    preprocess = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    with torch.no_grad(), Image.open(project / "probes" / "0.png") as picture:
        image = model.encode_image(preprocess(picture)[None], normalize=True)
        text = model.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(["a red star"]), normalize=True)

    done = clipcam(
        project, "explain", "probes/0.png", "--prompt", "a red star", "--out", "small", "--method", "gradcam",
        "--layers", -2, "--model", "ViT-S-32-alt", "--checkpoint", "small.ckpt",
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert f" {float(image @ text.T):.3f} " in done.stdout
    assert "wrote 1 picture to small: gradcam at visual.transformer.resblocks.10.ln_1" in done.stdout


def test_a_lightning_cli_project_is_checked_as_it_is(project: Path) -> None:
    (project / "lit.py").write_text(LIT)
    (project / "train.py").write_text(TRAIN)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=project, capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    (any_class,), (fixed_class,) = ((project / name).glob("checkpoints/*.ckpt") for name in ("any", "fixed"))
    check = ("check", "--probes", "probes", "--baseline", "lit.safetensors", "--max-drift", 0.1)

    def checked(*options: object) -> tuple[int, str]:
        done = clipcam(project, *check, *options)
        assert done.stderr == ""
        return done.returncode, done.stdout

    code, said = checked("--checkpoint", any_class, "--config", "any/config.yaml", "--update-baseline")
    assert (code, said.splitlines()[-1].startswith("wrote lit.safetensors: 2 probes, ")) == (0, True)
    assert said.endswith(", step 1\n")

    code, said = checked("--checkpoint", fixed_class, "--config", "fixed/config.yaml", "--class-path", "lit.LitClip")
    assert code == 0, said
    assert "no alarm at step 1; mean drift 0.00" in said

    content = torch.load(any_class, weights_only=True)
    conv = content["state_dict"]["backbone.visual.conv1.weight"]
    conv.copy_(torch.randn_like(conv))
    torch.save(content, project / "changed.ckpt")
    code, said = checked("--checkpoint", "changed.ckpt", "--config", "any/config.yaml")
    assert code == 1, said
