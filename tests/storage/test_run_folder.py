"""Each run has a folder of its own, whichever others write beside it."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.run_folder import RunFolder


@pytest.fixture(params=["local", "memory", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on the local disk, in the memory store or on a server of S3."""
    if request.param == "local":
        return str(tmp_path / "runs")
    return f"{request.getfixturevalue(request.param)}/runs"


def claim(base: str, run_id: str) -> str:
    return str(RunFolder(as_path(base), run_id).path)


def test_the_first_run_gets_the_folder_and_later_ones_numbered_folders_in_it(base: str) -> None:
    assert [claim(base, run) for run in "abc"] == [base, f"{base}/run_2", f"{base}/run_3"]


def test_a_resumed_run_finds_its_own_folder_again(base: str) -> None:
    first = [claim(base, run) for run in "abc"]
    assert [claim(base, run) for run in "cab"] == [first[2], first[0], first[1]]


@pytest.mark.parametrize("name", ["history.jsonl", "step-00000004.safetensors", "report.html"])
def test_files_without_an_id_belong_to_another_run(name: str, base: str) -> None:
    folder = as_path(base)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"of another run")
    assert claim(base, "a") == f"{base}/run_2"
    assert (folder / name).read_bytes() == b"of another run"


def test_files_of_other_programs_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert claim(str(tmp_path), "a") == str(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"run": 3}'])
def test_a_damaged_id_is_that_of_another_run(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    assert claim(str(tmp_path), "a") == str(tmp_path / "run_2")
    assert (tmp_path / "run.json").read_text() == content


@pytest.mark.parametrize("store", ["local", "s3"])
def test_runs_that_begin_at_the_same_time_get_different_folders(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = str(tmp_path) if store == "local" else f"{request.getfixturevalue('s3')}/runs"
    runs = [f"run-{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda run: claim(base, run), runs))
    assert len(set(folders)) == 8
    for folder, run in zip(folders, runs, strict=True):
        assert json.loads((as_path(folder) / "run.json").read_bytes())["run"] == run


def test_a_folder_that_cannot_be_made_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = RunFolder(as_path(tmp_path / "file" / "runs"), "a")
    with pytest.raises(OSError, match="file"):
        folder.path  # noqa: B018 - it is a property
    assert folder.claimed is None
    (tmp_path / "file").unlink()
    assert str(folder.path) == folder.claimed == str(tmp_path / "file" / "runs")


def test_a_folder_stays_in_place_if_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(as_path("runs"), "a")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert str(folder.path) == str(tmp_path / "runs")


def test_threads_that_claim_at_once_get_one_folder(memory: str) -> None:
    folder = RunFolder(as_path(f"{memory}/runs"), "a")
    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(lambda _: str(folder.path), range(8)))
    assert set(paths) == {f"{memory}/runs"}
