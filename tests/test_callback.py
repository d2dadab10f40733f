"""The callback in real trainings, from its arguments to a resumed run."""

import inspect
import io
import json
import math
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torch import nn
from torch.testing import assert_close

from clipcam_lightning import (
    ClipCamCallback,
    ClipCamError,
    ClipCamWarning,
    DriftAlarm,
    Method,
    Probe,
    ProbeSet,
    Snapshot,
    compare,
)
from clipcam_lightning.cam.targets import Contrast
from clipcam_lightning.cam.towers.open_clip import OpenClipViT
from clipcam_lightning.drift.compare import MIN_NOISE_FLOOR
from clipcam_lightning.errors import ConfigError, IncomparableError, ModelError, ProbeError, SnapshotError
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.faulty import FaultyMethod
from tests.support.modules import FineTuning, Pairs, events, fit

# After a few steps of training, a model of random weights does look elsewhere.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning"),
]

SCENES = draw_scenes(3, seed=9)
ALWAYS = {"drift", "drift_max", "named_without_object", "similarity", "flagged", "alarm", "degenerate"}


def masked_probes() -> ProbeSet:
    rows = zip(SCENES.images, SCENES.captions, SCENES.masks[:, 0], strict=True)
    return ProbeSet(Probe(image, caption, mask=mask) for image, caption, mask in rows)


class EpochMetrics(pl.Callback):
    """Records the metrics that another callback can read at the end of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.epochs.append({k.removeprefix("clipcam/"): float(v) for k, v in metrics.items() if "clipcam" in k})


@pytest.mark.parametrize("form", ["tokens", "strings", "dict", "nested"])
@pytest.mark.parametrize("name", ["model", "backbone_of_mine"])
def test_without_arguments_images_and_scalars_are_logged_at_the_same_steps(
    form: str, name: str, tmp_path: Path
) -> None:
    fit(FineTuning(name), tmp_path, ClipCamCallback(), form=form)

    log = events(tmp_path)
    captions = Pairs(seed=1).captions[:4]  # the first validation batch, from the sanity check
    names = sorted(tag.removeprefix("clipcam_drift/") for tag in log.Tags()["scalars"] if "clipcam_drift/" in tag)
    assert {name.rstrip("-2345").replace("-", " ") for name in names} == set(captions)
    assert len(names) == 4
    steps = [0, 4, 8]
    for tag in (f"clipcam_maps/{names[0]}", "clipcam_contact_sheet/all_probes"):
        assert [event.step for event in log.Images(tag)] == steps
    for tag in (f"clipcam_drift/{names[0]}", f"clipcam_similarity/{names[0]}", "clipcam/drift", "clipcam/similarity"):
        assert [event.step for event in log.Scalars(tag)] == steps
    assert log.Scalars("clipcam/drift")[0].value == 0
    assert log.Scalars("clipcam/drift")[-1].value > 0
    assert [event.step for event in log.Tensors("clipcam/probes/text_summary")] == [0]


def test_the_images_in_the_log_are_small_jpegs(tmp_path: Path) -> None:
    fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()))

    log = events(tmp_path)
    for tag in log.Tags()["images"]:
        for event in log.Images(tag):
            image = Image.open(io.BytesIO(event.encoded_image_string))
            image.load()
            assert (image.format, image.size) == ("JPEG", (event.width, event.height))
            assert len(event.encoded_image_string) < 60_000


def test_the_scalars_are_those_of_the_snapshots(tmp_path: Path) -> None:
    trainer = fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()))

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


def test_the_history_file_has_one_line_per_evaluation_with_the_metrics_of_the_snapshots(tmp_path: Path) -> None:
    trainer = fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()))

    lines = [json.loads(line) for line in (tmp_path / "run" / "clipcam" / "history.jsonl").read_text().splitlines()]
    snapshots = [Snapshot.load(file) for file in sorted((tmp_path / "run" / "clipcam").glob("step-*.safetensors"))]
    assert [(line["step"], line["epoch"]) for line in lines] == [(0, 0), (4, 0), (8, 1)]
    for line, snapshot in zip(lines, snapshots, strict=True):
        report = compare(snapshots[0], snapshot)
        assert line["alarm"] == report.alarm
        assert [probe["drift"] for probe in line["probes"]] == pytest.approx([row.drift for row in report.probes])
        assert [probe["name"] for probe in line["probes"]] == list(snapshot.names)
    assert lines[-1]["metrics"]["drift"] == pytest.approx(float(trainer.callback_metrics["clipcam/drift"]))
    fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()), max_epochs=1)
    assert len((tmp_path / "run" / "clipcam" / "history.jsonl").read_text().splitlines()) == 3, "of the first run alone"
    assert len((tmp_path / "run" / "clipcam" / "run_2" / "history.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("baseline", ["start", "previous"])
def test_the_first_evaluation_measures_the_noise_floor_and_stores_images_for_all_later_ones(
    tmp_path: Path, baseline: str
) -> None:
    callback = ClipCamCallback(masked_probes(), baseline=baseline)
    fit(FineTuning(), tmp_path, callback)

    first, *later = (Snapshot.load(file) for file in sorted((tmp_path / "run" / "clipcam").glob("step-*.safetensors")))
    assert first.noise_floor is not None
    assert all(Image.open(io.BytesIO(image)).size == (64, 64) for image in first.images)
    assert len(first.images) == len(first.names)
    assert [(snapshot.noise_floor, snapshot.images) for snapshot in later] == [(None, ())] * 2
    assert callback.report is not None
    for row, noise in zip(callback.report.probes, first.noise_floor.tolist(), strict=True):
        assert row.noise_ratio == pytest.approx(row.drift / max(noise, MIN_NOISE_FLOOR), rel=1e-4)


def test_metrics_are_finite_and_in_callback_metrics_in_every_epoch(tmp_path: Path) -> None:
    metrics = EpochMetrics()
    fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes(), every_n_epochs=2), metrics, max_epochs=3)

    assert [epoch.keys() for epoch in metrics.epochs] == [ALWAYS | {"energy_inside_mask", "pointing"}] * 3
    assert all(math.isfinite(value) for epoch in metrics.epochs for value in epoch.values())
    assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == [0, 8]


CADENCES: dict[str, tuple[dict[str, Any], dict[str, Any], list[int]]] = {
    "every epoch": ({}, {}, [0, 4, 8]),
    "no validation": ({}, {"validate": False}, [0, 4, 8]),
    "two validations per epoch": ({}, {"val_check_interval": 0.5}, [0, 2, 4, 6, 8]),
    "validation every other epoch": ({}, {"check_val_every_n_epoch": 2}, [0, 4, 8]),
    "every second epoch": ({"every_n_epochs": 2}, {}, [0, 8]),
    "every third step": ({"every_n_train_steps": 3}, {}, [0, 3, 6]),
    "every step of two batches": ({"every_n_train_steps": 1}, {"accumulate_grad_batches": 2}, [0, 1, 2, 3, 4]),
    "no sanity check": ({}, {"num_sanity_val_steps": 0}, [0, 4, 8]),
    "last validation before the epoch's end": ({}, {"val_check_interval": 3}, [0, 3, 4, 7, 8]),
    "steps end in mid-epoch": ({}, {"max_steps": 6}, [0, 4, 6]),
}


@pytest.mark.parametrize(("arguments", "options", "steps"), CADENCES.values(), ids=CADENCES)
def test_evaluations_take_place_at_the_steps_that_the_arguments_ask_for(
    arguments: Any, options: Any, steps: list[int], tmp_path: Path
) -> None:
    stopper, metrics = EarlyStopping("clipcam/drift", patience=99), EpochMetrics()
    fit(FineTuning(), tmp_path, ClipCamCallback(method="hirescam", **arguments), stopper, metrics, **options)

    assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == steps
    assert all(epoch.keys() == ALWAYS for epoch in metrics.epochs)


def test_a_checkpoint_can_be_chosen_by_the_energy_on_the_object(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", monitor="clipcam/energy_inside_mask", mode="max")
    fit(FineTuning(), tmp_path, keeper, ClipCamCallback(masked_probes()), enable_checkpointing=True)

    assert keeper.best_model_score is not None
    assert keeper.best_model_score.isfinite()


def test_on_drift_stop_ends_the_training_with_a_warning(tmp_path: Path) -> None:
    callback = ClipCamCallback(masked_probes(), max_drift=0.0, on_drift="stop")

    with pytest.warns(ClipCamWarning, match=r"attention drifted on 3 of 3 probes at step 4 .*Training stops"):
        trainer = fit(FineTuning(), tmp_path, callback, max_epochs=9)

    assert trainer.global_step == 4


def test_on_drift_raise_ends_the_training_with_an_alarm_that_carries_its_report(tmp_path: Path) -> None:
    callback = ClipCamCallback(masked_probes(), max_drift=0.0, on_drift="raise")

    with pytest.raises(DriftAlarm, match=r"3 of 3 probes.*than 0") as raised:
        fit(FineTuning(), tmp_path, callback)

    alarm = raised.value
    assert alarm.report is callback.report
    assert all(probe.name in str(alarm) for probe in alarm.report.flagged)
    copied = pickle.loads(pickle.dumps(alarm))
    assert (str(copied), repr(copied.report)) == (str(alarm), repr(alarm.report))


def test_on_drift_log_does_not_warn_and_baseline_previous_compares_with_the_last_evaluation(tmp_path: Path) -> None:
    callback = ClipCamCallback(masked_probes(), max_drift=0.0, on_drift="log", baseline="previous")
    with warnings.catch_warnings(action="error", category=ClipCamWarning):
        fit(FineTuning(), tmp_path, callback, max_epochs=2)

    assert callback.report is not None
    assert (callback.report.baseline_step, callback.report.step) == (4, 8)
    assert events(tmp_path).Scalars("clipcam/flagged")[-1].value == 3


def test_report_snapshot_and_history_are_those_of_the_evaluations_so_far(tmp_path: Path) -> None:
    callback = ClipCamCallback(masked_probes(), on_drift="log")
    assert (callback.report, callback.snapshot, list(callback.history)) == (None, None, [])

    trainer = fit(FineTuning(), tmp_path, callback)

    first, second, last = (
        Snapshot.load(tmp_path / f"run/clipcam/step-0000000{step}.safetensors") for step in (0, 4, 8)
    )
    assert callback.snapshot is not None
    assert callback.snapshot.info == last.info
    assert torch.equal(callback.snapshot.maps, last.maps)
    assert callback.report is not None
    assert repr(callback.report) == repr(compare(first, last))
    assert callback.report.drift == pytest.approx(float(trainer.callback_metrics["clipcam/drift"]))
    for number, (entry, snapshot) in enumerate(zip(callback.history, (first, second, last), strict=True)):
        report = compare(first, snapshot)
        assert (entry.number, entry.step) == (number, snapshot.info.step)
        assert entry.drift == tuple(probe.drift for probe in report.probes)
        assert entry.flagged == tuple(probe.flagged for probe in report.probes)
        shown = snapshot.maps.clamp_min(0)
        assert_close(entry.maps.float(), shown / shown.amax((1, 2), keepdim=True), atol=1e-3, rtol=0)  # float16


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
    assert [entry.step for entry in again.history] == [0, 4, 8, 12]
    assert [event.step for event in events(tmp_path / "b").Scalars("clipcam/drift")] == [12]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_does_not_share_its_baseline_with_the_checkpoint(tmp_path: Path) -> None:
    class Overwriting(pl.Callback):
        """Overwrites the loaded checkpoint, as happens to a mapped file that is written again."""

        def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
            checkpoint["clipcam"]["monitor"]["baseline"]["tensors"]["maps"].zero_()

    keeper = ModelCheckpoint(tmp_path / "kept", filename="last")
    first, again = (ClipCamCallback(masked_probes(), method="hirescam") for _ in range(2))
    fit(FineTuning(), tmp_path / "a", first, keeper, max_epochs=1, enable_checkpointing=True)

    options: Any = {"enable_checkpointing": True, "ckpt_path": tmp_path / "kept" / "last.ckpt"}
    fit(FineTuning(), tmp_path / "b", again, Overwriting(), ModelCheckpoint(tmp_path / "too"), **options)

    assert torch.equal(again.monitor.baseline.maps, first.monitor.baseline.maps)  # type: ignore[union-attr]


def test_a_second_fit_goes_on_with_the_baseline_of_the_first(tmp_path: Path) -> None:
    callback, module = ClipCamCallback(masked_probes(), method="hirescam"), FineTuning()
    fit(module, tmp_path / "a", callback)
    fit(module, tmp_path / "b", callback)

    assert [entry.step for entry in callback.history] == [0, 4, 8, 4, 8]
    assert events(tmp_path / "b").Scalars("clipcam/drift")[0].value > 0


def test_a_second_fit_with_as_many_steps_as_the_first_is_evaluated_too(tmp_path: Path) -> None:
    callback, module = ClipCamCallback(masked_probes(), method="hirescam"), FineTuning()
    for run in ("a", "b"):
        fit(module, tmp_path / run, callback, max_epochs=1)

    assert [event.step for event in events(tmp_path / "b").Scalars("clipcam/drift")] == [4]


@pytest.mark.parametrize("probes", [None, masked_probes()], ids=["of a batch", "of the user"])
def test_a_second_fit_with_another_module_starts_anew(probes: Any, tmp_path: Path) -> None:
    callback = ClipCamCallback(probes, method="hirescam", every_n_train_steps=4)
    for run in ("a", "b"):
        fit(FineTuning(), tmp_path / run, callback, max_epochs=1)

    assert [entry.step for entry in callback.history] == [0, 4]
    assert [event.step for event in events(tmp_path / "b").Scalars("clipcam/drift")] == [0, 4]
    assert max(callback.history[0].drift) == 0


def test_after_an_interrupted_fit_the_next_writes_to_its_own_folder(tmp_path: Path) -> None:
    callback = ClipCamCallback(masked_probes(), method="hirescam", max_drift=0.0, on_drift="raise")
    for run in ("a", "b"):
        with pytest.raises(DriftAlarm):
            fit(FineTuning(), tmp_path / run, callback)

    assert (tmp_path / "b" / "run" / "clipcam" / "contact_sheet.png").exists()


def test_no_evaluation_is_missed_with_two_optimizers_in_manual_optimization(tmp_path: Path) -> None:
    class ManualOptimization(FineTuning):
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

    fit(ManualOptimization(), tmp_path, ClipCamCallback(masked_probes(), method="hirescam", every_n_train_steps=3))

    assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == [0, 4, 6, 10, 12, 16]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_run_resumed_with_another_method_takes_a_new_baseline(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", filename="last")
    first = ClipCamCallback(masked_probes(), method="gradcam")
    fit(FineTuning(), tmp_path / "a", first, keeper, enable_checkpointing=True)
    again = ClipCamCallback(masked_probes(), method="hirescam")
    options: Any = {"max_epochs": 4, "enable_checkpointing": True, "ckpt_path": tmp_path / "kept" / "last.ckpt"}

    with pytest.warns(ClipCamWarning, match=r"another CAM method.*This evaluation is the new baseline"):
        fit(FineTuning(), tmp_path / "b", again, ModelCheckpoint(tmp_path / "too"), **options)

    assert again.monitor is not None
    assert again.monitor.baseline is not None
    assert (again.monitor.baseline.info.method, again.monitor.baseline.info.step) == ("hirescam", 12)


def test_a_checkpoint_stores_probes_of_a_batch_but_not_those_of_the_user(tmp_path: Path) -> None:
    pair = ClipCamCallback(masked_probes(), name="given"), ClipCamCallback(method="hirescam", name="taken")
    fit(FineTuning(), tmp_path, *pair).save_checkpoint(tmp_path / "last.ckpt")

    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "probes" not in checkpoint["clipcam_given"]
    assert "probes" in checkpoint["clipcam_taken"]


def test_two_callbacks_with_names_share_a_run(tmp_path: Path) -> None:
    pair = ClipCamCallback(masked_probes(), name="all"), ClipCamCallback([(SCENES.images[0], "a red star")], name="red")
    trainer = fit(FineTuning(), tmp_path, *pair)

    assert {"clipcam_all/drift", "clipcam_red/drift"} <= trainer.callback_metrics.keys()
    assert {"clipcam_all/drift", "clipcam_red_drift/a-red-star"} <= set(events(tmp_path).Tags()["scalars"])
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"clipcam_all", "clipcam_red"}
    assert pair[0].state_key != pair[1].state_key


def test_evaluations_are_compared_with_a_baseline_file(tmp_path: Path) -> None:
    fit(FineTuning(), tmp_path / "a", ClipCamCallback(masked_probes(), method="gradcam"))
    baseline = tmp_path / "a" / "run" / "clipcam" / "step-00000008.safetensors"

    fit(FineTuning(), tmp_path / "b", ClipCamCallback(masked_probes(), baseline=baseline, method="gradcam"))

    assert events(tmp_path / "b").Scalars("clipcam/drift")[0].value > 0
    with pytest.raises(IncomparableError, match="made with other probes"):
        fit(FineTuning(), tmp_path / "c", ClipCamCallback([(SCENES.images[0], "a red star")], baseline=baseline))
    with pytest.warns(ClipCamWarning, match=r"another CAM method: method 'gradcam', now 'hirescam'"):
        fit(FineTuning(), tmp_path / "d", ClipCamCallback(masked_probes(), baseline=baseline, method="hirescam"))


def test_the_settings_of_the_maps_are_those_of_the_arguments(tmp_path: Path) -> None:
    target = Contrast(negatives=("a blue square",))
    settings: dict[str, Any] = {"method": "layercam", "layers": [-2, -1], "target": target, "fuse": "max"}
    settings |= {"score_scale": 100.0, "scales": (1.0, 1.5), "flip": True, "shift": True, "precision": "bfloat16"}
    fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes(), **settings, dirpath=tmp_path / "x"))

    info = Snapshot.load(tmp_path / "x" / "step-00000008.safetensors").info
    assert (info.method, info.target, info.score_scale) == ("layercam", "contrast(a blue square)", 100.0)
    assert (info.scales, info.flip, info.shift, info.fuse) == ((1.0, 1.5), True, True, "max")
    assert info.precision == "bfloat16"
    assert info.layers == tuple(f"visual.transformer.resblocks.{i}.ln_1" for i in (1, 2))
    assert (tmp_path / "x" / "contact_sheet.png").stat().st_size > 1000


def test_fast_dev_run_and_validate_write_nothing(tmp_path: Path) -> None:
    trainer = fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()), fast_dev_run=True)
    trainer.validate(FineTuning(), torch.utils.data.DataLoader(Pairs(), 4), verbose=False)

    assert not list(tmp_path.rglob("clipcam*"))


def test_without_a_logger_there_are_snapshots(tmp_path: Path) -> None:
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
    """A strategy with the name of one that is not supported."""


def test_under_an_unsupported_strategy_there_is_a_warning_and_no_evaluation(tmp_path: Path) -> None:
    metrics, stopper = EpochMetrics(), EarlyStopping("clipcam/drift", patience=99)
    strategy = DeepSpeedStrategy(device="cpu")
    warning = r"DeepSpeedStrategy is not supported\. The training goes on without evaluations"
    with pytest.warns(ClipCamWarning, match=warning):
        trainer = fit(FineTuning(), tmp_path, ClipCamCallback(masked_probes()), metrics, stopper, strategy=strategy)
    assert trainer.global_step == 8
    assert [epoch["drift"] for epoch in metrics.epochs] == [1, 1], "unknown is not unmoved"
    assert not list(tmp_path.rglob("step-*"))


ARGUMENTS: dict[str, Any] = {
    "probes": masked_probes(),
    "method": "layercam",
    "layers": [-2, -1],
    "target": Contrast(negatives=("a blue square",)),
    "score_scale": 100.0,
    "scales": (1.0, 1.5),
    "flip": True,
    "shift": True,
    "fuse": "max",
    "batch_size": 2,
    "precision": "bfloat16",
    "every_n_epochs": 3,
    "every_n_train_steps": 5,
    "baseline": "previous",
    "max_drift": 0.5,
    "false_alarm_rate": 0.02,
    "on_drift": "stop",
    "num_probes": 4,
    "num_images": 6,
    "probe_metrics": True,
    "sinks": [],
    "prompts": ["a red circle", "a blue star"],
    "clip": "model",
    "tokenizer": WordTokenizer(),
    "towers": (OpenClipViT,),
    "encode_image": "encode_image",
    "encode_text": "encode_text",
    "dirpath": "evaluations",
    "name": "mine",
    "on_error": "raise",
}


def test_every_argument_is_an_attribute_of_the_same_name() -> None:
    callback = ClipCamCallback(**ARGUMENTS)

    assert {name: getattr(callback, name) for name in inspect.signature(ClipCamCallback).parameters} == ARGUMENTS


class TestBadInput:
    """Each message says what to do, and comes before training where that is possible."""

    @pytest.mark.parametrize("name", [None, "mine"])
    def test_two_callbacks_of_one_name(self, name: str | None, tmp_path: Path) -> None:
        pair = [ClipCamCallback(masked_probes(), name=name, on_error="warn") for _ in range(2)]
        with pytest.raises(ConfigError, match=rf"2 callbacks .* with name={name!r}; give each a name of its own"):
            fit(FineTuning(), tmp_path, *pair)

    def test_one_callback_that_is_listed_twice(self, tmp_path: Path) -> None:
        callback = ClipCamCallback(masked_probes())
        with pytest.raises(ConfigError, match=r"the same ClipCamCallback is 2 times among the callbacks.*list it once"):
            fit(FineTuning(), tmp_path, callback, callback)

    def test_an_unsupported_strategy_with_on_error_raise(self, tmp_path: Path) -> None:
        strategy = DeepSpeedStrategy(device="cpu")
        with pytest.raises(ConfigError, match="DeepSpeedStrategy is not supported"):
            fit(FineTuning(), tmp_path, ClipCamCallback(on_error="raise"), strategy=strategy)

    def test_no_clip_in_the_module(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no CLIP in FineTuning"):
            fit(FineTuning(clip=nn.Linear(2, 2)), tmp_path, ClipCamCallback(on_error="raise"))

    def test_two_clips_of_which_none_is_chosen(self, tmp_path: Path) -> None:
        module = FineTuning()
        module.other = build_clip("vit")
        with pytest.raises(ModelError, match=r"model \(CLIP\), other \(CLIP\).*clip='dotted"):
            fit(module, tmp_path, ClipCamCallback(on_error="raise"))
        with pytest.warns(ClipCamWarning, match=r"clip='dotted.*training goes on without evaluations"):
            trainer = fit(module, tmp_path, ClipCamCallback())
        assert trainer.global_step == 8
        assert trainer.callback_metrics["clipcam/drift"] == 1
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
    def test_an_argument_that_cannot_be_used(self, arguments: dict[str, Any], message: str, unchecked: None) -> None:
        with pytest.raises(ConfigError, match=message):
            ClipCamCallback(**arguments)

    def test_a_missing_baseline_file(self, tmp_path: Path) -> None:
        with pytest.raises(SnapshotError, match=r"nothing\.safetensors cannot be read"):
            fit(FineTuning(), tmp_path, ClipCamCallback(baseline=tmp_path / "nothing.safetensors"))

    def test_one_string_as_negatives(self, unchecked: None) -> None:
        with pytest.raises(ConfigError, match=r"a list of prompts.*'red'"):
            Contrast(negatives="red")

    @pytest.mark.parametrize("probes", [None, masked_probes()], ids=["of a batch", "of the user"])
    def test_an_unknown_layer(self, probes: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"got 'blocks\.3'.*Layers worth mapping"):
            fit(FineTuning(), tmp_path, ClipCamCallback(probes, layers="blocks.3"))

    def test_a_preprocessed_probe_of_another_size(self, tmp_path: Path) -> None:
        with pytest.raises(ProbeError, match=r"probe .* 30x32.*whole cells"):
            fit(FineTuning(), tmp_path, ClipCamCallback([(torch.randn(3, 30, 32), "a red star")]))

    def test_a_batch_of_another_size_than_the_model_s(self, tmp_path: Path) -> None:
        module = FineTuning(extra=nn.Upsample(160), clip=build_clip("resnet"))
        callback = ClipCamCallback(method="input_x_gradient")  # signed, so no map is all zero

        with pytest.warns(ClipCamWarning, match=r"images of 64x64 pixels.*built for 160x160.*give probes="):
            trainer = fit(module, tmp_path, callback, max_epochs=1)

        assert trainer.callback_metrics["clipcam/drift"].isfinite()
        assert callback.snapshot is not None
        assert callback.snapshot.maps.shape[1:] == (2, 2)

    def test_a_batch_without_prompts(self, tmp_path: Path) -> None:
        with pytest.warns(ClipCamWarning, match=r"no probes could be taken.*give probes=.*The training goes on"):
            trainer = fit(FineTuning(), tmp_path, ClipCamCallback(), form="labels")
        assert trainer.global_step == 8
        assert trainer.callback_metrics["clipcam/drift"] == 1
        with pytest.raises(ClipCamError, match="no probes could be taken"):
            fit(FineTuning(), tmp_path, ClipCamCallback(on_error="raise"), form="labels")

    def test_a_method_that_fails(self, tmp_path: Path) -> None:
        def broken(_capture: Any) -> torch.Tensor:
            raise ZeroDivisionError("on purpose")

        with pytest.warns(ClipCamWarning, match="an evaluation failed: ZeroDivisionError: on purpose") as caught:
            trainer = fit(FineTuning(), tmp_path, ClipCamCallback(method=broken))

        assert len([warning for warning in caught if warning.category is ClipCamWarning]) == 1
        assert trainer.global_step == 8
        assert trainer.callback_metrics["clipcam/drift"] == 1, "unknown is not unmoved"
        with pytest.raises(ClipCamError, match="on purpose") as raised:
            fit(FineTuning(), tmp_path, ClipCamCallback(method=broken, on_error="raise"))
        assert isinstance(raised.value.__cause__, ZeroDivisionError)

    def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        callback = ClipCamCallback(masked_probes(), dirpath=tmp_path / "file" / "below")

        with pytest.warns(ClipCamWarning, match="an evaluation could not be written"):
            trainer = fit(FineTuning(), tmp_path, callback)

        assert trainer.callback_metrics["clipcam/drift"] > 0
        assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == [0, 4, 8]

    def test_weights_that_become_nan(self, tmp_path: Path) -> None:
        class Exploding(FineTuning):
            def on_train_epoch_start(self) -> None:
                with torch.no_grad():
                    self.model.visual.proj *= float("nan")

        metrics = EpochMetrics()
        with pytest.warns(ClipCamWarning, match=r"its map is not finite"):
            trainer = fit(Exploding(), tmp_path, ClipCamCallback(masked_probes()), metrics)

        last = metrics.epochs[-1]
        assert trainer.global_step == 8
        assert last["degenerate"] == last["flagged"] == 3
        assert (last["drift"], last["similarity"]) == (1, -1)
        assert (last["energy_inside_mask"], last["pointing"]) == (0, 0)
        assert all(math.isfinite(value) for value in last.values())

    def test_a_baseline_whose_maps_are_all_zero(self, tmp_path: Path) -> None:
        with pytest.warns(ClipCamWarning, match=r"3 of 3 probes have no valid baseline.*all zero"):
            trainer = fit(
                FineTuning(),
                tmp_path,
                ClipCamCallback(masked_probes(), method=lambda c: 0 * c.activations[:, :1], on_drift="raise"),
            )
        assert trainer.callback_metrics["clipcam/flagged"] == 0
        assert trainer.callback_metrics["clipcam/degenerate"] == 3


def test_under_fast_dev_run_metrics_can_be_monitored(tmp_path: Path) -> None:
    callback, seen = ClipCamCallback(masked_probes()), EpochMetrics()
    fit(FineTuning(), tmp_path, callback, seen, EarlyStopping("clipcam/energy_inside_mask"), fast_dev_run=True)
    assert callback.history == ()
    (metrics,) = seen.epochs
    assert metrics.keys() == ALWAYS | {"energy_inside_mask", "pointing"}


@pytest.mark.filterwarnings("ignore:ClipCamCallback. no CLIP:clipcam_lightning.ClipCamWarning")
def test_without_a_clip_metrics_of_masks_can_be_monitored(tmp_path: Path) -> None:
    seen = EpochMetrics()
    with pytest.warns(ClipCamWarning, match="The training goes on without evaluations"):
        fit(
            FineTuning(clip=Lookalike()),
            tmp_path,
            ClipCamCallback(masked_probes()),
            seen,
            EarlyStopping("clipcam/energy_inside_mask"),
        )
    assert {metrics["energy_inside_mask"] for metrics in seen.epochs} == {0.0}


class Lookalike(nn.Module):
    """Embeds images and texts, but has no image encoder in which layers can be found."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def encode_image(self, images: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        return self.scale * images.mean((2, 3))

    def encode_text(self, texts: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        return self.scale * texts[:, :3].float()


def test_each_fit_warns_again(tmp_path: Path) -> None:
    callback, module = ClipCamCallback(masked_probes(), max_drift=0.0), FineTuning()
    for name in ("first", "second"):
        with pytest.warns(ClipCamWarning, match="attention drifted"):
            fit(module, tmp_path / name, callback)


def test_a_baseline_that_is_late_is_noted(tmp_path: Path) -> None:
    callback = ClipCamCallback(masked_probes(), method=Method(FaultyMethod(fail_once(RuntimeError("transient")))))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ClipCamWarning)
        fit(FineTuning(), tmp_path, callback)
    said = [str(each.message) for each in caught if isinstance(each.message, ClipCamWarning)]
    assert sum("an evaluation failed" in each for each in said) == 1
    assert any("the baseline is the model at step 4, because the evaluations before failed" in each for each in said)
    assert callback.history[0].step == 4


def fail_once(error: Exception) -> Callable[[], None]:
    """Make a function whose first call fails."""
    errors = [error]

    def fail() -> None:
        if errors:
            raise errors.pop()

    return fail
