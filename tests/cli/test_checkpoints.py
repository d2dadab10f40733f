"""Weights find their module, whoever wrote the file; what is no plain data is refused."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clipcam_lightning.cli.checkpoints import load_weights, read_checkpoint, select_clip_weights
from clipcam_lightning.errors import ModelError
from tests.support.zoo.open_clip import vit


def prefixed(prefix: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in weights.items()}


def bare(weights: dict[str, Any], file: Path) -> None:
    torch.save(weights, file)


def of_open_clip(weights: dict[str, Any], file: Path) -> None:
    content = {"epoch": 3, "name": "run", "state_dict": prefixed("module.", weights), "optimizer": {"state": {}}}
    torch.save(content, file)


def of_lightning(weights: dict[str, Any], file: Path) -> None:
    weights = {
        **prefixed("net.clip._orig_mod.", weights),
        "head.weight": torch.zeros(2),
        "accuracy.total": torch.ones(1),
    }
    torch.save({"state_dict": weights, "global_step": 40, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, file)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("bare.pt", bare),
        ("open_clip.pt", of_open_clip),
        ("lightning.ckpt", of_lightning),
        ("bare.safetensors", lambda weights, file: save_file(weights, file)),
        ("prefixed.safetensors", lambda weights, file: save_file(prefixed("model.", weights), file)),
    ],
)
def test_the_clip_s_weights_are_found_below_whatever_prefix(
    name: str, write: Callable[[dict[str, Any], Path], None], tmp_path: Path
) -> None:
    trained, model = vit(), vit()
    write(trained.state_dict(), tmp_path / name)

    load_weights(model, select_clip_weights(read_checkpoint(tmp_path / name), model), tmp_path / name)

    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_counters_are_those_of_the_training_and_0_where_there_are_none(tmp_path: Path) -> None:
    of_lightning(vit().state_dict(), tmp_path / "a.ckpt")
    bare(vit().state_dict(), tmp_path / "b.pt")

    counts = [
        [read_checkpoint(tmp_path / name).counter(what) for what in ("global_step", "epoch")]
        for name in ("a.ckpt", "b.pt")
    ]

    assert counts == [[40, 3], [0, 0]]


def test_of_two_clips_one_is_chosen_by_name(tmp_path: Path) -> None:
    student, teacher, model = vit(), vit(), vit()
    bare(
        {**prefixed("student.", student.state_dict()), **prefixed("teacher.", teacher.state_dict())}, tmp_path / "w.pt"
    )
    checkpoint = read_checkpoint(tmp_path / "w.pt")

    with pytest.raises(ModelError, match=r"holds 2 such CLIPs: student, teacher\. Choose one with --clip"):
        select_clip_weights(checkpoint, model)
    load_weights(model, select_clip_weights(checkpoint, model, "teacher"), checkpoint.path)

    assert torch.equal(model.visual.proj, teacher.visual.proj)


@pytest.mark.parametrize("name", [None, "net"])
def test_a_deeper_clip_is_not_in_the_file(name: str | None, tmp_path: Path) -> None:
    bare(prefixed("net.", vit(layers=2).state_dict()), tmp_path / "w.pt")

    with pytest.raises(ModelError) as error:
        select_clip_weights(read_checkpoint(tmp_path / "w.pt"), vit(layers=3), name)

    assert "12 of its 62 weights are missing below 'net' (visual.transformer.resblocks.2.ln_1.weight, " in str(
        error.value
    )
    assert "The file holds net.positional_embedding, " in str(error.value)


def test_another_module_s_file_says_what_it_holds(tmp_path: Path) -> None:
    bare(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")

    with pytest.raises(ModelError, match=r"62 of its 62 weights are missing below 'net'.*holds weight, bias"):
        select_clip_weights(read_checkpoint(tmp_path / "w.pt"), vit(), "net")


def test_a_shallower_clip_would_lose_blocks() -> None:
    with pytest.raises(
        ModelError, match=r"12 that the model does not have: visual\.transformer\.resblocks\.2\.\S+, .*\.\.\.\.$"
    ):
        load_weights(vit(layers=2), vit(layers=3).state_dict(), Path("w.pt"))


def test_shapes_are_compared_and_nothing_is_loaded() -> None:
    model, wider = vit(), vit(patch_size=4)
    before = model.visual.proj.clone()

    with pytest.raises(ModelError, match=r"w\.pt do not fit CLIP: 2 of another shape: visual\.positional_embedding "
                       r"\(33x32 in the file, 9x32 in the model\), visual\.conv1\.weight"):  # fmt: skip
        load_weights(model, wider.state_dict(), Path("w.pt"))

    assert torch.equal(model.visual.proj, before)


def test_weights_trained_at_another_image_size_say_how_to_build_for_it() -> None:
    with pytest.raises(
        ModelError, match=r"1 of another shape: visual\.positional_embedding .*--image-size with --model"
    ):
        load_weights(vit(), vit(image_size=(32, 48)).state_dict(), Path("w.pt"))


def test_missing_weights_are_counted_and_some_named() -> None:
    weights = vit().state_dict()
    del weights["logit_scale"], weights["visual.proj"]

    with pytest.raises(ModelError, match=r"2 missing: logit_scale, visual\.proj\.$"):
        load_weights(vit(), weights, Path("w.pt"))


def test_a_module_that_saves_a_part_of_its_weights_says_so_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.strict_loading = False  # what a LightningModule may declare

    load_weights(model, {"1.bias": torch.tensor([3.0, 4.0])}, Path("w.pt"))
    with pytest.raises(ModelError, match=r"1 that the model does not have: 2\.bias"):
        load_weights(model, {"1.bias": torch.zeros(2), "2.bias": torch.zeros(2)}, Path("w.pt"))

    assert model[1].bias.tolist() == [0.0, 0.0]


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("key", ["state_dict", "hyper_parameters", "callbacks"])
def test_a_file_that_wants_to_run_something_is_refused_and_runs_nothing(key: str, tmp_path: Path) -> None:
    torch.save({"state_dict": vit().state_dict(), key: Payload(tmp_path / "ran")}, tmp_path / "w.ckpt")

    with pytest.raises(ModelError, match=r"w\.ckpt is refused: .*running posix\.system.*weights_only=False"):
        read_checkpoint(tmp_path / "w.ckpt")

    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_runs_nothing_either(tmp_path: Path) -> None:
    (tmp_path / "w.ckpt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))

    with pytest.raises(ModelError, match="damaged, or no checkpoint"):
        read_checkpoint(tmp_path / "w.ckpt")

    assert not (tmp_path / "ran").exists()


def test_hyper_parameters_of_a_foreign_class_are_named(tmp_path: Path) -> None:
    torch.save({"state_dict": vit().state_dict(), "hyper_parameters": argparse.Namespace()}, tmp_path / "w.ckpt")

    with pytest.raises(ModelError, match=r"running argparse\.Namespace"):
        read_checkpoint(tmp_path / "w.ckpt")


def whole() -> bytes:
    file = Path("whole.pt")
    torch.save(vit().state_dict(), file)
    return file.read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.ckpt", lambda: b""),
        ("text.ckpt", lambda: b"not a checkpoint"),
        ("cut.ckpt", lambda: whole()[:5000]),
        ("flipped.ckpt", lambda: whole()[:300] + bytes([0x99]) * 50 + whole()[350:]),
        ("cut.safetensors", lambda: b"\xff\x00\x00\x00\x00\x00\x00\x00{"),
        ("empty.safetensors", lambda: b""),
    ],
)
def test_damaged_files_are_called_so(
    name: str, content: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content())

    with pytest.raises(ModelError, match=rf"^{name} is damaged, or no checkpoint: \S[^\n]*$"):
        read_checkpoint(Path(name))


@pytest.mark.parametrize(
    ("content", "found"),
    [([1, 2], "list"), ({"epoch": 1, "loss": 0.5}, "epoch, loss"), ({"state_dict": [1]}, "state_dict"), ({}, "")],
)
def test_a_file_without_weights_says_what_it_holds(content: Any, found: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")

    with pytest.raises(ModelError, match=rf"w\.pt holds no weights: .*\(got {found}\)"):
        read_checkpoint(tmp_path / "w.pt")


def test_a_missing_file_and_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nope\.ckpt cannot be read: No such file"):
        read_checkpoint(tmp_path / "nope.ckpt")
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)
