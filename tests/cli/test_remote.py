"""Commands whose inputs and outputs are in stores."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import open_clip
import pytest

from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.cli import main
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.reading import exists, read_bytes
from tests.support.shell import OPTIONS, files_in, make_project, run_clipcam
from tests.support.stores import BrokenStore

Shell = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, shapes_vit: open_clip.CLIP) -> Path:
    return make_project(tmp_path_factory.mktemp("project"), shapes_vit)


@pytest.fixture
def shell(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Shell]:
    """Run a command in an empty folder, which must stay empty; returns its exit code and all that it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(project)])

    def run(*arguments: object) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        assert list(tmp_path.iterdir()) == []
        return code, "".join(capsys.readouterr())

    yield run
    sys.modules.pop("eyes", None)


def upload(project: Path, url: str) -> None:
    """Copy the checkpoints and probes of the project to a store."""
    for path, content in files_in(project).items():
        write_atomically(as_path(f"{url}/{path.as_posix()}"), content)


def test_every_input_and_output_may_be_in_a_store(shell: Shell, project: Path, store: str) -> None:
    upload(project, store)
    before, after = (*OPTIONS, f"{store}/before.pt"), (*OPTIONS, f"{store}/after.pt")
    probes = ("--probes", f"{store}/probes")
    baseline = ("--baseline", f"{store}/out/baseline.safetensors")

    code, text = shell("check", *probes, *baseline, *before)
    assert (code, f"the baseline {baseline[1]} does not exist" in text) == (2, True)
    code, text = shell("check", *probes, *baseline, *before, "--update-baseline")
    assert (code, f"wrote {baseline[1]}: 2 probes" in text) == (0, True)
    assert shell("check", *probes, *baseline, *before)[0] == 0
    reports = ("--json", f"{store}/out/drift.json", "--html", f"{store}/out/drift.html")
    code, text = shell("check", *probes, *baseline, *after, "--max-drift", 0.3, *reports)
    assert (code, f"wrote {reports[1]}" in text) == (1, True)
    assert json.loads(read_bytes(as_path(reports[1])))["alarm"] is True
    assert read_bytes(as_path(reports[3])).startswith(b"<!DOCTYPE html>")

    assert shell("snapshot", *probes, "--out", f"{store}/out/after.safetensors", *after)[0] == 0
    assert Snapshot.load(f"{store}/out/after.safetensors").info.step == 70
    pair = (baseline[1], f"{store}/out/after.safetensors")
    assert shell("compare", *pair, "--max-drift", 0.3, "--json", f"{store}/out/again.json")[0] == 1
    assert read_bytes(as_path(f"{store}/out/again.json")) == read_bytes(as_path(reports[1]))

    code, _ = shell("explain", f"{store}/probes/0.png", "--prompt", "a star", "--out", f"{store}/maps", *before)
    assert code == 0
    assert read_bytes(as_path(f"{store}/maps/0-maps.png")).startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_process_checks_a_local_model_against_a_remote_baseline(project: Path, tmp_path: Path, s3: str) -> None:
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    before = files_in(tmp_path)
    check = ("check", "--probes", "probes", "--baseline", f"{s3}/baseline.safetensors", "--max-drift", 0.3)

    assert run_clipcam(tmp_path, *check, "--update-baseline", *OPTIONS, "before.pt").returncode == 0
    assert run_clipcam(tmp_path, *check, *OPTIONS, "before.pt").returncode == 0
    drifted = run_clipcam(tmp_path, *check, "--html", f"{s3}/drift.html", *OPTIONS, "after.pt")

    assert (drifted.returncode, drifted.stderr) == (1, "")
    assert exists(as_path(f"{s3}/drift.html"))
    assert files_in(tmp_path) == before


def test_outputs_that_cannot_be_written_are_refused_before_the_work(shell: Shell, project: Path, s3: str) -> None:
    upload(project, s3)
    model = (*OPTIONS, f"{s3}/before.pt")
    snapshot = ("snapshot", "--probes", f"{s3}/probes/probes.csv", *model, "--out")
    compare = ("compare", f"{s3}/a.safetensors", f"{s3}/b.safetensors")
    refusals = {
        (*snapshot, f"{s3}/probes"): f"{s3}/probes is a folder; give the name of a file.",
        (*snapshot, s3): f"{s3}/ is a folder; give the name of a file.",
        (*snapshot, f"{s3}/before.pt"): f"{s3}/before.pt is named twice; give each file a name of its own.",
        (*snapshot, f"{s3}/probes/probes.csv"): "is named twice",
        (*snapshot, f"{s3}/before.pt/out"): f"nothing can be written to {s3}/before.pt: it is a file, not a folder.",
        (*snapshot, "s3://no-such-bucket/f"): "nothing can be written to s3://no-such-bucket/: there is no bucket",
        (*compare, "--json", f"{s3}/b.safetensors"): "is named twice",
        (*compare, "--json", f"{s3}/r", "--html", f"{s3}/r".replace("s3:", "s3a:")): "is named twice",
        ("explain", "x.png", "--prompt", "a", "--out", f"{s3}/before.pt", *model): "it is a file, not a folder",
    }
    before = as_path(s3).fs.find(as_path(s3).path)
    for arguments, message in refusals.items():
        code, text = shell(*arguments)
        assert (code, text.count("\n")) == (2, 1)
        assert message in text
    assert as_path(s3).fs.find(as_path(s3).path) == before


def test_inputs_that_cannot_be_read_are_named_in_one_line(shell: Shell, project: Path, s3: str) -> None:
    upload(project, s3)
    write_atomically(as_path(f"{s3}/text.pt"), b"no weights")
    model = (*OPTIONS, f"{s3}/before.pt")
    refusals = {
        ("compare", f"{s3}/a", f"{s3}/b"): f"{s3}/a cannot be read as a snapshot: No such file or directory.",
        ("compare", "s3:/bucket/a", "b"): "give the URL as text: 's3://bucket/a'",
        ("compare", "foo://a", "b"): "fsspec has no protocol 'foo'",
        ("check", "--probes", f"{s3}/none", "--baseline", f"{s3}/a", "--update-baseline", *model): "/none does not",
        ("snapshot", "--probes", f"{s3}/probes", "--out", f"{s3}/f", *OPTIONS, f"{s3}/none.pt"): "cannot be read: No",
        ("snapshot", "--probes", f"{s3}/probes", "--out", f"{s3}/f", *OPTIONS, f"{s3}/text.pt"): "text.pt is damaged",
        (
            "snapshot",
            "--probes",
            f"{s3}/probes",
            "--out",
            f"{s3}/f",
            "--config",
            f"{s3}/no.yaml",
            "--checkpoint",
            f"{s3}/before.pt",
        ): "--config s3:",
        ("demo", "--out", s3): f"the demo writes to a local folder (got --out {s3}/)",
    }
    for arguments, message in refusals.items():
        code, text = shell(*arguments)
        assert (code, text.count("\n")) == (2, 1)
        assert message in text


def test_a_store_that_fails_is_named_in_one_line(shell: Shell, project: Path, broken: str, unreachable: str) -> None:
    upload(project, broken)
    snapshot = ("snapshot", "--probes", f"{broken}/probes", *OPTIONS, f"{broken}/before.pt", "--out")
    BrokenStore.failing = {"pipe_file"}
    code, text = shell(*snapshot, f"{broken}/f")
    assert code == 2
    assert text == f"clipcam: error: {broken}/f cannot be written: RuntimeError: the connection was lost.\n"

    code, text = shell(*snapshot, f"{unreachable}/f")
    assert (code, text.count("\n")) == (2, 1)
    assert f"nothing can be written to {unreachable}/f: EndpointConnectionError: Could not connect" in text


def test_a_store_in_which_nothing_may_be_looked_up_can_still_be_written_to(
    shell: Shell, project: Path, broken: str
) -> None:
    BrokenStore.failing = {"info"}
    probes = ("--probes", f"{project}/probes", *OPTIONS, f"{project}/before.pt")
    assert shell("snapshot", *probes, "--out", f"{broken}/f")[0] == 0
    BrokenStore.failing = set()
    assert exists(as_path(f"{broken}/f"))
