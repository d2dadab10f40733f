"""The callback in real trainings, from the first look to a resumed run."""

import io
import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torch import nn

from clipcam_lightning import (
    ClipCamCallback,
    ClipCamError,
    ClipCamWarning,
    DriftAlarm,
    Probe,
    ProbeSet,
    Snapshot,
    compare,
)
from clipcam_lightning.cam.targets import Contrast
from clipcam_lightning.drift.compare import MIN_NOISE_FLOOR
from clipcam_lightning.errors import ConfigError, IncomparableError, ModelError, ProbeError, SnapshotError
from clipcam_lightning.shapes_world.models import build_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.modules import FineTuning, Pairs, events, fit

# Nets of random weights that learn for a few steps do look elsewhere afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning")

SCENES = draw_scenes(3, seed=9)
ALWAYS = {"drift", "drift_max", "similarity", "flagged", "alarm", "degenerate"}


def masked_probes() -> ProbeSet:
    rows = zip(SCENES.images, SCENES.captions, SCENES.masks[:, 0], strict=True)
    return ProbeSet(Probe(image, caption, mask=mask) for image, caption, mask in rows)


class Figures(pl.Callback):
    """What another callback sees of the metrics at the end of each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.seen.append({k.removeprefix("clipcam/"): float(v) for k, v in metrics.items() if "clipcam" in k})


@pytest.mark.parametrize("form", ["tokens", "strings", "dict", "nested"])
@pytest.mark.parametrize("name", ["model", "backbone_of_mine"])
def test_without_any_argument_pictures_and_scalars_land_at_equal_steps(form: str, name: str, tmp_path: Path) -> None:
    fit(FineTuning(name), tmp_path, ClipCamCallback(), form=form)

    log = events(tmp_path)
    captions = Pairs(seed=1).captions[:4]  # the first validation batch, seen in the sanity check
    names = sorted(tag.removeprefix("clipcam_drift/") for tag in log.Tags()["scalars"] if "clipcam_drift/" in tag)
    assert {name.rstrip("-2345").replace("-", " ") for name in names} == set(captions)
    assert len(names) == 4
    steps = [0, 4, 8]
    for tag in (f"clipcam/{names[0]}", "clipcam_contact_sheet/all_probes"):
        assert [event.step for event in log.Images(tag)] == steps
    for tag in (f"clipcam_drift/{names[0]}", f"clipcam_similarity/{names[0]}", "clipcam/drift", "clipcam/similarity"):
        assert [event.step for event in log.Scalars(tag)] == steps
    assert log.Scalars("clipcam/drift")[0].value == 0
    assert log.Scalars("clipcam/drift")[-1].value > 0
    assert [event.step for event in log.Tensors("clipcam/probes/text_summary")] == [0]


def test_the_pictures_are_pictures(tmp_path: Path) -> None:
    fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()))

    log = events(tmp_path)
    for tag in log.Tags()["images"]:
        for event in log.Images(tag):
            picture = Image.open(io.BytesIO(event.encoded_image_string))
            picture.load()
            assert (picture.format, picture.size) == ("JPEG", (event.width, event.height))
            assert len(event.encoded_image_string) < 60_000


def test_scalars_are_what_the_snapshots_say(tmp_path: Path) -> None:
    watcher = ClipCamCallback(masked_probes())
    trainer = fit(FineTuning(), tmp_path, watcher)

    files = sorted((tmp_path / "run" / "clipcam").glob("step-*.safetensors"))
    snapshots = [Snapshot.load(file) for file in files]
    assert [snapshot.info.step for snapshot in snapshots] == [0, 4, 8]
    log, last = events(tmp_path), snapshots[-1]
    for i, name in enumerate(last.names):
        assert log.Scalars(f"clipcam_similarity/{name}")[-1].value == pytest.approx(float(last.similarity[i]))
        assert log.Scalars(f"clipcam_energy_inside_mask/{name}")[-1].value == pytest.approx(
            float(last.energy_inside_mask[i])
        )
        pair = torch.stack([snapshots[0].maps[i].flatten(), last.maps[i].flatten()])
        cc = float(torch.corrcoef(pair)[0, 1])
        assert log.Scalars(f"clipcam_drift/{name}")[-1].value == pytest.approx(1 - cc, abs=1e-5)
    assert trainer.callback_metrics["clipcam/similarity"] == pytest.approx(float(last.similarity.mean()))


def test_the_history_has_a_line_a_evaluation_with_the_figures_of_the_snapshots(tmp_path: Path) -> None:
    trainer = fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()))

    lines = [json.loads(line) for line in (tmp_path / "run" / "clipcam" / "history.jsonl").read_text().splitlines()]
    snapshots = [Snapshot.load(file) for file in sorted((tmp_path / "run" / "clipcam").glob("step-*.safetensors"))]
    assert [(line["step"], line["epoch"]) for line in lines] == [(0, 0), (4, 0), (8, 1)]
    for line, snapshot in zip(lines, snapshots, strict=True):
        report = compare(snapshots[0], snapshot)
        assert line["alarm"] == report.alarm
        assert [probe["drift"] for probe in line["probes"]] == pytest.approx([row.drift for row in report.probes])
        assert [probe["name"] for probe in line["probes"]] == list(snapshot.names)
    fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()), max_epochs=1)
    assert len((tmp_path / "run" / "clipcam" / "history.jsonl").read_text().splitlines()) == 2, "another run"
    assert lines[-1]["metrics"]["drift"] == pytest.approx(float(trainer.callback_metrics["clipcam/drift"]))


@pytest.mark.parametrize("baseline", ["start", "previous"])
def test_only_the_first_evaluation_measures_noise_and_keeps_pictures_and_later_ones_are_judged_by_it(
    tmp_path: Path, baseline: str
) -> None:
    watcher = ClipCamCallback(masked_probes(), baseline=baseline)
    fit(FineTuning(), tmp_path, watcher)

    first, *later = (Snapshot.load(file) for file in sorted((tmp_path / "run" / "clipcam").glob("step-*.safetensors")))
    assert first.noise_floor is not None
    assert all(Image.open(io.BytesIO(picture)).size == (64, 64) for picture in first.images)
    assert len(first.images) == len(first.names)
    assert [(snapshot.noise_floor, snapshot.images) for snapshot in later] == [(None, ())] * 2
    assert watcher.monitor is not None
    assert watcher.monitor.last is not None
    for row, noise in zip(watcher.monitor.last.report.probes, first.noise_floor.tolist(), strict=True):
        assert row.noise_ratio == pytest.approx(row.drift / max(noise, MIN_NOISE_FLOOR), rel=1e-4)


def test_figures_are_in_callback_metrics_every_epoch_and_finite(tmp_path: Path) -> None:
    figures = Figures()
    fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes(), every_n_epochs=2), figures, max_epochs=3)

    assert [seen.keys() for seen in figures.seen] == [ALWAYS | {"energy_inside_mask", "pointing"}] * 3
    assert all(math.isfinite(value) for seen in figures.seen for value in seen.values())
    assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == [0, 8]


CADENCES: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "every epoch": ({}, {}, [0, 4, 8]),
    "no validation": ({}, {"validate": False}, [0, 4, 8]),
    "two validations an epoch": ({}, {"val_check_interval": 0.5}, [0, 2, 4, 6, 8]),
    "validation every other epoch": ({}, {"check_val_every_n_epoch": 2}, [0, 4, 8]),
    "every second epoch": ({"every_n_epochs": 2}, {}, [0, 8]),
    "every third step": ({"every_n_train_steps": 3}, {}, [0, 3, 6]),
    "every step, two batches each": ({"every_n_train_steps": 1}, {"accumulate_grad_batches": 2}, [0, 1, 2, 3, 4]),
    "no sanity check": ({}, {"num_sanity_val_steps": 0}, [0, 4, 8]),
    "last validation before the epoch's end": ({}, {"val_check_interval": 3}, [0, 3, 4, 7, 8]),
    "steps end in mid-epoch": ({}, {"max_steps": 6}, [0, 4, 6]),
}


@pytest.mark.parametrize(("arguments", "options", "steps"), CADENCES.values(), ids=CADENCES)
def test_evaluations_are_taken(arguments: Any, options: Any, steps: list[int], tmp_path: Path) -> None:
    monitors = [EarlyStopping("clipcam/drift", patience=99), Figures()]
    fit(FineTuning(), tmp_path, ClipCamCallback(method="hirescam", **arguments), *monitors, **options)

    assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == steps
    assert all(seen.keys() == ALWAYS for seen in monitors[1].seen)  # type: ignore[attr-defined]


def test_a_checkpoint_can_be_chosen_by_energy_on_the_object(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", monitor="clipcam/energy_inside_mask", mode="max")
    fit(FineTuning(), tmp_path, keeper, ClipCamCallback(masked_probes()), enable_checkpointing=True)

    assert keeper.best_model_score is not None
    assert keeper.best_model_score.isfinite()


def test_stop_ends_the_training_with_a_warning_that_names_the_probes(tmp_path: Path) -> None:
    watcher = ClipCamCallback(masked_probes(), max_drift=0.0, on_drift="stop")

    with pytest.warns(ClipCamWarning, match=r"attention drifted on 3 of 3 probes at step 4 .*Training stops"):
        trainer = fit(FineTuning(), tmp_path, watcher, max_epochs=9)

    assert trainer.global_step == 4


def test_raise_ends_the_training_with_an_alarm(tmp_path: Path) -> None:
    watcher = ClipCamCallback(masked_probes(), max_drift=0.0, on_drift="raise")

    with pytest.raises(DriftAlarm, match=r"3 of 3 probes.*its map drifted by more than 0"):
        fit(FineTuning(), tmp_path, watcher)


def test_log_says_nothing_and_previous_compares_with_the_evaluation_before(tmp_path: Path) -> None:
    watcher = ClipCamCallback(masked_probes(), max_drift=0.0, on_drift="log", baseline="previous")
    fit(FineTuning(), tmp_path, watcher, max_epochs=2)

    assert watcher.monitor is not None
    assert watcher.monitor.last is not None
    assert watcher.monitor.last.baseline.info.step == 4
    assert events(tmp_path).Scalars("clipcam/flagged")[-1].value == 3


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # of the second ModelCheckpoint
def test_a_run_resumes_with_its_baseline_probes_and_history(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", filename="last")
    first = ClipCamCallback()
    fit(FineTuning(), tmp_path / "a", first, keeper, max_epochs=2, enable_checkpointing=True)
    again = ClipCamCallback()

    trainer = fit(
        FineTuning(),
        tmp_path / "b",
        again,
        ModelCheckpoint(tmp_path / "kept too"),
        max_epochs=3,
        enable_checkpointing=True,
        ckpt_path=tmp_path / "kept" / "last.ckpt",
    )

    assert trainer.global_step == 12
    assert first.monitor is not None
    assert again.monitor is not None
    assert again.monitor.probes.digest == first.monitor.probes.digest
    assert torch.equal(again.monitor.baseline.maps, first.monitor.baseline.maps)  # type: ignore[union-attr]
    assert [column.step for column in again.monitor.history] == [0, 4, 8, 12]
    assert [event.step for event in events(tmp_path / "b").Scalars("clipcam/drift")] == [12]


def test_a_second_fit_goes_on_with_the_baseline_of_the_first(tmp_path: Path) -> None:
    watcher, module = ClipCamCallback(masked_probes(), method="hirescam"), FineTuning()
    fit(module, tmp_path / "a", watcher)
    fit(module, tmp_path / "b", watcher)

    assert watcher.monitor is not None
    assert [column.step for column in watcher.monitor.history] == [0, 4, 8, 4, 8]
    assert events(tmp_path / "b").Scalars("clipcam/drift")[0].value > 0


def test_a_second_run_with_as_many_steps_is_evaluated_at_too(tmp_path: Path) -> None:
    watcher = ClipCamCallback(masked_probes(), method="hirescam")
    for fold in ("a", "b"):
        fit(FineTuning(), tmp_path / fold, watcher, max_epochs=1)

    assert [event.step for event in events(tmp_path / "b").Scalars("clipcam/drift")] == [4]


def test_after_an_interrupted_fit_the_next_writes_to_its_own_folder(tmp_path: Path) -> None:
    watcher = ClipCamCallback(masked_probes(), method="hirescam", max_drift=0.0, on_drift="raise")
    for fold in ("a", "b"):
        with pytest.raises(DriftAlarm):
            fit(FineTuning(), tmp_path / fold, watcher)

    assert (tmp_path / "b" / "run" / "clipcam" / "contact_sheet.png").exists()


def test_two_optimizers_stepped_by_hand_miss_no_evaluation(tmp_path: Path) -> None:
    class ByHand(FineTuning):
        automatic_optimization = False

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            if self.trainer.training:
                self.manual_backward(loss)
                for optimizer in self.optimizers():
                    optimizer.step()

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), 1e-3) for part in (self.model.visual, self.model.transformer)]

    fit(ByHand(), tmp_path, ClipCamCallback(masked_probes(), method="hirescam", every_n_train_steps=3))

    assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == [0, 4, 6, 10, 12, 16]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_resumed_with_another_method_takes_a_new_baseline(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", filename="last")
    first = ClipCamCallback(masked_probes(), method="gradcam")
    fit(FineTuning(), tmp_path / "a", first, keeper, enable_checkpointing=True)
    again = ClipCamCallback(masked_probes(), method="hirescam")
    options: Any = {"max_epochs": 4, "enable_checkpointing": True, "ckpt_path": tmp_path / "kept" / "last.ckpt"}

    with pytest.warns(ClipCamWarning, match=r"another CAM method.*This look is the new baseline"):
        fit(FineTuning(), tmp_path / "b", again, ModelCheckpoint(tmp_path / "too"), **options)

    assert again.monitor is not None
    assert again.monitor.baseline is not None
    assert (again.monitor.baseline.info.method, again.monitor.baseline.info.step) == ("hirescam", 12)


def test_a_checkpoint_holds_no_pictures_that_were_given(tmp_path: Path) -> None:
    given, captured = ClipCamCallback(masked_probes()), ClipCamCallback(method="hirescam")
    fit(FineTuning(), tmp_path / "a", given)
    fit(FineTuning(), tmp_path / "b", captured)

    assert "probes" not in given.state_dict()
    assert "probes" in captured.state_dict()


def test_two_of_them_share_a_run(tmp_path: Path) -> None:
    pair = ClipCamCallback(masked_probes(), name="all"), ClipCamCallback([(SCENES.images[0], "a red star")], name="red")
    trainer = fit(FineTuning(), tmp_path, *pair)

    assert {"clipcam_all/drift", "clipcam_red/drift"} <= trainer.callback_metrics.keys()
    assert {"clipcam_all/drift", "clipcam_red_drift/a-red-star"} <= set(events(tmp_path).Tags()["scalars"])
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"clipcam_all", "clipcam_red"}
    assert pair[0].state_key != pair[1].state_key


def test_a_baseline_file_is_compared_with(tmp_path: Path) -> None:
    fit(FineTuning(), tmp_path / "a", ClipCamCallback(masked_probes(), method="gradcam"))
    baseline = tmp_path / "a" / "run" / "clipcam" / "step-00000008.safetensors"

    watcher = ClipCamCallback(masked_probes(), baseline=baseline, method="gradcam")
    fit(FineTuning(), tmp_path / "b", watcher)

    assert events(tmp_path / "b").Scalars("clipcam/drift")[0].value > 0
    with pytest.raises(IncomparableError, match="made with other probes"):
        fit(FineTuning(), tmp_path / "c", ClipCamCallback([(SCENES.images[0], "a red star")], baseline=baseline))
    with pytest.warns(ClipCamWarning, match=r"another CAM method: method 'gradcam', now 'hirescam'"):
        fit(FineTuning(), tmp_path / "d", ClipCamCallback(masked_probes(), baseline=baseline, method="hirescam"))


def test_settings_reach_the_maps(tmp_path: Path) -> None:
    target = Contrast(negatives=("a blue square",))
    watcher = ClipCamCallback(
        masked_probes(), method="layercam", layers=[-2, -1], target=target, dirpath=tmp_path / "x"
    )
    fit(FineTuning(), tmp_path, watcher)

    info = Snapshot.load(tmp_path / "x" / "step-00000008.safetensors").info
    assert (info.method, info.target) == ("layercam", "contrast(a blue square)")
    assert info.layers == tuple(f"visual.transformer.resblocks.{i}.ln_1" for i in (1, 2))
    assert (tmp_path / "x" / "contact_sheet.png").stat().st_size > 1000


def test_fast_dev_run_and_validate_write_nothing(tmp_path: Path) -> None:
    watcher = ClipCamCallback(masked_probes())
    trainer = fit(FineTuning(), tmp_path, watcher, fast_dev_run=True)
    trainer.validate(FineTuning(), torch.utils.data.DataLoader(Pairs(), 4), verbose=False)

    assert not list(tmp_path.rglob("clipcam*"))


def test_no_logger_still_leaves_snapshots(tmp_path: Path) -> None:
    fit(FineTuning(), tmp_path, ClipCamCallback(), logger=False, default_root_dir=tmp_path)

    assert len(list((tmp_path / "clipcam").glob("step-*.safetensors"))) == 3


def test_a_module_built_in_configure_model_is_found(tmp_path: Path) -> None:
    class Late(FineTuning):
        def __init__(self) -> None:
            super().__init__(clip=nn.Identity())

        def configure_model(self) -> None:
            if isinstance(self.model, nn.Identity):
                self.model = build_clip("vit")

    assert "clipcam/drift" in fit(Late(), tmp_path, ClipCamCallback()).callback_metrics


def test_a_module_built_in_its_own_setup_is_found(tmp_path: Path) -> None:
    class Late(FineTuning):
        def __init__(self) -> None:
            super().__init__(clip=nn.Identity())

        def setup(self, stage: str) -> None:
            self.model = build_clip("vit")

    assert "clipcam/drift" in fit(Late(), tmp_path, ClipCamCallback(method="hirescam")).callback_metrics


class DeepSpeedStrategy(SingleDeviceStrategy):
    """Of a name that is not served."""


def test_under_a_strategy_that_is_not_served_it_switches_itself_off_with_a_warning(tmp_path: Path) -> None:
    monitors = [Figures(), EarlyStopping("clipcam/drift", patience=99)]
    strategy = DeepSpeedStrategy(device="cpu")
    with pytest.warns(ClipCamWarning, match=r"under DeepSpeedStrategy\. The training goes on without looks"):
        trainer = fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()), *monitors, strategy=strategy)
    assert trainer.global_step == 8
    assert [seen["drift"] for seen in monitors[0].seen] == [1, 1]  # type: ignore[attr-defined]  # unknown
    assert not list(tmp_path.rglob("step-*"))


class TestBadInput:
    """Said clearly; what can be said before training is said before training."""

    def test_a_strategy_that_is_not_served_is_refused_if_errors_raise(self, tmp_path: Path) -> None:
        strategy = DeepSpeedStrategy(device="cpu")
        with pytest.raises(ConfigError, match="cannot look into a model under DeepSpeedStrategy"):
            fit(FineTuning(), tmp_path, ClipCamCallback(on_error="raise"), strategy=strategy)

    def test_no_clip_in_the_module(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no CLIP in FineTuning"):
            fit(FineTuning(clip=nn.Linear(2, 2)), tmp_path, ClipCamCallback())

    def test_two_clips_and_then_the_chosen_one(self, tmp_path: Path) -> None:
        module = FineTuning()
        module.other = build_clip("vit")
        with pytest.raises(ModelError, match=r"model \(CLIP\), other \(CLIP\).*clip='dotted"):
            fit(module, tmp_path, ClipCamCallback())
        assert "clipcam/drift" in fit(module, tmp_path, ClipCamCallback(clip="model")).callback_metrics

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "cam"}, "'auto', one of gradcam, gradcam_pp"),
            ({"target": "logits"}, "'similarity', 'contrast'"),
            ({"max_drift": -0.1}, "max_drift must lie in 0"),
            ({"on_drift": "panic"}, "log, warn, stop, raise"),
            ({"on_error": "ignore"}, "warn, raise"),
            ({"every_n_epochs": 0}, "every_n_epochs must be at least 1"),
            ({"every_n_train_steps": -1}, "every_n_train_steps must be at least 1"),
            ({"num_probes": 0}, "num_probes must be at least 1"),
            ({"name": "a/b"}, "letters, digits"),
            ({"target": "contrast"}, r"Contrast\(negatives="),
        ],
    )
    def test_arguments(self, arguments: dict[str, Any], message: str, unchecked: None) -> None:
        with pytest.raises(ConfigError, match=message):
            ClipCamCallback(**arguments)

    def test_a_missing_baseline_file_before_training(self, tmp_path: Path) -> None:
        with pytest.raises(SnapshotError, match=r"nothing\.safetensors cannot be read"):
            fit(FineTuning(), tmp_path, ClipCamCallback(baseline=tmp_path / "nothing.safetensors"))

    def test_negatives_that_are_letters(self, unchecked: None) -> None:
        with pytest.raises(ConfigError, match=r"a tuple of prompts.*'red'"):
            Contrast(negatives="red")

    @pytest.mark.parametrize("probes", [None, masked_probes()], ids=["captured", "given"])
    def test_an_unknown_layer_before_training(self, probes: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"got 'blocks\.3'.*Layers worth mapping"):
            fit(FineTuning(), tmp_path, ClipCamCallback(probes, layers="blocks.3"))

    def test_captured_probes_of_another_size(self, tmp_path: Path) -> None:
        with pytest.raises(ProbeError, match=r"probe .* 32x32.*expects 64x64"):
            fit(FineTuning(), tmp_path, ClipCamCallback([(torch.randn(3, 32, 32), "a red star")]))

    def test_a_batch_without_prompts_warns_and_the_training_goes_on(self, tmp_path: Path) -> None:
        with pytest.warns(ClipCamWarning, match=r"no probes could be taken.*Give probes=.*The training goes on"):
            trainer = fit(FineTuning(), tmp_path, ClipCamCallback(), form="labels")
        assert trainer.global_step == 8
        assert trainer.callback_metrics["clipcam/drift"] == 1
        with pytest.raises(ClipCamError, match="no probes could be taken"):
            fit(FineTuning(), tmp_path, ClipCamCallback(on_error="raise"), form="labels")

    def test_a_failing_evaluation_warns_once_and_the_training_goes_on(self, tmp_path: Path) -> None:
        def broken(_capture: Any) -> torch.Tensor:
            raise ZeroDivisionError("on purpose")

        with pytest.warns(ClipCamWarning, match="a look failed: ZeroDivisionError: on purpose") as caught:
            trainer = fit(FineTuning(), tmp_path, ClipCamCallback(method=broken), Figures())

        assert len([warning for warning in caught if warning.category is ClipCamWarning]) == 1
        assert trainer.global_step == 8
        assert trainer.callback_metrics["clipcam/drift"] == 1, "unknown is not unmoved"
        with pytest.raises(ClipCamError, match="on purpose") as raised:
            fit(FineTuning(), tmp_path, ClipCamCallback(method=broken, on_error="raise"))
        assert isinstance(raised.value.__cause__, ZeroDivisionError)

    def test_a_directory_that_cannot_be_written_warns_and_figures_go_on(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        watcher = ClipCamCallback(masked_probes(), dirpath=tmp_path / "file" / "below")

        with pytest.warns(ClipCamWarning, match="a look could not be written"):
            trainer = fit(FineTuning(), tmp_path, watcher)

        assert trainer.callback_metrics["clipcam/drift"] > 0
        assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == [0, 4, 8]

    def test_nan_weights_are_reported_and_the_training_goes_on(self, tmp_path: Path) -> None:
        class Exploding(FineTuning):
            def on_train_epoch_start(self) -> None:
                with torch.no_grad():
                    self.model.visual.proj *= float("nan")

        figures = Figures()
        with pytest.warns(ClipCamWarning, match=r"its map is not finite"):
            trainer = fit(Exploding(), tmp_path, ClipCamCallback(masked_probes()), figures)

        assert trainer.global_step == 8
        assert figures.seen[-1]["degenerate"] == figures.seen[-1]["flagged"] == 3
        assert figures.seen[-1]["drift"] == 1
        assert all(math.isfinite(value) for value in figures.seen[-1].values())

    def test_a_blind_baseline_is_noted_and_no_alarm(self, tmp_path: Path) -> None:
        with pytest.warns(ClipCamWarning, match=r"3 of 3 probes have no usable baseline.*all zero"):
            trainer = fit(
                FineTuning(),
                tmp_path,
                ClipCamCallback(masked_probes(), method=lambda c: 0 * c.activations[:, :1], on_drift="raise"),
            )
        assert trainer.callback_metrics["clipcam/flagged"] == 0
        assert trainer.callback_metrics["clipcam/degenerate"] == 3
