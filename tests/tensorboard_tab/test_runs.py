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

from clipcam_lightning.monitoring.evaluation import Look
from clipcam_lightning.sinks.tensorboard_tab import TabSink
from clipcam_lightning.tensorboard_tab import runs
from tests.support.in_process import LOADERS, Board, board_over, until
from tests.support.synthetic_evaluations import looks_of, ramps, random_maps, write_run

PROMPTS = [f"a thing {i} \ud83d <b>" for i in range(20)]
NAMES = [f"thing-{i}" for i in range(20)]
HALF = 2**-11


@pytest.fixture(params=LOADERS)
def loader(request: pytest.FixtureRequest) -> str:
    loader: str = request.param
    return loader


def check_maps(arrays: dict[str, np.ndarray], looks: Sequence[Look], places: Sequence[int], scale: int) -> None:
    """All maps and steps are those of the looks."""
    assert arrays["step"].tolist() == [look.snapshot.info.step for look in looks]
    assert arrays["maps"].dtype == np.float16
    for row, place in enumerate(places):
        for i, look in enumerate(looks):
            read = arrays["maps"][row, i].astype(np.float64) * arrays["row_figures"][row, i, scale]
            np.testing.assert_allclose(read, look.snapshot.maps[place].numpy(), rtol=HALF, atol=1e-7)


def check_figures(arrays: dict[str, np.ndarray], about: dict[str, list[str]], looks: Sequence[Look]) -> None:
    """The figures of all probes are those of the reports, to the bit."""
    for name in ("drift", "similarity", "alarm"):
        expected = [[getattr(look.report.probes[i], name) for look in looks] for i in range(len(arrays[name]))]
        np.testing.assert_array_equal(arrays[name], np.array(expected, arrays[name].dtype))
    assert arrays["alarmed"].tolist() == [look.report.alarmed for look in looks]
    assert arrays["epoch"].tolist() == [look.snapshot.info.epoch for look in looks]


def test_all_is_answered_as_it_was_looked(loader: str, tmp_path: Path) -> None:
    looks = looks_of(random_maps(range(0, 60, 10), 20), PROMPTS, NAMES)
    write_run(tmp_path / "run", looks, panels=1)
    drift = [probe.drift for probe in looks[-1].report.probes]
    worst = sorted(range(20), key=lambda i: (-np.float32(drift[i]), i))
    with board_over(loader, tmp_path) as board:
        (watched,) = board.json("clipcam/runs")["runs"]
        assert (watched["run"], watched["root"], watched["problem"]) == ("run", "clipcam", "")
        assert abs(watched["wall_time"] - time.time()) < 600
        arrays, about = board.arrays("looks", run="run", root="clipcam")
        assert about["rows"] == [NAMES[i] for i in worst[:16]]
        assert about["probes"] == {"names": NAMES, "prompts": PROMPTS, "digests": looks[0].digests}
        assert about["made"] == {"method": "hirescam", "target": "similarity", "layers": ["visual.ln_1"]}
        assert about["left_out"] == {}
        assert arrays["baseline"].tolist() == [-1] * 6
        scale = about["figures"].index("scale")
        check_figures(arrays, about, looks)
        check_maps(arrays, looks, worst[:16], scale)

        wanted = [19, 0, 7]
        rows, about_rows = board.arrays("rows", run="run", root="clipcam", probe=[NAMES[i] for i in wanted])
        assert about_rows["rows"] == [NAMES[i] for i in wanted]
        check_maps(rows, looks, wanted, scale)
        for row, place in enumerate(wanted):
            for column, name in enumerate(about["figures"][:-2]):
                told = [np.float32(getattr(look.report.probes[place], name)) for look in looks]
                np.testing.assert_array_equal(rows["row_figures"][row, :, column], told, err_msg=name)
            (tmp_path / "picture").write_bytes(rows[f"picture.{row}"].tobytes())
            with Image.open(tmp_path / "picture") as picture:
                seen = np.asarray(picture).transpose(2, 0, 1).astype(int)
            assert np.abs(seen - looks[0].pixels[place].numpy()).mean() < 4


def test_probes_of_unknown_drift_come_last(loader: str, tmp_path: Path) -> None:
    maps = random_maps([0, 1], 4)
    maps[0][0] = 0
    looks = looks_of(maps, PROMPTS[:4], NAMES[:4])
    write_run(tmp_path / "run", looks)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("looks", run="run", root="clipcam")
    known = sorted([1, 2, 3], key=lambda i: -looks[-1].report.probes[i].drift)
    assert about["rows"] == [NAMES[i] for i in [*known, 0]]
    assert np.isnan(arrays["drift"][0]).all()
    note = int(arrays["row_figures"][-1, 1, about["figures"].index("note")])
    assert "all zero" in about["notes"][1][note]


def resumed(folder: Path, *parts: Sequence[Look]) -> None:
    """One event file each in one run, in this order."""
    for number, looks in enumerate(parts):
        write_run(folder / f"part-{number}", looks)
        (file,) = (folder / f"part-{number}").iterdir()
        file.rename(folder / f"events.out.tfevents.{number:010d}.part")
        file.parent.rmdir()


def test_a_resumed_run_overtakes_the_looks_it_takes_again(loader: str, tmp_path: Path) -> None:
    begun = looks_of(random_maps([0, 10, 20, 30, 40], 3), PROMPTS[:3], NAMES[:3])
    again = looks_of(random_maps([20, 25], 3, seed=7), PROMPTS[:3], NAMES[:3], baseline=begun[0].snapshot)
    resumed(tmp_path / "run", begun, again)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("looks", run="run", root="clipcam")
    places = [NAMES.index(name) for name in about["rows"]]
    check_maps(arrays, [*begun[:2], *again], places, about["figures"].index("scale"))
    np.testing.assert_array_equal(
        arrays["drift"][1], np.float32([look.report.probes[1].drift for look in [*begun[:2], *again]])
    )
    assert about["left_out"] == {}
    # The checkpoint gave the resumed run a baseline, which the second file holds too.
    assert arrays["baseline"].tolist() == [-1, -1, -2, -2]
    np.testing.assert_array_equal(arrays["baselines"][1], begun[0].snapshot.maps[places].numpy())


@pytest.mark.parametrize("change", ["probes", "more probes", "method", "grid"])
def test_looks_that_cannot_be_compared_with_the_last_are_left_out(change: str, loader: str, tmp_path: Path) -> None:
    begun = looks_of(random_maps([0, 10, 20], 3), PROMPTS[:3], NAMES[:3])
    count = 5 if change == "more probes" else 3
    prompts = [prompt + "!" * (change == "probes") for prompt in PROMPTS[:count]]
    grid, method = ((4, 4) if change == "grid" else (3, 5)), ("layercam" if change == "method" else "hirescam")
    after = looks_of(random_maps([30, 40], count, grid, seed=3), prompts, NAMES[:count], method=method)
    resumed(tmp_path / "run", begun, after)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("looks", run="run", root="clipcam")
    places = [NAMES.index(name) for name in about["rows"]]
    check_maps(arrays, after, places, about["figures"].index("scale"))
    assert about["probes"]["prompts"] == prompts
    assert arrays["baseline"].tolist() == [-1 if change == "grid" or count == 5 else -2] * 2
    np.testing.assert_array_equal(arrays["baselines"][-1], after[0].snapshot.maps[places].numpy())
    assert about["left_out"] == {"were made in another way or of other probes than the last": 3}


def test_a_probe_shows_the_picture_that_was_written_last(loader: str, tmp_path: Path) -> None:
    begun = looks_of(random_maps([0, 10], 1), ["a"], pixels=ramps(1))
    after = looks_of(random_maps([20], 1), ["a"], pixels=255 - ramps(1), digests=["of another picture"])
    resumed(tmp_path / "run", begun, after)
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("looks", run="run", root="clipcam")
    with Image.open(io.BytesIO(arrays["picture.0"].tobytes())) as picture:
        seen = np.asarray(picture).transpose(2, 0, 1).astype(int)
    assert np.abs(seen - after[0].pixels[0].numpy()).mean() < 4


def test_two_baselines_from_elsewhere(loader: str, tmp_path: Path) -> None:
    others = [looks_of(random_maps([0], 2, seed=seed), PROMPTS[:2], NAMES[:2])[0].snapshot for seed in (5, 6)]
    parts = [
        looks_of(random_maps(steps, 2), PROMPTS[:2], NAMES[:2], baseline=baseline)
        for steps, baseline in zip(([0, 1], [2, 3]), others, strict=True)
    ]
    resumed(tmp_path / "run", *parts)
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("rows", run="run", root="clipcam", probe=NAMES[1])
        baseline = board.arrays("looks", run="run", root="clipcam")[0]["baseline"]
    assert baseline.tolist() == [-1, -1, -2, -2]
    np.testing.assert_array_equal(arrays["baselines"], np.stack([other.maps[[1]].numpy() for other in others]))


def test_a_baseline_from_elsewhere(loader: str, tmp_path: Path) -> None:
    foreign = looks_of(random_maps([1], 3, seed=5), PROMPTS[:3], NAMES[:3])[0].snapshot
    looks = looks_of(random_maps([0, 1, 2], 3), PROMPTS[:3], NAMES[:3], baseline=foreign)  # has a look at its step too
    write_run(tmp_path / "run", looks)
    with board_over(loader, tmp_path) as board:
        arrays, about = board.arrays("looks", run="run", root="clipcam")
        rows, _ = board.arrays("rows", run="run", root="clipcam", probe=NAMES[2])
    assert arrays["baseline"].tolist() == [-1, -1, -1]
    assert arrays["baseline_step"].tolist() == [1, 1, 1]
    places = [NAMES.index(name) for name in about["rows"]]
    np.testing.assert_array_equal(arrays["baselines"][0], foreign.maps[places].numpy())
    np.testing.assert_array_equal(rows["baselines"], foreign.maps[None, [2]].numpy())


def test_a_baseline_from_elsewhere_whose_first_look_is_no_longer_kept(loader: str, tmp_path: Path) -> None:
    foreign = looks_of(random_maps([1], 2, seed=5), PROMPTS[:2], NAMES[:2])[0].snapshot
    write_run(tmp_path / "run", looks_of(random_maps(range(40), 2), PROMPTS[:2], NAMES[:2], baseline=foreign))
    with board_over(loader, tmp_path, ["--samples_per_plugin=clipcam=5"]) as board:
        arrays, _ = board.arrays("looks", run="run", root="clipcam")
    assert len(arrays["step"]) == 5
    assert arrays["step"][0] > 0
    assert arrays["baseline"].tolist() == [-1] * 5
    assert not np.isnan(arrays["maps"].astype(np.float32)).any(), "of each tag the same looks are kept"


def test_each_look_against_the_one_before(loader: str, tmp_path: Path) -> None:
    write_run(tmp_path / "run", looks_of(random_maps(range(5), 3), PROMPTS[:3], NAMES[:3], previous=True))
    with board_over(loader, tmp_path) as board:
        arrays, _ = board.arrays("looks", run="run", root="clipcam")
    assert arrays["baseline"].tolist() == [-1, -1, 1, 2, 3]


def test_two_runs_and_two_callbacks(loader: str, tmp_path: Path) -> None:
    looks = {run: looks_of(random_maps(range(3), 2, seed=i), PROMPTS[:2]) for i, run in enumerate(("a/deep", "b"))}
    for run, each in looks.items():
        write_run(tmp_path / run, each)
    other = looks_of(random_maps(range(2), 4, (2, 2)), PROMPTS[:4])
    write_run(tmp_path / "b-too", other, "clipcam_other")
    resumed_name = next((tmp_path / "b-too").iterdir())
    resumed_name.rename(tmp_path / "b" / "events.out.tfevents.9999999999.other")
    (tmp_path / "b-too").rmdir()
    with board_over(loader, tmp_path) as board:
        listed = [(watched["run"], watched["root"]) for watched in board.json("clipcam/runs")["runs"]]
        assert listed == [("a/deep", "clipcam"), ("b", "clipcam"), ("b", "clipcam_other")]
        for (run, root), given in zip(listed, [*looks.values(), other], strict=True):
            arrays, about = board.arrays("looks", run=run, root=root)
            places = [int(name.removeprefix("probe-")) for name in about["rows"]]
            check_maps(arrays, given, places, about["figures"].index("scale"))


def test_the_tenth_run_comes_after_the_ninth(loader: str, tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write_run(tmp_path / f"version_{number}", looks_of(random_maps(range(1), 1), PROMPTS[:1]))
    with board_over(loader, tmp_path) as board:
        listed = [watched["run"] for watched in board.json("clipcam/runs")["runs"]]
        assert listed == ["version_1", "version_9", "version_10"]


def test_maps_that_would_fill_the_memory_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", looks_of(random_maps(range(4), 3), PROMPTS[:3]))
    asked = {"run": "run", "root": "clipcam", "probe": ["probe-0", "probe-1"]}
    with board_over("legacy", tmp_path) as board:
        monkeypatch.setattr(runs, "MOST_BYTES", 2 * 4 * 3 * 5 * 2)  # probes, looks, cells, bytes of a half float
        assert board.get("clipcam/rows", asked).status_code == 200
        refused = board.get("clipcam/rows", {**asked, "probe": ["probe-0", "probe-1", "probe-2"]})
        assert refused.status_code == 400
        assert "The maps of 3 probes at 4 looks take" in refused.text


def test_a_run_that_is_the_log_folder_itself(loader: str, tmp_path: Path) -> None:
    write_run(tmp_path, looks_of(random_maps(range(2), 2), PROMPTS[:2]))
    with board_over(loader, tmp_path, prefix="/behind/a/proxy") as board:
        assert board.json("clipcam/runs")["runs"][0]["run"] == "."
        assert len(board.arrays("looks", run=".", root="clipcam")[0]["step"]) == 2


def test_runs_that_are_named_one_by_one(tmp_path: Path) -> None:
    """``--logdir_spec``, which the fast loader does not know."""
    for name in ("one", "two"):
        write_run(tmp_path / name, looks_of(random_maps(range(2), 2), PROMPTS[:2]))
    spec = f"--logdir_spec=mine:{tmp_path / 'one'},yours:{tmp_path / 'two'}"
    with board_over("legacy", tmp_path, [spec]) as board:
        assert [watched["run"] for watched in board.json("clipcam/runs")["runs"]] == ["mine/.", "yours/."]
        assert len(board.arrays("looks", run="yours/.", root="clipcam")[0]["step"]) == 2


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SummaryWriter]:
    writer = SummaryWriter(tmp_path / "run")
    yield writer
    writer.close()


def test_a_run_that_is_being_written(loader: str, tmp_path: Path, writer: SummaryWriter) -> None:
    looks, sink = looks_of(random_maps(range(4), 2), PROMPTS[:2], NAMES[:2]), TabSink(writer, "clipcam")
    with board_over(loader, tmp_path, growing=True) as board:
        assert board.json("clipcam/runs") == {"runs": []}
        for number, look in enumerate(looks, 1):
            sink.write(look)
            until(partial(whole, board, number))
            arrays, about = board.arrays("looks", run="run", root="clipcam")
            places = [NAMES.index(name) for name in about["rows"]]
            check_maps(arrays, looks[:number], places, about["figures"].index("scale"))


def whole(board: Board, count: int) -> bool:
    """Whether so many looks have all their maps."""
    if board.get("clipcam/looks", {"run": "run", "root": "clipcam"}).status_code == 404:
        return False
    arrays, _ = board.arrays("looks", run="run", root="clipcam")
    return len(arrays["step"]) == count and not np.isnan(arrays["maps"].astype(np.float32)).any()
