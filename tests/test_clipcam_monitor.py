"""The monitor of trainings without a Lightning Trainer."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning import (
    ClipCamError,
    ClipCamMonitor,
    ClipCamWarning,
    DriftAlarm,
    Evaluation,
    IncomparableError,
    Sink,
)
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.shapes_world import WordTokenizer, demo, draw_scenes, trained_clip
from tests.support.modules import events


@pytest.fixture
def model() -> nn.Module:
    return trained_clip("vit").train()


def shaken(model: nn.Module, by: float = 0.05) -> nn.Module:
    """A copy of a model whose weights moved."""
    torch.manual_seed(0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return other


def make_monitor(folder: Path, **arguments: Any) -> ClipCamMonitor:
    arguments = {"method": "hirescam", "tokenizer": WordTokenizer(), "dirpath": folder, "on_drift": "log", **arguments}
    return ClipCamMonitor(demo.demo_probes(), **arguments)


def test_the_first_evaluation_is_the_baseline_of_the_later_ones(model: nn.Module, tmp_path: Path) -> None:
    with make_monitor(tmp_path) as monitor:
        first, second = (monitor.evaluate(each, step) for step, each in ((0, model), (10, shaken(model))))
    assert first is not None
    assert second is not None
    assert (first.drift, second.baseline_step, second.step) == (0.0, 0, 10)
    assert monitor.report is second
    assert monitor.metrics["drift"] == second.drift > 0
    assert [entry.step for entry in monitor.history] == [0, 10]
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 2
    assert (tmp_path / "contact_sheet.png").exists()
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2


def test_the_model_comes_back_as_it_was(model: nn.Module, tmp_path: Path) -> None:
    before, state, mode = copy.deepcopy(model.state_dict()), torch.get_rng_state(), model.training
    with make_monitor(tmp_path) as monitor:
        monitor.evaluate(model, 0)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == mode
    assert all(parameter.grad is None for parameter in model.parameters())


def test_tensorboard_gets_what_the_callback_writes(model: nn.Module, tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / "run"))
    with make_monitor(tmp_path / "files", loggers=[writer]) as monitor:
        monitor.evaluate(model, 0)
    writer.close()
    tags = events(tmp_path).Tags()
    assert "clipcam/drift" in tags["scalars"]
    assert "clipcam/tab/evaluation" in tags["tensors"]


def test_an_alarm_says_at_which_address_tensorboard_shows_it(model: nn.Module, tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / "run"))
    with make_monitor(tmp_path / "files", max_drift=0.0, on_drift="warn", loggers=[writer]) as monitor:
        monitor.evaluate(model, 0)
        with pytest.warns(ClipCamWarning) as caught:
            report = monitor.evaluate(shaken(model), 10)
    writer.close()
    assert report is not None
    first, second = str(caught[0].message).split("\n")
    assert first.endswith("report.html.")
    assert second == (
        f"TensorBoard: run tensorboard --logdir {tmp_path / 'run'} and add "
        f"#clipcam&p.clipcam.evaluation=10&p.clipcam.open={report.flagged[0].name} to its address"
    )


def test_an_alarm_warns_once_or_is_raised(model: nn.Module, tmp_path: Path) -> None:
    with make_monitor(tmp_path / "a", max_drift=0.0, on_drift="warn") as monitor:
        monitor.evaluate(model, 0)
        with pytest.warns(ClipCamWarning, match=r"attention drifted on .*Report: .*report\.html"):
            monitor.evaluate(shaken(model), 10)
        with warnings.catch_warnings(action="error"):
            assert monitor.evaluate(shaken(model, 0.06), 20) is not None
    assert (tmp_path / "a" / "report.html").exists()
    with make_monitor(tmp_path / "b", max_drift=0.0, on_drift="raise") as monitor:
        monitor.evaluate(model, 0)
        with pytest.raises(DriftAlarm):
            monitor.evaluate(shaken(model), 10)


def test_a_failed_evaluation_warns_once_or_is_raised(model: nn.Module, tmp_path: Path) -> None:
    monitor = make_monitor(tmp_path)
    with pytest.warns(ClipCamWarning, match="an evaluation failed: no CLIP in Linear") as caught:
        assert [monitor.evaluate(nn.Linear(2, 2), step) for step in (0, 1)] == [None, None]
    assert len(caught) == 1
    assert monitor.metrics["drift"] == 1, "unknown is not unmoved"
    with pytest.raises(ClipCamError, match="no CLIP in Linear"):
        make_monitor(tmp_path, on_error="raise").evaluate(nn.Linear(2, 2), 0)


def test_a_monitor_goes_on_from_a_state(model: nn.Module, tmp_path: Path) -> None:
    with make_monitor(tmp_path / "a") as first:
        first.evaluate(model, 0)
        state = first.state_dict()
    with make_monitor(tmp_path / "b") as second:
        second.load_state_dict(state)
        report = second.evaluate(shaken(model), 10)
    assert report is not None
    assert report.baseline_step == 0
    assert report.drift > 0

    scenes = draw_scenes(2)
    other = ClipCamMonitor(list(zip(scenes.images, scenes.captions, strict=True)), dirpath=tmp_path)
    with pytest.raises(IncomparableError, match="other probes"):
        other.load_state_dict(state)


def test_the_clip_is_searched_once_and_again_when_a_part_is_another(model: nn.Module, tmp_path: Path) -> None:
    with make_monitor(tmp_path) as monitor:
        clips = [monitor._find(model), monitor._find(model)]
        assert clips[0] is clips[1]
        model.visual.ln_post = nn.LayerNorm(model.visual.ln_post.normalized_shape)
        assert monitor._find(model) is not clips[0]
        assert monitor._find(shaken(model)) is not clips[0]


def test_an_argument_that_cannot_be_used_is_refused_at_once(tmp_path: Path, unchecked: None) -> None:
    with pytest.raises(ConfigError, match="log, warn, raise"):
        make_monitor(tmp_path, on_drift="stop")


def test_a_second_run_in_one_folder_is_told_where_its_files_are(model: nn.Module, tmp_path: Path) -> None:
    with make_monitor(tmp_path) as monitor:
        monitor.evaluate(model, 0)
        assert monitor.directory == str(tmp_path)
    with make_monitor(tmp_path) as other, pytest.warns(ClipCamWarning, match="holds the files of another run"):
        other.evaluate(model, 0)
    assert other.directory == str(tmp_path / "run_2")


def test_a_resumed_run_goes_on_in_its_own_folder(model: nn.Module, tmp_path: Path) -> None:
    with make_monitor(tmp_path) as monitor:
        monitor.evaluate(model, 0)
        state = monitor.state_dict()
    with make_monitor(tmp_path) as other:
        with pytest.warns(ClipCamWarning, match="holds the files of another run"):
            other.evaluate(model, 0)
        other.load_state_dict(state)
        other.evaluate(shaken(model), 10)
        assert other.directory == str(tmp_path)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2


def test_a_contrastive_target_without_negatives_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs explicit negatives"):
        make_monitor(tmp_path, target="contrast")


@pytest.mark.filterwarnings("ignore:ClipCamMonitor. .* holds the files of another run:clipcam_lightning.ClipCamWarning")
def test_a_second_run_gets_a_folder_of_its_own(model: nn.Module, tmp_path: Path) -> None:
    monitor = make_monitor(tmp_path)
    folders = []
    for _ in range(2):
        with monitor:
            for step, each in ((0, model), (10, shaken(model))):
                monitor.evaluate(each, step)
            folders.append(Path(str(monitor.directory)))
    assert folders[0] != folders[1]
    assert [len(list(folder.glob("step-*.safetensors"))) for folder in folders] == [2, 2]


class RandomSink(Sink):
    """Draws random numbers of torch and numpy."""

    def write(self, evaluation: Evaluation) -> None:
        torch.rand(1)
        np.random.rand()


def test_random_numbers_of_a_sink_do_not_change_those_of_the_training(model: nn.Module, tmp_path: Path) -> None:
    def draw() -> tuple[float, float]:  # not of Python's, of which the type checks of the tests draw
        return float(torch.rand(1)), np.random.rand()

    def seed() -> None:
        torch.manual_seed(1)
        np.random.seed(1)

    seed()
    expected = draw()
    with make_monitor(tmp_path, sinks=[RandomSink()]) as monitor:
        seed()
        monitor.evaluate(model, 0)
        assert draw() == expected


@pytest.mark.parametrize("name", ["", "my run/a"])
def test_a_name_that_is_no_part_of_a_tag_is_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name must be letters, digits"):
        make_monitor(tmp_path, name=name)
