"""Copies of the callback, as Ray and spawned processes make them: at any time, and with nothing shared."""

import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from clipcam_lightning import ClipCamCallback
from clipcam_lightning.sinks.background import BackgroundSink
from tests.support import spawned_program
from tests.support.faulty import STEPS, tiny_module, train, two_probes
from tests.support.modules import events
from tests.support.shell import ENVIRONMENT

pytestmark = pytest.mark.slow

WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda callback: pickle.loads(pickle.dumps(callback)),
    "cloudpickle": lambda callback: pickle.loads(import_module("cloudpickle").dumps(callback)),
}
WITHOUT_CLOUDPICKLE = pytest.mark.skipif(find_spec("cloudpickle") is None, reason="cloudpickle is not installed")
EACH_WAY = [
    pytest.param(way, id=name, marks=[WITHOUT_CLOUDPICKLE] * (name == "cloudpickle")) for name, way in WAYS.items()
]
HOOKS = [
    *("setup", "on_fit_start", "on_sanity_check_end", "on_train_start", "on_train_epoch_start", "on_train_batch_start"),
    *("on_before_backward", "on_train_batch_end", "on_validation_start", "on_validation_batch_end"),
    *("on_validation_epoch_end", "on_validation_end", "on_save_checkpoint", "on_train_epoch_end", "on_train_end"),
    *("on_fit_end", "teardown"),
]


class Copier(pl.Callback):
    """Copies a callback in every hook.

    Attributes:
        copies: by hook, the last one.
    """

    def __init__(self, callback: ClipCamCallback, way: Callable[[Any], Any]) -> None:
        self.copies: dict[str, ClipCamCallback] = {}
        for hook in HOOKS:
            setattr(self, hook, lambda *_, hook=hook, **__: self.copies.update({hook: way(callback)}))


def make_callback(**arguments: Any) -> ClipCamCallback:
    return ClipCamCallback(**{"method": "gradcam", "on_drift": "log", "on_error": "raise", **arguments})


def everything_in(value: Any) -> list[Any]:
    """List everything that an object refers to, except through classes, modules and functions."""
    found: dict[int, Any] = {}
    remaining = [value]
    while remaining:
        each = remaining.pop()
        if id(each) not in found and not isinstance(each, type | ModuleType | FunctionType):
            found[id(each)] = each
            remaining += gc.get_referents(each)
    return list(found.values())


@pytest.mark.parametrize("way", EACH_WAY)
@pytest.mark.parametrize("probes", [None, two_probes()], ids=["of a batch", "of the user"])
def test_a_callback_is_copied_in_every_hook_without_the_model_the_sinks_and_the_trainer(
    probes: Any, way: Callable[[Any], Any], tmp_path: Path
) -> None:
    callback = make_callback(probes=probes)
    copier = Copier(callback, way)

    train(tmp_path, callback, copier, logger=[TensorBoardLogger(tmp_path, name="", version="run"), CSVLogger(tmp_path)])

    assert copier.copies.keys() == set(HOOKS)
    for hook, copied in copier.copies.items():
        parts = everything_in(copied)
        assert not [part for part in parts if isinstance(part, nn.Module | pl.Trainer | BackgroundSink)], hook
    assert [entry.step for entry in callback.history] == STEPS
    assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == STEPS


@pytest.mark.parametrize("way", EACH_WAY)
def test_a_copy_has_the_arguments_the_probes_the_baseline_and_the_history(
    way: Callable[[Any], Any], tmp_path: Path
) -> None:
    callback = make_callback(num_probes=3, layers=[-1], on_drift="warn", max_drift=2.0)
    train(tmp_path, callback)

    copied = way(callback)

    assert (copied.num_probes, copied.layers, copied.on_drift, copied.max_drift) == (3, [-1], "warn", 2.0)
    assert (repr(copied.report), repr(copied.snapshot)) == (repr(callback.report), repr(callback.snapshot))
    assert [entry.step for entry in copied.history] == STEPS
    assert copied.monitor.probes.digest == callback.monitor.probes.digest  # type: ignore[union-attr]
    assert torch.equal(copied.monitor.baseline.maps, callback.monitor.baseline.maps)  # type: ignore[union-attr]
    assert copied.monitor.baseline.maps is not callback.monitor.baseline.maps  # type: ignore[union-attr]
    assert copied.monitor.metrics == callback.monitor.metrics  # type: ignore[union-attr]


@pytest.mark.parametrize("way", EACH_WAY)
def test_a_copy_of_a_callback_in_a_fit_is_fitted_without_touching_the_original(
    way: Callable[[Any], Any], tmp_path: Path
) -> None:
    callback = make_callback(dirpath=tmp_path / "a" / "evaluations")
    copier = Copier(callback, way)
    train(tmp_path / "a", callback, copier)
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    copied = copier.copies["on_train_batch_end"]  # the last step, before the last evaluation
    copied.dirpath = tmp_path / "b" / "evaluations"

    train(tmp_path / "b", copied)

    assert [entry.step for entry in copied.history] == [*STEPS[:-1], *STEPS[1:]], "it goes on with its baseline"
    assert [entry.step for entry in callback.history] == STEPS
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert [event.step for event in events(tmp_path / "b").Scalars("clipcam/drift")] == STEPS[1:]


def test_a_copy_of_an_unused_callback_starts_with_the_evaluation_before_training(tmp_path: Path) -> None:
    callback = make_callback()
    copies = [copy.deepcopy(callback) for _ in range(2)]
    for number, copied in enumerate(copies):
        train(tmp_path / str(number), copied)

    assert [[entry.step for entry in copied.history] for copied in copies] == [STEPS, STEPS]
    assert callback.monitor is None


def test_a_callback_with_functions_of_the_user_is_deep_copied(tmp_path: Path) -> None:
    callback = make_callback(
        encode_image=lambda module, images: module.model.encode_image(images),
        encode_text=lambda module, texts: module.model.encode_text(texts),
        tokenizer=tiny_module().tokenizer,
    )
    copier = Copier(callback, copy.deepcopy)
    train(tmp_path / "a", callback, copier, max_epochs=1)
    train(tmp_path / "b", copier.copies["on_train_end"], max_epochs=1)

    assert [entry.step for entry in copier.copies["on_train_end"].history] == [0, 2, 2]


@pytest.mark.ranks
def test_spawned_processes_evaluate(tmp_path: Path) -> None:
    command = [sys.executable, spawned_program.__file__, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False)

    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    results = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2)]
    assert [result["steps"] for result in results] == [[0, 2, 4], []]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["metrics"]["clipcam/drift"] > 0
    assert len(list((tmp_path / "evaluations").glob("step-*.safetensors"))) == 3
