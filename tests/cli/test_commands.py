"""The command line in real processes: exit codes, output and files."""

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
from tests.support.shell import ENVIRONMENT, OPTIONS, files_in, make_project, run_clipcam

pytestmark = pytest.mark.slow

COMMANDS = ("explain", "snapshot", "compare", "check", "rank", "methods", "demo")
MODEL_LIBRARIES = {"open_clip", "timm", "transformers", "lightning", "torchvision"}
HEAVY = {*MODEL_LIBRARIES, "torch", "numpy"}
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
    """A module for LightningCLI: typed arguments, a nested class, saved hyper-parameters."""

    def __init__(self, head: Head, tower: str, learning_rate: float = 1e-3):
        super().__init__()
        self.save_hyperparameters(ignore=["head"])
        self.backbone, self.head, self.tokenizer = build_clip(tower), head, WordTokenizer()

    def training_step(self, batch, batch_idx):
        texts = self.backbone.encode_text(self.tokenizer(["a red circle"]).to(self.device), normalize=True)
        return -(self.head.scale * self.backbone.encode_image(batch[0], normalize=True) @ texts.T).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.hparams.learning_rate)


class Images(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(2, 3, 64, 64)), batch_size=2)
'''
TRAIN = '''
from lightning.pytorch.cli import LightningCLI

from lit import LitClip, Images

if __name__ == "__main__":
    once = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    once += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    head = '{"class_path": "lit.Head", "init_args": {"scale": 2.0}}'
    LightningCLI(
        datamodule_class=Images,
        args=["fit", *once, "--trainer.default_root_dir=any", "--model=lit.LitClip", "--model.tower=vit",
              "--model.head=" + head],
    )
    LightningCLI(
        LitClip, Images,
        args=["fit", *once, "--trainer.default_root_dir=fixed", "--model.tower=vit", "--model.head=" + head],
    )
'''  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, shapes_vit: open_clip.CLIP) -> Path:
    """A project whose files no test changes; tests may add new ones."""
    return make_project(tmp_path_factory.mktemp("project"), shapes_vit)


@pytest.fixture(scope="module")
def baseline(project: Path) -> Path:
    """A snapshot of ``before.pt``."""
    done = run_clipcam(project, "snapshot", "--probes", "probes", "--out", "before.safetensors", *OPTIONS, "before.pt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("wrote before.safetensors: 2 probes, ")
    assert done.stdout.endswith(", step 7\n")
    return project / "before.safetensors"


def loaded_modules(folder: Path, *arguments: object) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """Run a command in a process of its own; returns the modules it has imported at its end, and the process."""
    program = "import atexit, sys; from clipcam_lightning.cli import main; "
    program += "atexit.register(lambda: print(*sys.modules)); sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split()), done


def test_version_prints_the_version_of_the_package(tmp_path: Path) -> None:
    assert run_clipcam(tmp_path, "--version").stdout == f"clipcam {clipcam_lightning.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_imports_nothing_heavy(command: str, tmp_path: Path) -> None:
    modules, done = loaded_modules(tmp_path, *command.split(), "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert modules.isdisjoint(HEAVY)
    for text in [f"example:\n  clipcam {command} "] if command else COMMANDS:
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 120


@pytest.mark.parametrize("arguments", [("explian",), ("check", "--flip"), ("compare", "a", "b", "--max-drift", "much")])
def test_a_usage_error_imports_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    modules, done = loaded_modules(tmp_path, *arguments)

    assert done.returncode == 2
    assert done.stderr.startswith("clipcam: error: ")
    assert modules.isdisjoint(HEAVY)


def test_compare_imports_no_model_library(project: Path, baseline: Path) -> None:
    modules, done = loaded_modules(project, "compare", baseline, baseline, "--html", "same.html")

    assert (done.returncode, done.stderr) == (0, "")
    assert modules.isdisjoint(MODEL_LIBRARIES)


def test_explain_draws_one_sheet_per_image(project: Path) -> None:
    prompts = ("--prompt", "../a red CIRCLE", "--prompt", "an [bold]\x1b[31morange star")

    done = run_clipcam(
        project, "explain", "probes/0.png", "probes/1.png", *prompts, "--out", "a/maps", *OPTIONS, "before.pt"
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "wrote 2 sheets to a/maps: " in done.stdout
    assert sorted(path.name for path in (project / "a" / "maps").iterdir()) == ["0-maps.png", "1-maps.png"]
    assert done.stdout.count(" 0-maps.png ") == 2, "one row per prompt"
    assert done.stdout.count("an [bold] [31morange star") == 2, "a prompt is data"


def test_check_exits_with_1_on_drift_and_writes_the_reports(project: Path, baseline: Path) -> None:
    done = run_clipcam(
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


def test_a_closed_pipe_does_not_change_the_exit_code(project: Path, baseline: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "clipcam_lightning", "compare", baseline, baseline],
        cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    assert (process.stderr.read(), process.wait()) == (b"", 0)
    process.stderr.close()


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=["stdout", "stderr", "all"])
def test_a_closed_stream_does_not_change_the_exit_code(closed: tuple[int, ...], project: Path, baseline: Path) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    check = ("check", "--probes", "probes", "--baseline", baseline, *OPTIONS, "after.pt", "--json", "closed.json")
    for arguments, code in {("--help",): 0, ("methods",): 0, ("explian",): 2, check: 1}.items():
        done = run_clipcam(project, *arguments, prepare=close)

        assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (code, False)
        assert "clipcam: error" not in done.stdout
    assert json.loads((project / "closed.json").read_text())["alarm"] is True


def test_ctrl_c_keeps_the_old_baseline_and_leaves_no_other_file(project: Path, baseline: Path) -> None:
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


def test_a_full_disk_is_reported_in_one_line_and_keeps_the_old_baseline(project: Path, baseline: Path) -> None:
    before = files_in(project)

    done = run_clipcam(
        project, "check", "--probes", "probes", "--baseline", baseline, "--update-baseline", *OPTIONS, "after.pt",
        prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"clipcam: error: {baseline} cannot be written: File too large.\n"
    assert files_in(project) == before


def test_a_checkpoint_with_code_is_refused_and_runs_nothing(project: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, ("touch ran",)

    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, project / "evil.ckpt")

    done = run_clipcam(project, "snapshot", "--probes", "probes", "--out", "x.safetensors", *OPTIONS, "evil.ckpt")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("clipcam: error: evil.ckpt is refused: ")
    assert "posix.system" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / "ran").exists()
    assert not (project / "x.safetensors").exists()


def test_an_open_clip_model_is_selected_by_name_with_fine_tuned_weights(project: Path) -> None:
    model = open_clip.create_model("ViT-S-32-alt").eval()  # the smallest
    weights = {f"net.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": {**weights, "head.weight": torch.zeros(1)}}, project / "small.ckpt")
    preprocess = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    with torch.no_grad(), Image.open(project / "probes" / "0.png") as probe:
        image = model.encode_image(preprocess(probe)[None], normalize=True)
        text = model.encode_text(open_clip.get_tokenizer("ViT-S-32-alt")(["a red star"]), normalize=True)

    done = run_clipcam(
        project, "explain", "probes/0.png", "--prompt", "a red star", "--out", "small", "--method", "gradcam",
        "--layers", -2, "--model", "ViT-S-32-alt", "--checkpoint", "small.ckpt",
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    assert f" {float(image @ text.T):.3f} " in done.stdout
    assert "wrote 1 sheet to small: gradcam at visual.transformer.resblocks.10.ln_1" in done.stdout


def test_check_reads_the_config_and_checkpoint_of_lightning_cli(project: Path) -> None:
    (project / "lit.py").write_text(LIT)
    (project / "train.py").write_text(TRAIN)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=project, capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    (any_class,), (fixed_class,) = ((project / name).glob("checkpoints/*.ckpt") for name in ("any", "fixed"))
    check = ("check", "--probes", "probes", "--baseline", "lit.safetensors", "--max-drift", 0.1)

    def run_check(*options: object) -> tuple[int, str]:
        done = run_clipcam(project, *check, *options)
        assert done.stderr == ""
        return done.returncode, done.stdout

    code, output = run_check("--checkpoint", any_class, "--config", "any/config.yaml", "--update-baseline")
    assert (code, output.splitlines()[-1].startswith("wrote lit.safetensors: 2 probes, ")) == (0, True)
    assert output.endswith(", step 1\n")

    code, output = run_check(
        "--checkpoint", fixed_class, "--config", "fixed/config.yaml", "--class-path", "lit.LitClip"
    )
    assert code == 0, output
    assert "no alarm at step 1; mean drift 0.00" in output

    content = torch.load(any_class, weights_only=True)
    conv = content["state_dict"]["backbone.visual.conv1.weight"]
    conv.copy_(torch.randn_like(conv))
    torch.save(content, project / "changed.ckpt")
    code, output = run_check("--checkpoint", "changed.ckpt", "--config", "any/config.yaml")
    assert code == 1, output
