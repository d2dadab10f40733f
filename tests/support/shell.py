"""Run the command line as a process, and make a small project for it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
from PIL import Image

from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.warm_python import run_module

EYES = '''
import sys
import time
from pathlib import Path

import torch

from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip


class Eyes(torch.nn.Module):
    """A module with a CLIP inside."""

    def __init__(self, tower: str = "vit", untyped=None):
        super().__init__()
        self.clip = build_clip(tower)
        self.tokenizer = WordTokenizer()


class OtherNames(Eyes):
    """A module whose methods nobody can guess."""

    def see(self, images):
        return self.clip.encode_image(images)

    def hear(self, tokens):
        return self.clip.encode_text(tokens)


class SleepyEyes(Eyes):
    """Sleeps at the first image, after it has created the file ``asleep``."""

    def __init__(self):
        super().__init__()
        self.clip.visual.conv1.register_forward_pre_hook(self.sleep)

    def sleep(self, *_):
        Path("asleep").touch()
        time.sleep(300)


class BrokenEyes(Eyes):
    def __init__(self):
        raise KeyError("lens")


class BrokenHook(Eyes):
    def configure_model(self):
        raise KeyError("lens")


def gradient_norm(capture):
    """A method of the project: maps from a capture."""
    return capture.gradients.norm(dim=2)


not_a_method = 3.14
'''
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}  # several threads on a busy machine take minutes
OPTIONS = ("--class-path", "eyes.Eyes", "--checkpoint")


def make_project(folder: Path, clip: open_clip.CLIP) -> Path:
    """Write a module, probes and two checkpoints: ``before.pt`` of ``clip``, ``after.pt`` with inverted maps."""
    (folder / "eyes.py").write_text(EYES)
    for name, sign in (("before", 1), ("after", -1)):  # -1 turns each similarity into its negative
        weights = {f"clip.{key}": value for key, value in clip.state_dict().items()}
        weights["clip.visual.proj"] = sign * weights["clip.visual.proj"]
        torch.save({"state_dict": weights, "global_step": 7 if name == "before" else 70}, folder / f"{name}.pt")
    (folder / "probes").mkdir()
    scenes, rows = draw_scenes(2, seed=5), ["image,prompt,mask"]
    for i, caption in enumerate(scenes.captions):
        Image.fromarray(scenes.images[i]).save(folder / "probes" / f"{i}.png")
        Image.fromarray(scenes.masks[i, 0]).save(folder / "probes" / f"mask-{i}.png")
        rows.append(f"{i}.png,{caption},mask-{i}.png")
    (folder / "probes" / "probes.csv").write_text("\n".join(rows))
    return folder


def run_clipcam(
    folder: Path, *arguments: object, prepare: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m clipcam_lightning`` in ``folder``.

    Args:
        folder: working directory.
        arguments: of the command line.
        prepare: called in the new process before the program starts.
    """
    if prepare is None:
        return run_module("clipcam_lightning", *arguments, cwd=folder, env={**os.environ, **ENVIRONMENT})
    return subprocess.run(
        [sys.executable, "-m", "clipcam_lightning", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=prepare,
        # A process that is prepared to fail may also fail to store its coverage.
        env={name: value for name, value in {**os.environ, **ENVIRONMENT}.items() if not name.startswith("COV")},
    )


def files_in(folder: Path) -> dict[Path, bytes]:
    """Read every file below ``folder`` except compiled modules."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder): path.read_bytes() for path in files}
