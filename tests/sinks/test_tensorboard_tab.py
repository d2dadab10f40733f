"""Event files that the tab's sink writes, read without the package's own code."""

import io
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, DATA_CLASS_TENSOR, Summary
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.sinks.tensorboard_tab import IMAGE_SIDE, TabSink
from tests.support import shortcuts
from tests.support.synthetic_evaluations import evaluations_of, ramps, random_maps, snapshot_of, write_run

pytestmark = pytest.mark.slow

PROMPTS = ["a red circle", "ein gr\u00fcnes Quadrat", "half a pair: \ud83d"]
NAMES = ["red", "green", "half"]
HALF = 2**-11  # largest relative error of rounding to a half float


def events_of(folder: Path) -> list[Event]:
    return [
        event
        for file in sorted(folder.glob("events.out.*"))
        for event in LegacyEventFileLoader(str(file)).Load()
        if event.HasField("summary")
    ]


def tab_events(folder: Path, root: str = "clipcam") -> list[tuple[int, dict[str, Summary.Value]]]:
    """Read step and values of every event with data for the tab; the values by what follows ``<root>/tab/``."""
    read = []
    for event in events_of(folder):
        ours = [value for value in event.summary.value if value.tag.startswith(f"{root}/tab/")]
        if ours:
            assert len(ours) == len(event.summary.value), "an event of the tab holds nothing else"
            values = {value.tag.removeprefix(f"{root}/tab/"): value for value in ours}
            assert len(values) == len(ours), "no tag twice"
            read.append((event.step, values))
    return read


def array(value: Summary.Value) -> np.ndarray:
    return make_ndarray(value.tensor)


def content(value: Summary.Value) -> Any:
    return json.loads(value.tensor.string_val[0])


def written_by(
    folder: Path, evaluations: Iterable[Evaluation], root: str = "clipcam"
) -> list[dict[str, Summary.Value]]:
    """Write with one sink, and return the values of each event."""
    writer = SummaryWriter(folder)
    sink = TabSink(writer, root)
    for evaluation in evaluations:
        sink.write(evaluation)
    writer.close()
    return [values for _, values in tab_events(folder, root)]


def test_every_evaluation_is_one_event_at_its_step(tmp_path: Path) -> None:
    write_run(tmp_path, evaluations_of(random_maps([0, 7, 30], 3), PROMPTS, NAMES))
    written = tab_events(tmp_path)
    assert [step for step, _ in written] == [0, 7, 30]
    once = {"probes", "baseline", "image/red", "image/green", "image/half"}
    always = {"evaluation", "alarm", "metrics", "map/red", "map/green", "map/half"}
    assert [set(values) for _, values in written] == [always | once, always, always]


HOSTILE_MAPS = {
    "usual": torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(5)),
    "negative": torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(5)),
    "tiny": 1e-9 * torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(5)),
    "subnormal": 1e-40 * torch.ones(3, 3, 5),
    "huge": 1e30 * torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(5)),
    "the largest floats": torch.full((3, 3, 5), torch.finfo(torch.float32).max),
    "zero": torch.zeros(3, 3, 5),
    "each of its own size": torch.tensor([1e-9, 1.0, 1e30]).view(3, 1, 1) * torch.ones(3, 3, 5),
    "not finite": torch.tensor([torch.nan, torch.inf, -torch.inf]).view(3, 1, 1) * torch.ones(3, 3, 5),
    "some cells not finite": torch.ones(3, 3, 5).index_put((torch.tensor(1),) * 3, torch.tensor(torch.nan)),
}


@pytest.mark.parametrize("maps", HOSTILE_MAPS.values(), ids=HOSTILE_MAPS)
def test_maps_times_their_scale_are_the_raw_maps(maps: Tensor, tmp_path: Path) -> None:
    (values,) = written_by(tmp_path, evaluations_of({3: maps}, PROMPTS, NAMES))
    metrics = array(values["metrics"])
    for name, raw, row in zip(NAMES, maps.double().numpy(), metrics, strict=True):
        halves, scale = array(values[f"map/{name}"]), row[-1].astype(np.float64)
        assert halves.dtype == np.float16
        assert np.frexp(scale)[0] == 0.5, "a power of two, so that scaling is exact"
        largest = np.abs(raw[np.isfinite(raw)]).max(initial=0)
        np.testing.assert_allclose(halves * scale, raw, rtol=HALF, atol=largest * 2**-24)


COLUMNS = [
    *("drift", "similarity", "flagged", "noise_ratio", "shared_gain", "concentration", "top_iou", "center_shift"),
    *("energy_inside_mask", "background_score", "covered_loss", "control_loss", "note", "scale"),
]


def test_metrics_equal_those_of_the_report(tmp_path: Path) -> None:
    maps = random_maps([0, 1, 2], 3)
    maps[2][1] = 0  # a valid map became degenerate
    evaluations = evaluations_of(maps, PROMPTS, NAMES)
    for evaluation, values in zip(evaluations, written_by(tmp_path, evaluations), strict=True):
        metrics, notes = array(values["metrics"]), content(values["evaluation"])["notes"]
        assert metrics.shape == (3, len(COLUMNS))
        assert metrics.dtype == np.float32
        for probe, row in zip(evaluation.report.probes, metrics, strict=True):
            value_of = dict(zip(COLUMNS, row, strict=True))
            for name in COLUMNS[:-2]:
                is_stand_in = name == "center_shift" and probe.degenerate
                expected = np.nan if is_stand_in else np.float32(getattr(probe, name))
                np.testing.assert_equal(value_of[name], expected, err_msg=name)
            assert (notes[int(value_of["note"])] if value_of["note"] >= 0 else "") == probe.reason
    assert any(probe.flagged for probe in evaluations[-1].report.probes)


def test_drift_is_unknown_without_a_valid_baseline(tmp_path: Path) -> None:
    maps = random_maps([0, 1], 3)
    maps[0][2] = 0
    *_, last = written_by(tmp_path, evaluations_of(maps, PROMPTS, NAMES))
    metrics = array(last["metrics"])
    assert np.isnan(metrics[:, 0]).tolist() == [False, False, True]
    assert content(last["evaluation"])["notes"][int(metrics[2, -2])] == "the map of its baseline is all zero"


def test_the_states_of_degenerate_maps_are_written_by_name_with_what_they_say(tmp_path: Path) -> None:
    maps = random_maps([0, 1], 3)
    maps[0][2], maps[1][1], maps[1][2] = 0, -maps[1][1], torch.nan
    first, last = (
        content(values["evaluation"]) for values in written_by(tmp_path, evaluations_of(maps, PROMPTS, NAMES))
    )

    zero, negative, not_finite = MapState.ALL_ZERO, MapState.NOWHERE_POSITIVE, MapState.NOT_FINITE
    assert first["states"] == first["baseline_states"] == last["baseline_states"] == {NAMES[2]: zero}
    assert last["states"] == {NAMES[1]: negative, NAMES[2]: not_finite}
    assert last["state_words"] == {state: state.words for state in (zero, negative, not_finite)}


def test_json_describes_evaluations_and_probes(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps([4, 9], 3), PROMPTS, NAMES)
    first, second = written_by(tmp_path, evaluations)
    evaluation, probes = content(second["evaluation"]), content(first["probes"])
    assert (evaluation["epoch"], evaluation["baseline_step"], evaluation["alarm"]) == (
        1,
        4,
        evaluations[1].report.alarm,
    )
    assert (evaluation["method"], evaluation["target"], evaluation["layers"]) == (
        "hirescam",
        "similarity",
        ["visual.ln_1"],
    )
    assert evaluation["digest"] == probes["digest"]
    assert (probes["names"], probes["prompts"], probes["digests"]) == (NAMES, PROMPTS, evaluations[1].digests)
    assert probes["rule"] == str(evaluations[1].report.rule)


def test_every_value_names_its_plugin_and_the_format_version(tmp_path: Path) -> None:
    stored = snapshot_of(torch.rand(3, 3, 5), PROMPTS, NAMES, evaluations_of(random_maps([0], 3), PROMPTS)[0].digests)
    evaluations = evaluations_of(random_maps([0, 1], 3), PROMPTS, NAMES, baseline=stored)
    kinds = set()
    for values in written_by(tmp_path, evaluations):
        for kind, value in values.items():
            kinds.add(kind.split("/")[0])
            assert value.metadata.data_class == (DATA_CLASS_SCALAR if kind == "alarm" else DATA_CLASS_TENSOR)
            assert value.metadata.plugin_data.plugin_name == "clipcam"
            assert value.metadata.plugin_data.content == b"1"
        assert content(values["evaluation"])["version"] == 1
    assert kinds == {"evaluation", "alarm", "metrics", "probes", "image", "map", "baseline"}


def test_probes_and_images_are_written_once_and_again_when_a_run_is_resumed(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(4), 3), PROMPTS, NAMES)
    write_run(tmp_path / "first", evaluations[:2])
    write_run(tmp_path / "resumed", evaluations[2:])
    for folder in ("first", "resumed"):
        first, second = (values for _, values in tab_events(tmp_path / folder))
        assert {"probes", "image/red"} <= set(first)
        assert not {"probes", "image/red"} & set(second)


def test_an_image_is_the_models_input_at_limited_size(tmp_path: Path) -> None:
    pixels = ramps(3, 400)[:, :, :300]
    (values,) = written_by(tmp_path, evaluations_of(random_maps([0], 3), PROMPTS, NAMES, pixels))
    with Image.open(io.BytesIO(values["image/green"].tensor.string_val[0])) as image:
        assert image.format == "JPEG"
        assert image.size == (IMAGE_SIDE, IMAGE_SIDE * 3 // 4)
        decoded = np.asarray(image.resize((400, 300))).astype(int)
    assert np.abs(decoded - pixels[1].permute(1, 2, 0).numpy()).mean() < 3


def test_a_mask_is_written_once_for_each_probe_that_has_one(tmp_path: Path) -> None:
    masks = torch.zeros(3, 300, 400, dtype=torch.bool)
    masks[0, 40:160, 100:300] = True
    evaluations = [
        replace(evaluation, masks=[masks[0], None, masks[2]])
        for evaluation in evaluations_of(random_maps([0, 1], 3), PROMPTS, NAMES, ramps(3, 400)[:, :, :300])
    ]
    first, second = written_by(tmp_path, evaluations)
    assert {kind for kind in first if kind.startswith("mask/")} == {"mask/red", "mask/half"}
    assert not any(kind.startswith("mask/") for kind in second)
    with Image.open(io.BytesIO(first["mask/red"].tensor.string_val[0])) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "1", (IMAGE_SIDE, IMAGE_SIDE * 3 // 4))
        mask = np.asarray(image.resize((400, 300)))
    assert (mask != masks[0].numpy()).mean() < 0.01
    assert len(first["mask/red"].tensor.string_val[0]) < 1000


def test_the_grounds_that_an_alarm_rests_on_are_written_once(tmp_path: Path) -> None:
    baseline, alarm = shortcuts.shortcut_evaluations()
    first, second, third = written_by(tmp_path, [baseline, alarm, alarm])
    drawn = [{kind for kind in values if kind.startswith("ground/")} for values in (first, second, third)]
    assert drawn == [set(), {f"ground/{name}" for name in shortcuts.NAMES}, set()]
    assert content(first["evaluation"])["grounds"] == []
    grounds = content(second["evaluation"])["grounds"]
    assert grounds == content(third["evaluation"])["grounds"]
    assert {ground["probe"]: tuple(ground["called"]) for ground in grounds} == dict(enumerate(shortcuts.CALLED))
    assert {ground["probe"]: tuple(ground["called_before"]) for ground in grounds} == dict(enumerate(shortcuts.BEFORE))
    assert grounds[-1]["probe"] == 1, "the least conspicuous one"


def test_the_tiles_of_a_ground_show_it_without_its_object_and_with_others(tmp_path: Path) -> None:
    _, second = written_by(tmp_path, shortcuts.shortcut_evaluations())
    for ground, name in enumerate(shortcuts.NAMES):
        file = second[f"ground/{name}"].tensor.string_val[0]
        assert len(file) < 4000
        with Image.open(io.BytesIO(file)) as image:
            pixels = np.asarray(image).astype(int)
        side = shortcuts.SIDE
        assert pixels.shape == (side, 3 * side, 3)
        for tile, donor in enumerate([None, *shortcuts.DONORS[ground]]):
            part = pixels[:, tile * side : (tile + 1) * side]
            for other, (top, left) in enumerate(shortcuts.CORNERS):
                grey = (shortcuts.GREYS[ground],) * 3
                expected = shortcuts.COLORS[other] if other == donor else grey
                assert np.abs(part[top + 12, left + 12] - expected).max() < 12, (name, tile, other)


def test_grounds_of_photographs_take_few_kilobytes(tmp_path: Path) -> None:
    evaluations = shortcuts.shortcut_evaluations()
    masks = torch.zeros(4, 224, 224, dtype=torch.bool)
    masks[:, 60:160, 60:160] = True
    baseline = replace(evaluations[0].baseline, objects=masks)
    _, second = written_by(
        tmp_path, [replace(each, pixels=photographs(4), masks=[*masks], baseline=baseline) for each in evaluations]
    )
    sizes = [len(second[f"ground/{name}"].tensor.string_val[0]) for name in shortcuts.NAMES]
    assert max(sizes) < 3 * 4000  # three tiles


def test_the_alarm_of_each_evaluation_is_a_scalar(tmp_path: Path) -> None:
    written = written_by(tmp_path, shortcuts.shortcut_evaluations())
    assert [array(values["alarm"]).item() for values in written] == [0.0, 1.0]


def test_the_share_of_each_image_that_the_model_sees_is_written(tmp_path: Path) -> None:
    first, _ = written_by(tmp_path, shortcuts.shortcut_evaluations())
    assert content(first["probes"])["visible"] == [1.0, 0.6667, 1.0, 1.0]


def test_the_address_names_the_first_flagged_probe_and_the_step(tmp_path: Path) -> None:
    _, alarm = shortcuts.shortcut_evaluations()
    with SummaryWriter(tmp_path / "a run") as writer:
        text = TabSink(writer, "clipcam").describe_address(alarm.report)
        other = TabSink(writer, "clipcam_words").describe_address(alarm.report)
    logdir = shlex.quote(str(tmp_path / "a run"))
    fragment = "p.clipcam.evaluation=40&p.clipcam.open=fox"
    assert text == f"run tensorboard --logdir {logdir} and add #clipcam&{fragment} to its address"
    assert f"#clipcam&p.clipcam.run=clipcam_words%40.&{fragment} to" in other


@pytest.mark.parametrize("previous", [False, True], ids=["compared with the first", "with the previous"])
def test_only_the_first_of_the_runs_own_baselines_is_written(previous: bool, tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(5), 3), PROMPTS, NAMES, previous=previous)
    first, *others = written_by(tmp_path, evaluations)
    np.testing.assert_array_equal(array(first["baseline"]), evaluations[0].snapshot.maps.numpy())
    assert not any("baseline" in values for values in others)


def test_a_stored_baseline_is_written_with_its_first_evaluation(tmp_path: Path) -> None:
    stored = evaluations_of(random_maps([50], 3, seed=9), PROMPTS, NAMES)[0].snapshot
    first, second = written_by(tmp_path, evaluations_of(random_maps([0, 1], 3), PROMPTS, NAMES, baseline=stored))
    np.testing.assert_array_equal(array(first["baseline"]), stored.maps.numpy())
    assert array(first["baseline"]).dtype == np.float32
    assert "baseline" not in second
    assert content(first["evaluation"])["baseline_step"] == content(second["evaluation"])["baseline_step"] == 50


def test_a_baseline_that_replaces_another_is_written_at_its_first_use(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(4), 3), PROMPTS, NAMES)
    other = evaluations_of(
        random_maps([2, 3], 3), PROMPTS, NAMES, baseline=replace(evaluations[0].snapshot, maps=torch.rand(3, 3, 5))
    )
    written = written_by(tmp_path, [*evaluations[:2], *other])
    assert ["baseline" in values for values in written] == [True, False, True, False]


def test_two_callbacks_in_one_run_are_independent(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps([0, 1], 3), PROMPTS, NAMES)
    others = evaluations_of(random_maps([0, 1], 2, (2, 2), seed=3), PROMPTS[:2], NAMES[:2])
    writer = SummaryWriter(tmp_path)
    sinks = TabSink(writer, "clipcam"), TabSink(writer, "clipcam_other")
    for pair in zip(evaluations, others, strict=True):
        for sink, evaluation in zip(sinks, pair, strict=True):
            sink.write(evaluation)
    writer.close()
    for root, expected in (("clipcam", evaluations), ("clipcam_other", others)):
        for evaluation, (step, values) in zip(expected, tab_events(tmp_path, root), strict=True):
            assert step == evaluation.snapshot.info.step
            assert len(array(values["metrics"])) == len(evaluation.snapshot.names)
            assert array(values["map/red"]).shape == evaluation.snapshot.maps.shape[1:]


NASTY_NAMES = [
    "tab",
    "evaluation",
    "metrics",
    "map",
    "image",
    "probes",
    "baseline",
    "drift",
    "all_probes",
    "tab.evaluation",
]


def test_no_tag_has_two_owners(tmp_path: Path) -> None:
    """Not even if probes have the names of the tab's own tags."""
    evaluations = evaluations_of(random_maps([0, 1], len(NASTY_NAMES)), NASTY_NAMES, NASTY_NAMES)
    write_run(tmp_path, evaluations, panels=len(NASTY_NAMES))
    owners: dict[str, set[str]] = {}
    for event in events_of(tmp_path):
        assert len({value.tag for value in event.summary.value}) == len(event.summary.value)
        for value in event.summary.value:
            owners.setdefault(value.tag, set()).add(value.metadata.plugin_data.plugin_name or value.WhichOneof("value"))
    assert all(len(plugins) == 1 for plugins in owners.values())
    assert {plugin for (plugin,) in owners.values()} == {"clipcam", "images", "text", "simple_value"}


def photographs(count: int) -> Tensor:
    """Crop real photographs to squares of several sizes, resized to 224 pixels."""
    generator, crops = np.random.default_rng(0), []
    for i in range(count):
        photograph = Image.fromarray(load_sample_images().images[i % 2])
        side = generator.integers(224, min(photograph.size))
        left, top = (generator.integers(0, length - side) for length in photograph.size)
        part = photograph.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        crops.append(torch.from_numpy(np.array(part)).permute(2, 0, 1))
    return torch.stack(crops)


@pytest.mark.parametrize(("grid", "megabytes"), [((7, 7), 1.5), ((14, 14), 3.04)], ids=["7x7", "14x14"])
def test_a_hundred_evaluations_of_fifty_probes_take_few_megabytes(
    grid: tuple[int, int], megabytes: float, tmp_path: Path
) -> None:
    prompts = [f"a photograph of {i} things" for i in range(50)]
    evaluations = evaluations_of(random_maps(range(100), 50, grid), prompts, pixels=photographs(50))
    for tab in (False, True):
        write_run(tmp_path / str(tab), evaluations, tab=tab)
    without, with_tab = (sum(file.stat().st_size for file in (tmp_path / str(tab)).iterdir()) for tab in (False, True))
    assert 0 < with_tab - without <= megabytes * 1e6


def data_of_other_tabs(folder: Path) -> Mapping[str, Any]:
    read = EventAccumulator(str(folder), {"images": 0, "scalars": 0, "tensors": 0}).Reload()
    ours = {tag for tag in read.Tags()["tensors"] if tag.startswith("clipcam/tab/")}
    return {
        "scalars": {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]},
        "images": {tag: [event.encoded_image_string for event in read.Images(tag)] for tag in read.Tags()["images"]},
        "texts": {
            tag: [(event.step, event.tensor_proto.string_val[:]) for event in read.Tensors(tag)]
            for tag in read.Tags()["tensors"]
            if tag not in ours
        },
    }


def test_other_tabs_find_the_same_data_with_and_without_this_one(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(5), 3), PROMPTS, NAMES)
    for tab in (False, True):
        write_run(tmp_path / str(tab), evaluations, tab=tab, panels=2)
    without, with_tab = (data_of_other_tabs(tmp_path / str(tab)) for tab in (False, True))
    assert all(without.values())
    assert with_tab == without


def test_no_random_number_is_drawn(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(3), 3), PROMPTS, NAMES)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    written_by(tmp_path, evaluations)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_writing_does_not_change_an_evaluation(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(2), 3), PROMPTS, NAMES)
    before = [(evaluation.snapshot.maps.clone(), evaluation.pixels.clone()) for evaluation in evaluations]
    written_by(tmp_path, evaluations)
    for evaluation, (maps, pixels) in zip(evaluations, before, strict=True):
        assert torch.equal(evaluation.snapshot.maps, maps)
        assert torch.equal(evaluation.pixels, pixels)


def test_after_a_failed_first_write_the_next_event_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = evaluations_of(random_maps(range(2), 3), PROMPTS, NAMES)
    writer = SummaryWriter(tmp_path)
    sink = TabSink(writer, "clipcam")
    with monkeypatch.context() as broken:
        broken.setattr(writer, "_get_file_writer", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sink.write(evaluations[0])
    sink.write(evaluations[1])
    writer.close()
    ((step, values),) = tab_events(tmp_path)
    assert step == 1
    assert {"probes", "image/red", "baseline"} <= set(values), "no earlier event has its baseline"


@pytest.mark.parametrize("previous", [False, True], ids=["compared with the first", "with the previous"])
def test_json_marks_a_baseline_that_is_stored_separately(previous: bool, tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(4), 3), PROMPTS, NAMES, previous=previous)
    stored = [content(values["evaluation"])["stored_baseline"] for values in written_by(tmp_path, evaluations)]
    assert stored == [True, True, not previous, not previous]
