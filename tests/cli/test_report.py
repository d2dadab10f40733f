"""``clipcam report``: one run, two runs and animations, from the files of trainings alone."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from clipcam_lightning import ClipCamCallback
from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.cli import main
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.storage.paths import as_path
from tests.support.faulty import tiny_module, two_probes
from tests.support.html_tree import Tree, words
from tests.support.modules import fit
from tests.support.shell import ENVIRONMENT, files_in
from tests.support.synthetic_evaluations import evaluations_of, random_maps, write_files

pytestmark = pytest.mark.slow
Shell = Callable[..., tuple[int, str, str]]


def make_callback(**arguments: object) -> ClipCamCallback:
    """Make a callback whose evaluations after the first are alarms."""
    settings = {"method": "gradcam", "max_drift": 0.01, "on_drift": "log", "on_error": "raise"}
    return ClipCamCallback(two_probes(), **{**settings, **arguments})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log directory of a training with evaluations at steps 0, 4 and 8, and a checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = fit(tiny_module(), folder, make_callback(), logger=CSVLogger(folder, "birds"), max_epochs=1)
    trainer.save_checkpoint(folder / "step-4.ckpt")
    version = {"name": "birds", "version": 0}
    with pytest.warns(UserWarning, match="Experiment logs directory"):
        fit(
            tiny_module(),
            folder,
            make_callback(),
            logger=CSVLogger(folder, **version),
            ckpt_path=folder / "step-4.ckpt",
        )
    return folder / "birds" / "version_0"


@pytest.fixture
def logs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the log directory, in the working directory of the test."""
    shutil.copytree(trained, tmp_path / "version_0")
    return tmp_path / "version_0"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Run the command in the folder of the test; returns its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["report", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(shell: Shell, tmp_path: Path) -> Callable[..., str]:
    """Run a command that must be refused; returns the message."""

    def run(*arguments: object) -> str:
        before = files_in(tmp_path)
        code, out, error = shell(*arguments)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert error.startswith("clipcam: error: ")
        assert files_in(tmp_path) == before
        return error.removeprefix("clipcam: error: ").strip()

    return run


def history(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def test_the_page_of_a_training_is_written_beside_the_report_of_the_callback(shell: Shell, logs: Path) -> None:
    before = files_in(logs)

    code, out, error = shell("version_0")

    assert (code, error) == (1, "")
    assert "Alarm since step 4; at the end: attention drifted on 2 of 2 probes at step 8 (baseline: step 0)" in out
    assert out.splitlines()[-1] == "wrote version_0/clipcam/training.html"
    written = files_in(logs)
    page = written.pop(Path("clipcam/training.html")).decode()
    assert written == before
    root = Tree(page).root
    assert words(root.all("p", "verdict")[0].text) == "✗ Alarm since step 4"
    assert words(root.all("h1")[0].text) == "2 of 2 probes are flagged"
    head = words(root.all("header")[0].text)
    assert "Evaluations 3, 2 of them alarms" in head
    assert "Steps 0 → 8" in head
    assert "Steps 4 to 8, 2 evaluations:" in words(root.all("ol", "alarms")[0].text)
    articles = root.all("article")
    assert len(articles) == 2
    for article in articles:
        assert [words(each.text)[:6] for each in article.all("figcaption")[:4]] == [
            "Input",
            "step 0",
            "step 4",
            "step 8",
        ]


def assert_close_values(a: Any, b: Any) -> None:
    """Compare JSON values: what is derived from rounded numbers may differ in the last of seven digits."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_close_values(a[name], b[name])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_close_values(x, y)
    else:
        assert a == (pytest.approx(b, rel=1e-6) if isinstance(b, float) else b)


def test_the_drifts_are_those_of_the_stored_maps(shell: Shell, logs: Path) -> None:
    shell(logs, "--json", "run.json")
    values = json.loads(Path("run.json").read_text())
    maps = [Snapshot.load(logs / "clipcam" / f"step-{step:08d}.safetensors").maps.flatten(1) for step in (0, 4, 8)]
    for evaluation, later in zip(values["evaluations"], maps, strict=True):
        drifts = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(maps[0].double(), later.double(), strict=True)]
        assert [probe["drift"] for probe in evaluation["probes"]] == pytest.approx(drifts, abs=1e-6)
    lines = {line["step"]: line for line in history(logs / "clipcam")}
    for evaluation in values["evaluations"]:
        line = lines[evaluation["step"]]
        assert_close_values(
            evaluation, {name: value for name, value in line.items() if name not in ("metrics", "baseline")}
        )
    assert (values["alarm"], values["alarm_since"], values["problems"]) == (True, 4, [])
    assert not (logs / "clipcam" / "training.html").exists(), "only the files that are named are written"


def test_a_resumed_run_counts_its_latest_lines(shell: Shell, logs: Path) -> None:
    run = logs / "clipcam"
    steps = [line["step"] for line in history(run)]
    assert steps == [0, 4, 8]
    first, second, third = (run / "history.jsonl").read_text().splitlines(keepends=True)
    overtaken = third.replace('"step": 8', '"step": 6')
    (run / "history.jsonl").write_text(first + overtaken + third + second + third)
    shutil.copy(run / "step-00000008.safetensors", run / "step-00000006.safetensors")

    shell(logs, "--json", "run.json")

    values = json.loads(Path("run.json").read_text())
    assert [each["step"] for each in values["evaluations"]] == [0, 4, 8], "step 6 was overtaken by step 4"
    assert values["problems"] == []


def test_a_run_that_is_resumed_in_another_folder_keeps_its_baseline(
    shell: Shell, trained: Path, tmp_path: Path
) -> None:
    checkpoint = trained.parents[1] / "step-4.ckpt"
    fit(tiny_module(), tmp_path, make_callback(dirpath=tmp_path / "run"), logger=False, ckpt_path=checkpoint)
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"baseline.safetensors", "step-00000008.safetensors"} <= names
    assert "step-00000000.safetensors" not in names

    code, _, error = shell("run")

    assert (code, error) == (1, "")
    root = Tree((tmp_path / "run" / "training.html").read_text()).root
    captions = [words(each.text) for each in root.all("article")[0].all("figcaption")]
    assert captions[:2] == ["Input", "baseline"]
    assert captions[2].startswith("step 4 drift" if "step 4" in captions[2] else "step 8 drift")
    assert root.all("div", "sheet"), "the baseline has the images"


@pytest.mark.parametrize("baseline", ["previous", "file"])
def test_every_kind_of_baseline_is_found_again(baseline: str, shell: Shell, trained: Path, tmp_path: Path) -> None:
    stored = trained / "clipcam" / "step-00000000.safetensors"
    callback = make_callback(dirpath=tmp_path / "run", baseline=stored if baseline == "file" else baseline)
    fit(tiny_module(), tmp_path, callback, logger=False)
    names = [line["baseline"] for line in history(tmp_path / "run")]
    assert (
        names
        == {
            "previous": [f"step-{step:08d}.safetensors" for step in (0, 0, 4)],
            "file": ["baseline.safetensors"] * 3,
        }[baseline]
    )

    _, _, error = shell("run", "--html", "page.html")

    assert error == ""
    root = Tree(Path("page.html").read_text()).root
    captions = [words(each.text) for each in root.all("article")[0].all("figcaption")]
    assert ("baseline" in captions) == (baseline == "file")
    assert captions[0] == "Input"


def test_a_log_directory_with_several_runs_lists_them(refused: Callable[..., str], logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs, tmp_path / "version_1")
    shutil.copytree(logs / "clipcam", tmp_path / "version_1" / "clipcam" / "run_2")
    message = refused(tmp_path)
    assert "holds 3 runs; give the folder of one of them:" in message
    for name in ("version_0/clipcam", "version_1/clipcam", "version_1/clipcam/run_2"):
        assert f"{tmp_path / name}" in message


def test_a_folder_above_the_only_run_is_enough(shell: Shell, logs: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert shell(tmp_path)[0] == 1
    assert (logs / "clipcam" / "training.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere does not exist; give the folder of a run, or a log directory."),
        (
            ("version_0/clipcam/run.json",),
            "is a file; give the folder of a run. clipcam compare compares two snapshots",
        ),
        (("empty",), "empty holds no run: none of its folders has a history.jsonl or step-*.safetensors"),
        (
            ("version_0", "--html", "version_0/clipcam/report.html"),
            "is a file of the run itself; give the report another",
        ),
        (("version_0", "--json", "version_0/clipcam/history.jsonl"), "is a file of the run itself"),
        (("version_0", "--html", "page", "--json", "page"), "page is named twice"),
        (("version_0", "--html", "empty"), "empty is a folder; give the name of a file."),
        (("version_0", "--probe", "a-red-sqare"), "the run has no probe 'a-red-sqare'."),
        (("version_0", "version_0", "--gif", "maps.gif"), "--gif is of one run; give a single RUN."),
        (("version_0", "version_0", "--probe", "x"), "--probe is of one run; give a single RUN."),
    ],
)
def test_what_cannot_be_used_is_refused(
    arguments: tuple[str, ...], message: str, refused: Callable[..., str], logs: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert message in refused(*arguments)


def test_what_is_readable_of_a_damaged_run_is_shown(shell: Shell, logs: Path) -> None:
    run = logs / "clipcam"
    (run / "step-00000004.safetensors").write_bytes(b"damaged")
    (run / "run.json").write_text("{")
    first, _, third = (run / "history.jsonl").read_text().splitlines(keepends=True)
    (run / "history.jsonl").write_text(first + '{"step": 4}\n' + third[: len(third) // 2])

    code, out, error = shell(logs)

    assert code == 1
    warnings = error.splitlines()
    assert len(warnings) == 4
    for warning, text in zip(
        sorted(warnings),
        [
            f"{run}/run.json cannot be read: JSONDecodeError",
            f"{run}/step-00000004.safetensors cannot be read as a snapshot",
            f"Line 2 of {run}/history.jsonl cannot be read: KeyError",
            f"Line 3 of {run}/history.jsonl cannot be read: JSONDecodeError",
        ],
        strict=True,
    ):
        assert warning.startswith(f"clipcam: warning: {text}")
    assert "at step 8" in out, "the snapshot without a line is compared anew"
    root = Tree((run / "training.html").read_text()).root
    (problems,) = root.all("section", "problems")
    assert len(problems.all("li")) == 4
    assert [words(each.text)[:6] for each in root.all("article")[0].all("figcaption")[1:3]] == ["step 0", "step 8"]


def test_a_run_without_history_is_compared_anew(shell: Shell, logs: Path) -> None:
    shell(logs, "--json", "before.json")
    (logs / "clipcam" / "history.jsonl").unlink()

    _, _, error = shell(logs, "--json", "after.json")

    assert "No such file or directory: " in error
    assert "The evaluations are compared anew, by the rule's default." in error
    drifts = [
        [probe["drift"] for each in json.loads(Path(name).read_text())["evaluations"] for probe in each["probes"]]
        for name in ("before.json", "after.json")
    ]
    assert drifts[0] == drifts[1]


def test_a_run_without_maps_has_a_page_of_metrics(shell: Shell, logs: Path) -> None:
    for file in (logs / "clipcam").glob("*.safetensors"):
        file.unlink()
    code, _, error = shell(logs)
    assert code == 1
    assert "The maps of 3 evaluations are missing: of step 0, 4, 8." in error
    root = Tree((logs / "clipcam" / "training.html").read_text()).root
    assert len(root.all("div", "timeline")[0].all("svg")) == 3
    assert not root.all("div", "strip")[0].all("img")


def test_a_run_of_which_nothing_can_be_read_is_refused(refused: Callable[..., str], logs: Path) -> None:
    for file in (logs / "clipcam").glob("*.safetensors"):
        file.write_bytes(b"")
    (logs / "clipcam" / "history.jsonl").write_text("")
    message = refused(logs)
    assert "holds no evaluation that can be read" in message
    assert "step-00000000.safetensors cannot be read" in message


def test_a_remote_run_is_read_and_its_page_written_to_the_working_directory(
    shell: Shell, trained: Path, store: str, tmp_path: Path
) -> None:
    for name, content in files_in(trained).items():
        write_atomically(as_path(f"{store}/logs/{name.as_posix()}"), content)

    code, out, error = shell(f"{store}/logs")

    assert (code, error) == (1, "")
    assert out.splitlines()[-1] == "wrote training.html"
    page = words(Tree((tmp_path / "training.html").read_text()).root.text)
    assert f"{store}/logs/clipcam" in page
    code, out, _ = shell(f"{store}/logs", "--html", f"{store}/out/page.html", "--gif", f"{store}/out/maps.gif")
    assert as_path(f"{store}/out/maps.gif").read_bytes().startswith(b"GIF89a")
    assert as_path(f"{store}/out/page.html").read_bytes().startswith(b"<!DOCTYPE html>")


def test_two_runs_are_compared_on_the_probes_that_they_share(shell: Shell, trained: Path, tmp_path: Path) -> None:
    probes = [*two_probes()]
    other = ClipCamCallback(probes[:1], method="gradcam", on_drift="log", dirpath=tmp_path / "b")
    fit(tiny_module(), tmp_path, other, logger=False, max_epochs=1)

    code, out, _ = shell(trained, "b", "--json", "c.json", "--html", "c.html")

    assert code == 1
    assert "1 shared probes" in out or "of 1 shared probes" in out
    values = json.loads(Path("c.json").read_text())
    (shared,) = values["probes"]
    a, b = (
        Snapshot.load(folder / f"step-{step:08d}.safetensors")
        for folder, step in ((trained / "clipcam", 8), (tmp_path / "b", 4))
    )
    i = a.names.index(shared["name"])
    expected = 1 - np.corrcoef(a.maps[i].flatten().double(), b.maps[0].flatten().double())[0, 1]
    assert shared["difference"] == pytest.approx(expected, abs=1e-6)
    assert shared["flagged"] == [True, False]
    assert [len(run["only_here"]) for run in values["runs"]] == [1, 0]
    assert [run["alarm"] for run in values["runs"]] == [True, False]
    root = Tree(Path("c.html").read_text()).root
    assert words(root.all("h1")[0].text) == "1 of 1 probe differs at the end of two runs"
    captions = [words(each.text) for each in root.all("article")[0].all("figcaption")]
    assert captions == ["Input", "A, step 8 (own scale)", "B, step 4 (own scale)", "Change from A to B"]
    assert "Timelines, on a shared scale" in root.text


def test_runs_without_a_shared_probe_are_refused(refused: Callable[..., str], logs: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "b", evaluations_of(random_maps([0, 1], 2), ["a fox", "an owl"]))
    assert "share no probe: none has the same name, prompt and image in both" in refused(logs, "b")


def test_the_maps_of_runs_with_other_settings_are_not_compared(shell: Shell, tmp_path: Path) -> None:
    for name, method in (("a", "gradcam"), ("b", "hirescam")):
        write_files(tmp_path / name, evaluations_of(random_maps([0, 5], 2), ["a fox", "an owl"], method=method))
    shell("a", "b", "--json", "c.json", "--html", "c.html")
    values = json.loads(Path("c.json").read_text())
    assert "another CAM method" in values["incomparable"]
    assert [each["difference"] for each in values["probes"]] == [None, None]
    assert "are not compared with one another" in words(Tree(Path("c.html").read_text()).root.all("header")[0].text)


def red_frame(image: Image.Image) -> bool:
    """Whether a frame of the flag's red surrounds the map, on the right."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 150) & (pixels[..., 2] < 140)
    return bool(red[:, image.width - 21 : image.width - 16].mean() > 0.5)


def test_a_gif_shows_every_map_and_frames_it_in_red_from_when_the_probe_is_flagged(shell: Shell, logs: Path) -> None:
    shell(logs, "--gif", "maps.gif")
    with Image.open("maps.gif") as image:
        assert image.n_frames == 3
        assert image.info["loop"] == 0
        frames, durations = [], []
        for i in range(3):
            image.seek(i)
            durations.append(image.info["duration"])
            frames.append(image.convert("RGB"))
    assert [red_frame(frame) for frame in frames] == [False, True, True]
    assert durations[-1] >= 2 * durations[0], "the last frame is held"
    inputs = [np.asarray(frame).astype(int)[80:380, 20:330] for frame in frames]
    assert np.abs(inputs[0] - inputs[2]).max() < 60, "the input stays as it is"


def test_a_video_has_the_same_frames(shell: Shell, logs: Path) -> None:
    code, out, _ = shell(
        logs, "--mp4", "maps.mp4", "--probe", Snapshot.load(logs / "clipcam" / "step-00000000.safetensors").names[1]
    )
    assert code == 1
    assert "wrote maps.mp4" in out
    with av.open("maps.mp4") as video:
        frames = [frame.to_image() for frame in video.decode(video=0)]
        assert video.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert [red_frame(frame) for frame in (frames[0], frames[-1])] == [False, True]
    assert len(frames) == pytest.approx(25 * (0.9 + 0.9 + 2.5), abs=3)


def test_without_pyav_the_message_says_what_to_install(
    refused: Callable[..., str], logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    message = refused(logs, "--mp4", "maps.mp4")
    assert message.startswith("a video needs PyAV, which is not installed: pip install 'clipcam-lightning[video]'.")


def test_maps_without_information_are_named_and_animated(shell: Shell, tmp_path: Path) -> None:
    maps = random_maps([0, 5, 10], 2)
    maps[10][0] = 0.0
    write_files(tmp_path / "run", evaluations_of(maps, ["a fox", "an owl"]))
    shell("run", "--html", "page.html", "--gif", "maps.gif", "--probe", "probe-0")
    article = Tree(Path("page.html").read_text()).root.all("article")[0]
    assert "Now: nothing in this image raises the similarity (map all zero)." in words(article.text)
    alts = [image.attributes["alt"] for image in article.all("img")]
    assert alts[-1] == "Map of probe-0, step 10: nothing in this image raises the similarity"
    assert Image.open(io.BytesIO(Path("maps.gif").read_bytes())).n_frames == 3  # type: ignore[attr-defined]


def test_the_probe_that_is_first_on_the_page_is_animated(shell: Shell, tmp_path: Path) -> None:
    diagonal = torch.eye(4)
    maps = {0: torch.stack([diagonal] * 3), 5: torch.stack([1 - diagonal, torch.zeros(4, 4), diagonal])}
    write_files(tmp_path / "run", evaluations_of(maps, ["a fox", "an owl", "a cat"]))
    shell("run", "--gif", "chosen.gif", "--probe", "probe-0")  # that of probe-1 vanished, which counts as a drift of 1
    shell("run", "--gif", "default.gif")
    assert Path("default.gif").read_bytes() == Path("chosen.gif").read_bytes()


def test_a_page_of_many_probes_and_evaluations_says_what_it_leaves_out(shell: Shell, tmp_path: Path) -> None:
    prompts = [f"animal {i}" for i in range(80)]
    write_files(tmp_path / "run", evaluations_of(random_maps(range(0, 300, 10), 80), prompts))

    shell("run", "--html", "page.html", "--probe", "probe-7")

    pages = [Path(name).read_text() for name in ("page.html", "page_pages/2.html")]
    assert all(len(page) < 6e6 for page in pages)
    articles = [Tree(page).root.all("article") for page in pages]
    assert [len(each) for each in articles] == [64, 16]
    assert articles[0][0].all("bdi")[0].text == "probe-7"
    assert {len(article.all("div", "strip")[0].all("img")) for article in articles[0]} == {11}
    text = words(Tree(pages[0]).root.text)
    assert "Probes 1 to 64 of 80, worst first" in text
    assert "Of 30 evaluations with maps, 11 are drawn" in text
    assert "clipcam report RUN --probe NAME" in text
    anchors = [each.attributes["id"] for each in [*articles[0], *articles[1]]]
    assert sorted(anchors) == sorted(f"probe-probe-{i}" for i in range(80))


def test_the_command_imports_neither_clip_nor_a_training_nor_a_logger(logs: Path) -> None:
    program = (
        "import sys; from clipcam_lightning.cli import main; main(['report', sys.argv[1]]);"
        "print({'open_clip', 'lightning', 'tensorboard', 'transformers', 'timm', 'av'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(logs)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_map_at_the_first_alarm_is_drawn(shell: Shell, tmp_path: Path) -> None:
    steps = list(range(100))
    start, other = torch.eye(4)[None], torch.eye(4).flip(1)[None]
    maps = {step: other if step >= 37 else start for step in steps}
    write_files(tmp_path / "run", evaluations_of(maps, ["a fox"]))
    shell("run", "--html", "page.html")
    root = Tree(Path("page.html").read_text()).root
    assert words(root.all("p", "verdict")[0].text) == "✗ Alarm since step 37"
    captions = [words(each.text) for each in root.all("div", "strip")[0].all("figcaption")]
    assert "step 37 drift 1.33, flagged" in captions
    assert not any("flagged" in caption for caption in captions[: captions.index("step 37 drift 1.33, flagged")])
