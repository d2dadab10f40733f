"""What the tab's routes answer of event files as the callback writes them, whichever loader TensorBoard reads with."""

import io
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.sinks.tensorboard_tab import TabSink
from clipcam_lightning.tensorboard_tab import runs
from tests.support.in_process import LOADERS, Board, board_over, until
from tests.support.synthetic_evaluations import evaluations_of, ramps, random_maps, write_run

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
    """All maps and steps are those of the looks."""
    assert arrays["step"].tolist() == [evaluation.snapshot.info.step for evaluation in evaluations]
    assert arrays["maps"].dtype == np.float16
    for row, place in enumerate(places):
        for i, evaluation in enumerate(evaluations):
            read = arrays["maps"][row, i].astype(np.float64) * arrays["row_figures"][row, i, scale]
            np.testing.assert_allclose(read, evaluation.snapshot.maps[place].numpy(), rtol=HALF, atol=1e-7)


def check_figures(
    arrays: dict[str, np.ndarray], about: dict[str, list[str]], evaluations: Sequence[Evaluation]
) -> None:
    """The figures of all probes are those of the reports, to the bit."""
    for name in ("drift", "similarity", "alarm"):
        expected = [
            [getattr(evaluation.report.probes[i], name) for evaluation in evaluations] for i in range(len(arrays[name]))
        ]
        np.testing.assert_array_equal(arrays[name], np.array(expected, arrays[name].dtype))
    assert arrays["alarm"].tolist() == [evaluation.report.alarm for evaluation in evaluations]
    assert arrays["epoch"].tolist() == [evaluation.snapshot.info.epoch for evaluation in evaluations]


def test_all_is_answered_as_it_was_evaluated(loader: str, tmp_path: Path) -> None:
    evaluations = evaluations_of(random_maps(range(0, 60, 10), 20), PROMPTS, NAMES)
    write_run(tmp_path / "run", evaluations, panels=1)
    drift = [probe.drift for probe in evaluations[-1].report.probes]
    worst = sorted(range(20), key=lambda i: (-np.float32(drift[i]), i))
    with board_over(loader, tmp_path) as board:
        (watched,) = board.json("clipcam/runs")["runs"]
        assert (watched["run"], watched["root"], watched["problem"]) == ("run", "clipcam", "")
        assert abs(watched["wall_time"] - time.time()) < 600
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
        assert about["rows"] == [NAMES[i] for i in worst[:16]]
        assert about["probes"] == {"names": NAMES, "prompts": PROMPTS, "digests": evaluations[0].digests}
        assert about["made"] == {"method": "hirescam", "target": "similarity", "layers": ["visual.ln_1"]}
        assert about["left_out"] == {}
        assert arrays["baseline"].tolist() == [-1] * 6
        scale = about["figures"].index("scale")
        check_figures(arrays, about, evaluations)
        check_maps(arrays, evaluations, worst[:16], scale)

        wanted = [19, 0, 7]
        rows, about_rows = board.arrays("rows", run="run", root="clipcam", probe=[NAMES[i] for i in wanted])
        assert about_rows["rows"] == [NAMES[i] for i in wanted]
        check_maps(rows, evaluations, wanted, scale)
        for row, place in enumerate(wanted):
            for column, name in enumerate(about["figures"][:-2]):
                told = [np.float32(getattr(evaluation.report.probes[place], name)) for evaluation in evaluations]
                np.testing.assert_array_equal(rows["row_figures"][row, :, column], told, err_msg=name)
            (tmp_path / "picture").write_bytes(rows[f"picture.{row}"].tobytes())
            with Image.open(tmp_path / "picture") as picture:
                seen = np.asarray(picture).transpose(2, 0, 1).astype(int)
            assert np.abs(seen - evaluations[0].pixels[place].numpy()).mean() < 4


def test_probes_of_unknown_drift_come_last(loader: str, tmp_path: Path) -> None:
    maps = random_maps([0, 1], 4)
    maps[0][0] = 0
    evaluations = evaluations_of(maps, PROMPTS[:4], NAMES[:4])
    write_run(tmp_path / "run", evaluations)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
    known = sorted([1, 2, 3], key=lambda i: -evaluations[-1].report.probes[i].drift)
    assert about["rows"] == [NAMES[i] for i in [*known, 0]]
    assert np.isnan(arrays["drift"][0]).all()
    note = int(arrays["row_figures"][-1, 1, about["figures"].index("note")])
    assert "all zero" in about["notes"][1][note]


def resumed(folder: Path, *parts: Sequence[Evaluation]) -> None:
    """One event file each in one run, in this order."""
    for number, evaluations in enumerate(parts):
        write_run(folder / f"part-{number}", evaluations)
        (file,) = (folder / f"part-{number}").iterdir()
        file.rename(folder / f"events.out.tfevents.{number:010d}.part")
        file.parent.rmdir()


def test_a_resumed_run_overtakes_the_evaluations_it_takes_again(loader: str, tmp_path: Path) -> None:
    begun = evaluations_of(random_maps([0, 10, 20, 30, 40], 3), PROMPTS[:3], NAMES[:3])
    again = evaluations_of(random_maps([20, 25], 3, seed=7), PROMPTS[:3], NAMES[:3], baseline=begun[0].snapshot)
    resumed(tmp_path / "run", begun, again)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
    places = [NAMES.index(name) for name in about["rows"]]
    check_maps(arrays, [*begun[:2], *again], places, about["figures"].index("scale"))
    np.testing.assert_array_equal(
        arrays["drift"][1], np.float32([evaluation.report.probes[1].drift for evaluation in [*begun[:2], *again]])
    )
    assert about["left_out"] == {}
    # The checkpoint gave the resumed run a baseline, which the second file holds too.
    assert arrays["baseline"].tolist() == [-1, -1, -2, -2]
    np.testing.assert_array_equal(arrays["baselines"][1], begun[0].snapshot.maps[places].numpy())


@pytest.mark.parametrize("change", ["probes", "more probes", "method", "grid"])
def test_evaluations_that_cannot_be_compared_with_the_last_are_left_out(
    change: str, loader: str, tmp_path: Path
) -> None:
    begun = evaluations_of(random_maps([0, 10, 20], 3), PROMPTS[:3], NAMES[:3])
    count = 5 if change == "more probes" else 3
    prompts = [prompt + "!" * (change == "probes") for prompt in PROMPTS[:count]]
    grid, method = ((4, 4) if change == "grid" else (3, 5)), ("layercam" if change == "method" else "hirescam")
    after = evaluations_of(random_maps([30, 40], count, grid, seed=3), prompts, NAMES[:count], method=method)
    resumed(tmp_path / "run", begun, after)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
    places = [NAMES.index(name) for name in about["rows"]]
    check_maps(arrays, after, places, about["figures"].index("scale"))
    assert about["probes"]["prompts"] == prompts
    assert arrays["baseline"].tolist() == [-1 if change == "grid" or count == 5 else -2] * 2
    np.testing.assert_array_equal(arrays["baselines"][-1], after[0].snapshot.maps[places].numpy())
    assert about["left_out"] == {"were made in another way or of other probes than the last": 3}


def test_a_probe_shows_the_picture_that_was_written_last(loader: str, tmp_path: Path) -> None:
    begun = evaluations_of(random_maps([0, 10], 1), ["a"], pixels=ramps(1))
    after = evaluations_of(random_maps([20], 1), ["a"], pixels=255 - ramps(1), digests=["of another picture"])
    resumed(tmp_path / "run", begun, after)
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("evaluations", run="run", root="clipcam")
    with Image.open(io.BytesIO(arrays["picture.0"].tobytes())) as picture:
        seen = np.asarray(picture).transpose(2, 0, 1).astype(int)
    assert np.abs(seen - after[0].pixels[0].numpy()).mean() < 4


def test_two_baselines_from_elsewhere(loader: str, tmp_path: Path) -> None:
    others = [evaluations_of(random_maps([0], 2, seed=seed), PROMPTS[:2], NAMES[:2])[0].snapshot for seed in (5, 6)]
    parts = [
        evaluations_of(random_maps(steps, 2), PROMPTS[:2], NAMES[:2], baseline=baseline)
        for steps, baseline in zip(([0, 1], [2, 3]), others, strict=True)
    ]
    resumed(tmp_path / "run", *parts)
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("rows", run="run", root="clipcam", probe=NAMES[1])
        baseline = board.arrays("evaluations", run="run", root="clipcam")[0]["baseline"]
    assert baseline.tolist() == [-1, -1, -2, -2]
    np.testing.assert_array_equal(arrays["baselines"], np.stack([other.maps[[1]].numpy() for other in others]))


def test_a_baseline_from_elsewhere(loader: str, tmp_path: Path) -> None:
    foreign = evaluations_of(random_maps([1], 3, seed=5), PROMPTS[:3], NAMES[:3])[0].snapshot
    evaluations = evaluations_of(
        random_maps([0, 1, 2], 3), PROMPTS[:3], NAMES[:3], baseline=foreign
    )  # has a look at its step too
    write_run(tmp_path / "run", evaluations)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("evaluations", run="run", root="clipcam")
        rows, _ = board.arrays("rows", run="run", root="clipcam", probe=NAMES[2])
    assert arrays["baseline"].tolist() == [-1, -1, -1]
    assert arrays["baseline_step"].tolist() == [1, 1, 1]
    places = [NAMES.index(name) for name in about["rows"]]
    np.testing.assert_array_equal(arrays["baselines"][0], foreign.maps[places].numpy())
    np.testing.assert_array_equal(rows["baselines"], foreign.maps[None, [2]].numpy())


def test_a_baseline_from_elsewhere_whose_first_evaluation_is_no_longer_kept(loader: str, tmp_path: Path) -> None:
    foreign = evaluations_of(random_maps([1], 2, seed=5), PROMPTS[:2], NAMES[:2])[0].snapshot
    write_run(tmp_path / "run", evaluations_of(random_maps(range(40), 2), PROMPTS[:2], NAMES[:2], baseline=foreign))
    with board_over(loader, tmp_path, ["--samples_per_plugin=clipcam=5"]) as board:
        arrays, _ = board.arrays("evaluations", run="run", root="clipcam")
    assert len(arrays["step"]) == 5
    assert arrays["step"][0] > 0
    assert arrays["baseline"].tolist() == [-1] * 5
    assert not np.isnan(arrays["maps"].astype(np.float32)).any(), "of each tag the same looks are kept"


def test_each_evaluation_against_the_one_before(loader: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(5), 3), PROMPTS[:3], NAMES[:3], previous=True))
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("evaluations", run="run", root="clipcam")
    assert arrays["baseline"].tolist() == [-1, -1, 1, 2, 3]


def test_two_runs_and_two_callbacks(loader: str, tmp_path: Path) -> None:
    evaluations = {
        run: evaluations_of(random_maps(range(3), 2, seed=i), PROMPTS[:2]) for i, run in enumerate(("a/deep", "b"))
    }
    for run, each in evaluations.items():
        write_run(tmp_path / run, each)
    other = evaluations_of(random_maps(range(2), 4, (2, 2)), PROMPTS[:4])
    write_run(tmp_path / "b-too", other, "clipcam_other")
    resumed_name = next((tmp_path / "b-too").iterdir())
    resumed_name.rename(tmp_path / "b" / "events.out.tfevents.9999999999.other")
    (tmp_path / "b-too").rmdir()
    with board_over(loader, tmp_path) as board:
        listed = [(watched["run"], watched["root"]) for watched in board.json("clipcam/runs")["runs"]]
        assert listed == [("a/deep", "clipcam"), ("b", "clipcam"), ("b", "clipcam_other")]
        for (run, root), given in zip(listed, [*evaluations.values(), other], strict=True):
            arrays, about = board.arrays("evaluations", run=run, root=root)
            places = [int(name.removeprefix("probe-")) for name in about["rows"]]
            check_maps(arrays, given, places, about["figures"].index("scale"))


def test_the_tenth_run_comes_after_the_ninth(loader: str, tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_run(tmp_path / f"version_{number}", evaluations_of(random_maps(range(1), 1), PROMPTS[:1]))
    with board_over(loader, tmp_path) as board:
        listed = [watched["run"] for watched in board.json("clipcam/runs")["runs"]]
        assert listed == ["version_1", "version_9", "version_10"]


def test_maps_that_would_fill_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", evaluations_of(random_maps(range(4), 3), PROMPTS[:3]))
    asked = {"run": "run", "root": "clipcam", "probe": ["probe-0", "probe-1"]}
    with board_over("legacy", tmp_path) as board:
        monkeypatch.setattr(runs, "MOST_BYTES", 2 * 4 * 3 * 5 * 2)  # probes, looks, cells, bytes of a half float
        assert board.get("clipcam/rows", asked).status_code == 200
        refused = board.get("clipcam/rows", {**asked, "probe": ["probe-0", "probe-1", "probe-2"]})
        assert refused.status_code == 400
        assert "The maps of 3 probes at 4 looks take" in refused.text


def test_a_run_that_is_the_log_folder_itself(loader: str, tmp_path: Path) -> None:
    write_run(tmp_path, evaluations_of(random_maps(range(2), 2), PROMPTS[:2]))
    with board_over(loader, tmp_path, prefix="/behind/a/proxy") as board:
        assert board.json("clipcam/runs")["runs"][0]["run"] == "."
        assert len(board.arrays("evaluations", run=".", root="clipcam")[0]["step"]) == 2


def test_runs_that_are_named_one_by_one(tmp_path: Path) -> None:
    """``--logdir_spec``, which the fast loader does not know."""
    for name in ("one", "two"):
        write_run(tmp_path / name, evaluations_of(random_maps(range(2), 2), PROMPTS[:2]))
    spec = f"--logdir_spec=mine:{tmp_path / 'one'},yours:{tmp_path / 'two'}"
    with board_over("legacy", tmp_path, [spec]) as board:
        assert [watched["run"] for watched in board.json("clipcam/runs")["runs"]] == ["mine/.", "yours/."]
        assert len(board.arrays("evaluations", run="yours/.", root="clipcam")[0]["step"]) == 2


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SummaryWriter]:
    writer = SummaryWriter(tmp_path / "run")
    yield writer
    writer.close()


def test_a_run_that_is_being_written(loader: str, tmp_path: Path, writer: SummaryWriter) -> None:
    evaluations, sink = evaluations_of(random_maps(range(4), 2), PROMPTS[:2], NAMES[:2]), TabSink(writer, "clipcam")
    with board_over(loader, tmp_path, growing=True) as board:
        assert board.json("clipcam/runs") == {"runs": []}
        for number, evaluation in enumerate(evaluations, 1):
            sink.write(evaluation)
            until(partial(whole, board, number))
            arrays, about = board.arrays("evaluations", run="run", root="clipcam")
            places = [NAMES.index(name) for name in about["rows"]]
            check_maps(arrays, evaluations[:number], places, about["figures"].index("scale"))


def whole(board: Board, count: int) -> bool:
    """Whether so many looks have all their maps."""
    if board.get("clipcam/evaluations", {"run": "run", "root": "clipcam"}).status_code == 404:
        return False
    arrays, _ = board.arrays("evaluations", run="run", root="clipcam")
    return len(arrays["step"]) == count and not np.isnan(arrays["maps"].astype(np.float32)).any()
