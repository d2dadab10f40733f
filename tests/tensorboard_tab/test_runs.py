"""Responses of the tab's routes for event files as the callback writes them, with both of TensorBoard's loaders."""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.sinks.tensorboard_tab import TabSink
from clipcam_lightning.tensorboard_tab import runs
from tests.support import shortcuts
from tests.support.in_process import LOADERS, Board, board_over, until
from tests.support.synthetic_evaluations import evaluations_of, ramps, random_maps, write_run

pytestmark = pytest.mark.slow

PROMPTS = [f"a thing {i} \ud83d <b>" for i in range(20)]
NAMES = [f"thing-{i}" for i in range(20)]
HALF = 2**-11


@pytest.fixture(params=LOADERS)
def loader(request: pytest.FixtureRequest) -> str:
    loader: str = request.param
    return loader


def check_maps(
    arrays: dict[str, np.ndarray], evaluations: Sequence[Evaluation], places: Sequence[int], scale: int
) -> None:
    """Check that maps and steps are those of the evaluations."""
    assert arrays["step"].tolist() == [evaluation.snapshot.info.step for evaluation in evaluations]
    assert arrays["maps"].dtype == np.float16
    for row, place in enumerate(places):
        for i, evaluation in enumerate(evaluations):
            map_ = arrays["maps"][row, i].astype(np.float64) * arrays["row_metrics"][row, i, scale]
            np.testing.assert_allclose(map_, evaluation.snapshot.maps[place].numpy(), rtol=HALF, atol=1e-7)


def check_metrics(arrays: dict[str, np.ndarray], evaluations: Sequence[Evaluation]) -> None:
    """Check that the metrics of all probes equal those of the reports, to the bit."""
    for name in ("drift", "similarity", "flagged"):
        expected = [
            [getattr(evaluation.report.probes[i], name) for evaluation in evaluations] for i in range(len(arrays[name]))
        ]
        np.testing.assert_array_equal(arrays[name], np.array(expected, arrays[name].dtype))
    assert arrays["alarm"].tolist() == [evaluation.report.alarm for evaluation in evaluations]
    assert arrays["epoch"].tolist() == [evaluation.snapshot.info.epoch for evaluation in evaluations]


def test_responses_hold_maps_metrics_and_images_as_written(loader: str, tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(0, 60, 10), 20), PROMPTS, NAMES)
    write_run(tmp_path / "run", evaluations, panels=1)
    first = evaluations[-1].report.flagged_first[:16]
    with board_over(loader, tmp_path) as board:
        (source,) = board.json("clipcam/runs")["runs"]
        assert (source["run"], source["root"], source["problem"]) == ("run", "clipcam", "")
        assert abs(source["wall_time"] - time.time()) < 600
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
        assert about["rows"] == [NAMES[i] for i in first]
        assert about["probes"] == {
            **{"names": NAMES, "prompts": PROMPTS, "digests": evaluations[0].digests},
            "visible": [],
        }
        assert about["settings"] == {"method": "hirescam", "target": "similarity", "layers": ["visual.ln_1"]}
        assert about["left_out"] == {}
        assert arrays["baseline"].tolist() == [-1] * 6
        scale = about["metrics"].index("scale")
        check_metrics(arrays, evaluations)
        check_maps(arrays, evaluations, first, scale)

        wanted = [19, 0, 7]
        rows, about_rows = board.arrays("rows", run="run", root="clipcam", probe=[NAMES[i] for i in wanted])
        assert about_rows["rows"] == [NAMES[i] for i in wanted]
        check_maps(rows, evaluations, wanted, scale)
        for row, place in enumerate(wanted):
            for column, name in enumerate(about["metrics"][:-2]):
                expected = [np.float32(getattr(evaluation.report.probes[place], name)) for evaluation in evaluations]
                np.testing.assert_array_equal(rows["row_metrics"][row, :, column], expected, err_msg=name)
            with Image.open(io.BytesIO(rows[f"image.{row}"].tobytes())) as image:
                pixels = np.asarray(image).transpose(2, 0, 1).astype(int)
            assert np.abs(pixels - evaluations[0].pixels[place].numpy()).mean() < 4


def test_responses_hold_masks_and_the_grounds_of_an_alarm(loader: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", shortcuts.shortcut_evaluations())
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
        rows, _ = board.arrays("rows", run="run", root="clipcam", probe=["hen"])
    assert about["probes"]["visible"] == pytest.approx(shortcuts.VISIBLE, abs=1e-4)
    assert about["grounds"][0] == []
    assert {ground["probe"]: tuple(ground["called"]) for ground in about["grounds"][1]} == dict(
        enumerate(shortcuts.CALLED)
    )
    row = about["rows"].index("hen")
    for kind, size in (("mask", (96, 96)), ("ground", (3 * 96, 96))):
        assert rows[f"{kind}.0"].tobytes() == arrays[f"{kind}.{row}"].tobytes()
        with Image.open(io.BytesIO(rows[f"{kind}.0"].tobytes())) as image:
            assert image.size == size


def test_runs_whose_last_evaluation_is_an_alarm_are_first(loader: str, tmp_path: Path) -> None:
    first, alarm = shortcuts.shortcut_evaluations()
    again = replace(first, snapshot=replace(first.snapshot, info=replace(first.snapshot.info, step=80)))
    runs_of = {"a": [first], "b": [first, alarm], "c": [first, alarm, again], "d": [first, alarm]}
    for run, evaluations in runs_of.items():
        write_run(tmp_path / run, evaluations)
    with board_over(loader, tmp_path) as board:
        sources = board.json("clipcam/runs")["runs"]
    assert [(source["run"], source["alarm"]) for source in sources] == [
        ("b", True),
        ("d", True),
        ("a", False),
        ("c", False),
    ]


def test_flagged_probes_come_first_and_unknown_drift_last(loader: str, tmp_path: Path) -> None:
    maps = random_maps([0, 1], 6)
    maps[0][0] = 0  # an invalid baseline
    maps[1][1] = 0  # flagged, with a drift of 1
    evaluations = evaluations_of(maps, PROMPTS[:6], NAMES[:6])
    write_run(tmp_path / "run", evaluations)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
    others = sorted([2, 3, 4, 5], key=lambda i: -evaluations[-1].report.probes[i].drift)
    assert about["rows"] == [NAMES[i] for i in [1, *others, 0]]
    assert arrays["flagged"][:, 1].tolist() == [0, 1, 0, 0, 0, 0]
    assert np.isnan(arrays["drift"][0]).all()
    note = int(arrays["row_metrics"][-1, 1, about["metrics"].index("note")])
    assert "all zero" in about["notes"][1][note]


def write_parts(folder: Path, *parts: Sequence[Evaluation]) -> None:
    """Write one run as several event files, in this order."""
    for number, evaluations in enumerate(parts):
        write_run(folder / f"part-{number}", evaluations)
        (file,) = (folder / f"part-{number}").iterdir()
        file.rename(folder / f"events.out.tfevents.{number:010d}.part")
        file.parent.rmdir()


def test_a_resumed_run_replaces_the_evaluations_that_it_repeats(loader: str, tmp_path: Path) -> None:
    first = evaluations_of(random_maps([0, 10, 20, 30, 40], 3), PROMPTS[:3], NAMES[:3])
    resumed = evaluations_of(random_maps([20, 25], 3, seed=7), PROMPTS[:3], NAMES[:3], baseline=first[0].snapshot)
    write_parts(tmp_path / "run", first, resumed)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
    places = [NAMES.index(name) for name in about["rows"]]
    check_maps(arrays, [*first[:2], *resumed], places, about["metrics"].index("scale"))
    np.testing.assert_array_equal(
        arrays["drift"][1], np.float32([evaluation.report.probes[1].drift for evaluation in [*first[:2], *resumed]])
    )
    assert about["left_out"] == {}
    # The resumed run got its baseline from the checkpoint, so the second file holds it too.
    assert arrays["baseline"].tolist() == [-1, -1, -2, -2]
    np.testing.assert_array_equal(arrays["baselines"][1], first[0].snapshot.maps[places].numpy())


@pytest.mark.parametrize("change", ["probes", "more probes", "method", "grid"])
def test_evaluations_that_are_not_comparable_with_the_last_are_left_out(
    change: str, loader: str, tmp_path: Path
) -> None:
    before = evaluations_of(random_maps([0, 10, 20], 3), PROMPTS[:3], NAMES[:3])
    count = 5 if change == "more probes" else 3
    prompts = [prompt + "!" * (change == "probes") for prompt in PROMPTS[:count]]
    grid, method = ((4, 4) if change == "grid" else (3, 5)), ("layercam" if change == "method" else "hirescam")
    after = evaluations_of(random_maps([30, 40], count, grid, seed=3), prompts, NAMES[:count], method=method)
    write_parts(tmp_path / "run", before, after)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
    places = [NAMES.index(name) for name in about["rows"]]
    check_maps(arrays, after, places, about["metrics"].index("scale"))
    assert about["probes"]["prompts"] == prompts
    assert arrays["baseline"].tolist() == [-1 if change == "grid" or count == 5 else -2] * 2
    np.testing.assert_array_equal(arrays["baselines"][-1], after[0].snapshot.maps[places].numpy())
    assert about["left_out"] == {"other probes or map settings than the last one": 3}


def test_a_probe_has_the_image_that_was_written_last(loader: str, tmp_path: Path) -> None:
    before = evaluations_of(random_maps([0, 10], 1), ["a"], pixels=ramps(1))
    after = evaluations_of(random_maps([20], 1), ["a"], pixels=255 - ramps(1), digests=["of another image"])
    write_parts(tmp_path / "run", before, after)
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("evaluations", run="run", root="clipcam")
    with Image.open(io.BytesIO(arrays["image.0"].tobytes())) as image:
        pixels = np.asarray(image).transpose(2, 0, 1).astype(int)
    assert np.abs(pixels - after[0].pixels[0].numpy()).mean() < 4


def test_a_run_can_have_two_stored_baselines(loader: str, tmp_path: Path) -> None:
    others = [evaluations_of(random_maps([0], 2, seed=seed), PROMPTS[:2], NAMES[:2])[0].snapshot for seed in (5, 6)]
    parts = [
        evaluations_of(random_maps(steps, 2), PROMPTS[:2], NAMES[:2], baseline=baseline)
        for steps, baseline in zip(([0, 1], [2, 3]), others, strict=True)
    ]
    write_parts(tmp_path / "run", *parts)
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("rows", run="run", root="clipcam", probe=NAMES[1])
        baseline = board.arrays("evaluations", run="run", root="clipcam")[0]["baseline"]
    assert baseline.tolist() == [-1, -1, -2, -2]
    np.testing.assert_array_equal(arrays["baselines"], np.stack([other.maps[[1]].numpy() for other in others]))


def test_a_stored_baseline_is_not_the_evaluation_at_its_step(loader: str, tmp_path: Path) -> None:
    stored = evaluations_of(random_maps([1], 3, seed=5), PROMPTS[:3], NAMES[:3])[0].snapshot
    evaluations = evaluations_of(random_maps([0, 1, 2], 3), PROMPTS[:3], NAMES[:3], baseline=stored)
    write_run(tmp_path / "run", evaluations)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
        rows, _ = board.arrays("rows", run="run", root="clipcam", probe=NAMES[2])
    assert arrays["baseline"].tolist() == [-1, -1, -1]
    assert arrays["baseline_step"].tolist() == [1, 1, 1]
    places = [NAMES.index(name) for name in about["rows"]]
    np.testing.assert_array_equal(arrays["baselines"][0], stored.maps[places].numpy())
    np.testing.assert_array_equal(rows["baselines"], stored.maps[None, [2]].numpy())


def test_a_stored_baseline_outlives_its_first_evaluation(loader: str, tmp_path: Path) -> None:
    stored = evaluations_of(random_maps([1], 2, seed=5), PROMPTS[:2], NAMES[:2])[0].snapshot
    write_run(tmp_path / "run", evaluations_of(random_maps(range(40), 2), PROMPTS[:2], NAMES[:2], baseline=stored))
    with board_over(loader, tmp_path, ["--samples_per_plugin=clipcam=5"]) as board:
        arrays, _ = board.arrays("evaluations", run="run", root="clipcam")
    assert len(arrays["step"]) == 5
    assert arrays["step"][0] > 0
    assert arrays["baseline"].tolist() == [-1] * 5
    assert not np.isnan(arrays["maps"].astype(np.float32)).any(), "the same evaluations are kept of each tag"


def test_each_evaluation_can_be_compared_with_the_previous_one(loader: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(5), 3), PROMPTS[:3], NAMES[:3], previous=True))
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("evaluations", run="run", root="clipcam")
    assert arrays["baseline"].tolist() == [-1, -1, 1, 2, 3]


def test_runs_and_callbacks_are_separate(loader: str, tmp_path: Path) -> None:
    evaluations = {
        run: evaluations_of(random_maps(range(3), 2, seed=i), PROMPTS[:2]) for i, run in enumerate(("a/deep", "b"))
    }
    for run, each in evaluations.items():
        write_run(tmp_path / run, each)
    other = evaluations_of(random_maps(range(2), 4, (2, 2)), PROMPTS[:4])
    write_run(tmp_path / "b-too", other, "clipcam_other")
    (file,) = (tmp_path / "b-too").iterdir()
    file.rename(tmp_path / "b" / "events.out.tfevents.9999999999.other")
    (tmp_path / "b-too").rmdir()
    with board_over(loader, tmp_path) as board:
        listed = [(source["run"], source["root"]) for source in board.json("clipcam/runs")["runs"]]
        assert listed == [("a/deep", "clipcam"), ("b", "clipcam"), ("b", "clipcam_other")]
        for (run, root), written in zip(listed, [*evaluations.values(), other], strict=True):
            arrays, about = board.arrays("evaluations", run=run, root=root)
            places = [int(name.removeprefix("probe-")) for name in about["rows"]]
            check_maps(arrays, written, places, about["metrics"].index("scale"))


def test_runs_are_listed_by_the_numbers_in_their_names(loader: str, tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_run(tmp_path / f"version_{number}", evaluations_of(random_maps(range(1), 1), PROMPTS[:1]))
    with board_over(loader, tmp_path) as board:
        listed = [source["run"] for source in board.json("clipcam/runs")["runs"]]
        assert listed == ["version_1", "version_9", "version_10"]


def test_maps_that_exceed_the_memory_limit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(4), 3), PROMPTS[:3]))
    query = {"run": "run", "root": "clipcam", "probe": ["probe-0", "probe-1"]}
    with board_over("legacy", tmp_path) as board:
        monkeypatch.setattr(runs, "MAX_BYTES", 2 * 4 * 3 * 5 * 2)  # probes, evaluations, cells, bytes of a half float
        assert board.get("clipcam/rows", query).status_code == 200
        refused = board.get("clipcam/rows", {**query, "probe": ["probe-0", "probe-1", "probe-2"]})
        assert refused.status_code == 400
        assert "The maps of 3 probes at 4 evaluations take" in refused.text


def test_the_log_directory_can_itself_be_a_run(loader: str, tmp_path: Path) -> None:
    write_run(tmp_path, evaluations_of(random_maps(range(2), 2), PROMPTS[:2]))
    with board_over(loader, tmp_path, prefix="/behind/a/proxy") as board:
        assert board.json("clipcam/runs")["runs"][0]["run"] == "."
        assert len(board.arrays("evaluations", run=".", root="clipcam")[0]["step"]) == 2


def test_runs_can_be_named_by_logdir_spec(tmp_path: Path) -> None:
    """The fast loader does not support ``--logdir_spec``."""
    for name in ("one", "two"):
        write_run(tmp_path / name, evaluations_of(random_maps(range(2), 2), PROMPTS[:2]))
    spec = f"--logdir_spec=mine:{tmp_path / 'one'},yours:{tmp_path / 'two'}"
    with board_over("legacy", tmp_path, [spec]) as board:
        assert [source["run"] for source in board.json("clipcam/runs")["runs"]] == ["mine/.", "yours/."]
        assert len(board.arrays("evaluations", run="yours/.", root="clipcam")[0]["step"]) == 2


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SummaryWriter]:
    writer = SummaryWriter(tmp_path / "run")
    yield writer
    writer.close()


def test_a_run_can_be_read_while_it_is_written(loader: str, tmp_path: Path, writer: SummaryWriter) -> None:
    evaluations, sink = evaluations_of(random_maps(range(4), 2), PROMPTS[:2], NAMES[:2]), TabSink(writer, "clipcam")
    with board_over(loader, tmp_path, growing=True) as board:
        assert board.json("clipcam/runs") == {"runs": []}
        for number, evaluation in enumerate(evaluations, 1):
            sink.write(evaluation)
            until(partial(has_maps, board, number))
            arrays, about = board.arrays("evaluations", run="run", root="clipcam")
            places = [NAMES.index(name) for name in about["rows"]]
            check_maps(arrays, evaluations[:number], places, about["metrics"].index("scale"))


def has_maps(board: Board, count: int) -> bool:
    """Whether the run has this many evaluations, each with all its maps."""
    if board.get("clipcam/evaluations", {"run": "run", "root": "clipcam"}).status_code == 404:
        return False
    arrays, _ = board.arrays("evaluations", run="run", root="clipcam")
    return len(arrays["step"]) == count and not np.isnan(arrays["maps"].astype(np.float32)).any()
