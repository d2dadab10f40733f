"""What the tab's sink leaves in an event file, as a reader finds it that knows nothing of the package."""

import json
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
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.sinks.tensorboard_tab import PICTURE_SIDE, TabSink
from tests.support.synthetic_evaluations import evaluations_of, ramps, random_maps, snapshot_of, write_run

PROMPTS = ["a red circle", "ein gr\u00fcnes Quadrat", "half a pair: \ud83d"]
NAMES = ["red", "green", "half"]
HALF = 2**-11  # what rounding to half a float changes at most, as a share


def events_of(folder: Path) -> list[Event]:
    return [
        event
        for file in sorted(folder.glob("events.out.*"))
        for event in LegacyEventFileLoader(str(file)).Load()
        if event.HasField("summary")
    ]


def tab_events(folder: Path, root: str = "clipcam") -> list[tuple[int, dict[str, Summary.Value]]]:
    """Of every event with data for the tab its step and its values, by what follows ``<root>/tab/``."""
    found = []
    for event in events_of(folder):
        ours = [value for value in event.summary.value if value.tag.startswith(f"{root}/tab/")]
        if ours:
            assert len(ours) == len(event.summary.value), "an event of the tab's holds nothing else"
            values = {value.tag.removeprefix(f"{root}/tab/"): value for value in ours}
            assert len(values) == len(ours), "no tag twice"
            found.append((event.step, values))
    return found


def array(value: Summary.Value) -> np.ndarray:
    return make_ndarray(value.tensor)


def told(value: Summary.Value) -> Any:
    return json.loads(value.tensor.string_val[0])


def written_by(
    folder: Path, evaluations: Iterable[Evaluation], root: str = "clipcam"
) -> list[dict[str, Summary.Value]]:
    """Values of the events that one sink writes."""
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
    once = {"probes", "baseline", "picture/red", "picture/green", "picture/half"}
    always = {"evaluation", "figures", "map/red", "map/green", "map/half"}
    assert [set(values) for _, values in written] == [always | once, always, always]


HOSTILE_MAPS = {
    "usual": torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(5)),
    "negative": torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(5)),
    "tiny": 1e-9 * torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(5)),
    "subnormal": 1e-40 * torch.ones(3, 3, 5),
    "huge": 1e30 * torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(5)),
    "the hugest": torch.full((3, 3, 5), torch.finfo(torch.float32).max),
    "zero": torch.zeros(3, 3, 5),
    "each of its own size": torch.tensor([1e-9, 1.0, 1e30]).view(3, 1, 1) * torch.ones(3, 3, 5),
    "not finite": torch.tensor([torch.nan, torch.inf, -torch.inf]).view(3, 1, 1) * torch.ones(3, 3, 5),
    "some cells not finite": torch.ones(3, 3, 5).index_put((torch.tensor(1),) * 3, torch.tensor(torch.nan)),
}


@pytest.mark.parametrize("maps", HOSTILE_MAPS.values(), ids=HOSTILE_MAPS)
def test_maps_times_their_scale_are_the_raw_maps(maps: Tensor, tmp_path: Path) -> None:
    (values,) = written_by(tmp_path, evaluations_of({3: maps}, PROMPTS, NAMES))
    figures = array(values["figures"])
    for name, raw, row in zip(NAMES, maps.double().numpy(), figures, strict=True):
        read, scale = array(values[f"map/{name}"]), row[-1].astype(np.float64)
        assert read.dtype == np.float16
        assert np.frexp(scale)[0] == 0.5, "a power of two, so that nothing but the rounding is lost"
        largest = np.abs(raw[np.isfinite(raw)]).max(initial=0)
        np.testing.assert_allclose(read * scale, raw, rtol=HALF, atol=largest * 2**-24)


COLUMNS = [
    *("drift", "similarity", "alarm", "noise_ratio", "shared_gain", "concentration", "top_iou", "center_shift"),
    *("energy_inside_mask", "note", "scale"),
]


def test_figures_are_those_of_the_report(tmp_path: Path) -> None:
    maps = random_maps([0, 1, 2], 3)
    maps[2][1] = 0  # a sound map became degenerate
    evaluations = evaluations_of(maps, PROMPTS, NAMES)
    for evaluation, values in zip(evaluations, written_by(tmp_path, evaluations), strict=True):
        figures, notes = array(values["figures"]), told(values["evaluation"])["notes"]
        assert figures.shape == (3, len(COLUMNS))
        assert figures.dtype == np.float32
        for probe, row in zip(evaluation.report.probes, figures, strict=True):
            of = dict(zip(COLUMNS, row, strict=True))
            for name in COLUMNS[:-2]:
                np.testing.assert_equal(of[name], np.float32(getattr(probe, name)), err_msg=name)
            assert (notes[int(of["note"])] if of["note"] >= 0 else "") == probe.reason
    assert any(probe.flagged for probe in evaluations[-1].report.probes)


def test_drift_is_unknown_where_the_baseline_says_nothing(tmp_path: Path) -> None:
    maps = random_maps([0, 1], 3)
    maps[0][2] = 0
    *_, last = written_by(tmp_path, evaluations_of(maps, PROMPTS, NAMES))
    figures = array(last["figures"])
    assert np.isnan(figures[:, 0]).tolist() == [False, False, True]
    assert told(last["evaluation"])["notes"][int(figures[2, -2])] == "its map or that of its baseline is all zero"


def test_what_is_told_of_evaluations_and_probes(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps([4, 9], 3), PROMPTS, NAMES)
    first, second = written_by(tmp_path, evaluations)
    evaluation, probes = told(second["evaluation"]), told(first["probes"])
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


def test_every_value_says_whose_it_is_and_in_which_version(tmp_path: Path) -> None:
    foreign = snapshot_of(torch.rand(3, 3, 5), PROMPTS, NAMES, evaluations_of(random_maps([0], 3), PROMPTS)[0].digests)
    evaluations = evaluations_of(random_maps([0, 1], 3), PROMPTS, NAMES, baseline=foreign)
    kinds = set()
    for values in written_by(tmp_path, evaluations):
        for kind, value in values.items():
            kinds.add(kind.split("/")[0])
            assert value.metadata.data_class == DATA_CLASS_TENSOR
            assert value.metadata.plugin_data.plugin_name == "clipcam"
            assert value.metadata.plugin_data.content == b"1"
        assert told(values["evaluation"])["version"] == 1
    assert kinds == {"evaluation", "figures", "probes", "picture", "map", "baseline"}


def test_probes_and_pictures_are_written_once_and_again_by_a_run_that_is_resumed(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(4), 3), PROMPTS, NAMES)
    write_run(tmp_path / "begun", evaluations[:2])
    write_run(tmp_path / "resumed", evaluations[2:])
    for folder in ("begun", "resumed"):
        first, second = (values for _, values in tab_events(tmp_path / folder))
        assert {"probes", "picture/red"} <= set(first)
        assert not {"probes", "picture/red"} & set(second)


def test_a_picture_is_what_the_model_saw_at_most_as_large_as_needed(tmp_path: Path) -> None:
    pixels = ramps(3, 400)[:, :, :300]
    (values,) = written_by(tmp_path, evaluations_of(random_maps([0], 3), PROMPTS, NAMES, pixels))
    content = values["picture/green"].tensor.string_val[0]
    (tmp_path / "picture.jpg").write_bytes(content)
    with Image.open(tmp_path / "picture.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.size == (PICTURE_SIDE, PICTURE_SIDE * 3 // 4)
        seen = np.asarray(picture.resize((400, 300))).astype(int)
    assert np.abs(seen - pixels[1].permute(1, 2, 0).numpy()).mean() < 3


@pytest.mark.parametrize("previous", [False, True], ids=["compared with the first", "with the one before"])
def test_the_first_baseline_is_written_and_no_evaluation_after_it(previous: bool, tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(5), 3), PROMPTS, NAMES, previous=previous)
    first, *others = written_by(tmp_path, evaluations)
    np.testing.assert_array_equal(array(first["baseline"]), evaluations[0].snapshot.maps.numpy())
    assert not any("baseline" in values for values in others)


def test_a_baseline_from_elsewhere_is_written_with_its_first_evaluation(tmp_path: Path) -> None:
    foreign = evaluations_of(random_maps([50], 3, seed=9), PROMPTS, NAMES)[0].snapshot
    first, second = written_by(tmp_path, evaluations_of(random_maps([0, 1], 3), PROMPTS, NAMES, baseline=foreign))
    np.testing.assert_array_equal(array(first["baseline"]), foreign.maps.numpy())
    assert array(first["baseline"]).dtype == np.float32
    assert "baseline" not in second
    assert told(first["evaluation"])["baseline_step"] == told(second["evaluation"])["baseline_step"] == 50


def test_a_baseline_that_replaces_another_is_written_when_it_is_first_used(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(4), 3), PROMPTS, NAMES)
    other = evaluations_of(
        random_maps([2, 3], 3), PROMPTS, NAMES, baseline=replace(evaluations[0].snapshot, maps=torch.rand(3, 3, 5))
    )
    written = written_by(tmp_path, [*evaluations[:2], *other])
    assert ["baseline" in values for values in written] == [True, False, True, False]


def test_two_callbacks_in_one_run_do_not_touch(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps([0, 1], 3), PROMPTS, NAMES)
    others = evaluations_of(random_maps([0, 1], 2, (2, 2), seed=3), PROMPTS[:2], NAMES[:2])
    writer = SummaryWriter(tmp_path)
    sinks = TabSink(writer, "clipcam"), TabSink(writer, "clipcam_other")
    for pair in zip(evaluations, others, strict=True):
        for sink, evaluation in zip(sinks, pair, strict=True):
            sink.write(evaluation)
    writer.close()
    for root, given in (("clipcam", evaluations), ("clipcam_other", others)):
        for evaluation, (step, values) in zip(given, tab_events(tmp_path, root), strict=True):
            assert step == evaluation.snapshot.info.step
            assert len(array(values["figures"])) == len(evaluation.snapshot.names)
            assert array(values["map/red"]).shape == evaluation.snapshot.maps.shape[1:]


NASTY_NAMES = [
    "tab",
    "evaluation",
    "figures",
    "map",
    "picture",
    "probes",
    "baseline",
    "drift",
    "all_probes",
    "tab.evaluation",
]


def test_no_tag_means_two_things(tmp_path: Path) -> None:
    """Also of probes that are called as the tab's own data are."""
    evaluations = evaluations_of(random_maps([0, 1], len(NASTY_NAMES)), NASTY_NAMES, NASTY_NAMES)
    write_run(tmp_path, evaluations, panels=len(NASTY_NAMES))
    owners: dict[str, set[str]] = {}
    for event in events_of(tmp_path):
        assert len({value.tag for value in event.summary.value}) == len(event.summary.value)
        for value in event.summary.value:
            owners.setdefault(value.tag, set()).add(value.metadata.plugin_data.plugin_name or value.WhichOneof("value"))
    assert all(len(who) == 1 for who in owners.values())
    assert {who for (who,) in owners.values()} == {"clipcam", "images", "text", "simple_value"}


def photographs(count: int) -> Tensor:
    """Parts of real ones, of several sizes."""
    generator, pictures = np.random.default_rng(0), []
    for i in range(count):
        photograph = Image.fromarray(load_sample_images().images[i % 2])
        side = generator.integers(224, min(photograph.size))
        left, top = (generator.integers(0, length - side) for length in photograph.size)
        part = photograph.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        pictures.append(torch.from_numpy(np.array(part)).permute(2, 0, 1))
    return torch.stack(pictures)


@pytest.mark.parametrize(("grid", "megabytes"), [((7, 7), 1.5), ((14, 14), 3.0)], ids=["7x7", "14x14"])
def test_a_hundred_evaluations_at_fifty_probes_take_little_room(
    grid: tuple[int, int], megabytes: float, tmp_path: Path
) -> None:
    prompts = [f"a photograph of {i} things" for i in range(50)]
    evaluations = evaluations_of(random_maps(range(100), 50, grid), prompts, pixels=photographs(50))
    for tab in (False, True):
        write_run(tmp_path / str(tab), evaluations, tab=tab)
    without, with_tab = (sum(file.stat().st_size for file in (tmp_path / str(tab)).iterdir()) for tab in (False, True))
    assert 0 < with_tab - without <= megabytes * 1e6


def seen_by_others(folder: Path) -> Mapping[str, Any]:
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


def test_other_readers_find_what_they_found_before(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(5), 3), PROMPTS, NAMES)
    for tab in (False, True):
        write_run(tmp_path / str(tab), evaluations, tab=tab, panels=2)
    without, with_tab = (seen_by_others(tmp_path / str(tab)) for tab in (False, True))
    assert all(without.values())
    assert with_tab == without


def test_no_random_number_is_drawn(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(3), 3), PROMPTS, NAMES)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    written_by(tmp_path, evaluations)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_a_evaluation_is_not_changed_by_being_written(tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(2), 3), PROMPTS, NAMES)
    before = [(evaluation.snapshot.maps.clone(), evaluation.pixels.clone()) for evaluation in evaluations]
    written_by(tmp_path, evaluations)
    for evaluation, (maps, pixels) in zip(evaluations, before, strict=True):
        assert torch.equal(evaluation.snapshot.maps, maps)
        assert torch.equal(evaluation.pixels, pixels)


def test_a_failed_first_evaluation_leaves_nothing_out_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert {"probes", "picture/red", "baseline"} <= set(values), "its baseline is in no event"


@pytest.mark.parametrize("previous", [False, True], ids=["compared with the first", "with the one before"])
def test_a_evaluation_says_whether_its_baseline_is_stored_apart(previous: bool, tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(4), 3), PROMPTS, NAMES, previous=previous)
    stored = [told(values["evaluation"])["stored_baseline"] for values in written_by(tmp_path, evaluations)]
    assert stored == [True, True, not previous, not previous]
