"""What the shell says to input it cannot use: one line on what is wrong, exit code 2, and no file written."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clipcam_lightning import Snapshot
from clipcam_lightning.cli import main, models
from clipcam_lightning.cli.models import ModelSource, load_clip
from clipcam_lightning.shapes_world import demo
from tests.support.shell import OPTIONS, files_in, make_project
from tests.support.zoo.open_clip import TEXT

EXPLAIN = ("explain", "probes/0.png", "--prompt", "a star", "--out", "maps")
SNAPSHOT = ("snapshot", "--probes", "probes", "--out", "new.safetensors")
CHECK = ("check", "--probes", "probes", "--baseline", "before.safetensors")
COMPARE = ("compare", "before.safetensors", "before.safetensors")
BEFORE = (*OPTIONS, "before.pt")
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, shapes_vit: open_clip.CLIP) -> Path:
    return make_project(tmp_path_factory.mktemp("project"), shapes_vit)


@pytest.fixture(autouse=True)
def _inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the project's folder; the modules it is made of are forgotten afterwards."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("eyes", None)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Main:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(shell: Main, project: Path) -> Callable[..., str]:
    """Run what must be refused, and give back what is said."""

    def run(*arguments: object) -> str:
        before = files_in(project)
        code, out, err = shell(*arguments)
        assert (code, out) == (2, "")
        assert re.fullmatch(r"clipcam: error: [^\n]+\n", err), "one line"
        assert files_in(project) == before
        return err.removeprefix("clipcam: error: ").rstrip("\n")

    return run


@pytest.fixture
def baseline(project: Path, shell: Main) -> Path:
    file = project / "before.safetensors"
    if not file.exists():
        assert shell(*CHECK, *BEFORE, "--update-baseline")[0] == 0
    return file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), r'expected "command" to be one of \{explain,snapshot,compare,check,demo\}'),
        (("explian",), "invalid choice: 'explian'"),
        (("explain", "--prompt", "a", "--out", "maps", *BEFORE), "required: IMAGE"),
        (("explain", "probes/0.png", "--out", "maps", *BEFORE), r"required: --prompt \(--help tells more\)"),
        ((*EXPLAIN, *BEFORE, "--prompt", " "), "prompt 2: the prompt is empty"),
        ((*EXPLAIN, *BEFORE, "--colour", "red"), "unrecognized arguments: --colour red"),
        ((*EXPLAIN, *BEFORE, "--batch-size", "many"), "--batch-size: Expected a whole number. Got value: many"),
        ((*EXPLAIN, *BEFORE, "--batch-size", "0"), "batch_size must be at least 1"),
        ((*EXPLAIN, *BEFORE, "--target", "contrast"), "--target contrast .* give at least two --prompt"),
        ((*EXPLAIN, *BEFORE, "--target", "loss"), "--target: invalid choice: 'loss'"),
        ((*EXPLAIN, *BEFORE, "--method", "camgrad"), "method must be 'auto', one of gradcam, "),
        ((*EXPLAIN, *BEFORE, "--method", "gradcam", "--layers", "7"), "layer must be an index from -3 to 2"),
        ((*EXPLAIN, *BEFORE, "--clip", "model"), r"clip='model' names no CLIP in Eyes; found: clip \(CLIP\)"),
        (("explain", "nope.png", *EXPLAIN[2:], *BEFORE), r"image 1: the image nope\.png does not exist"),
        (("explain", "eyes.py", *EXPLAIN[2:], *BEFORE), r"image 1: the image eyes\.py cannot be read"),
        ((*EXPLAIN[:-1], "eyes.py/maps", *BEFORE), r"to eyes\.py/maps: .*eyes\.py is a file, not a folder"),
        ((*SNAPSHOT, *BEFORE, "--batch-size", "-1"), "batch_size must be at least 1"),
        ((*SNAPSHOT[:-1], "probes", *BEFORE), "probes is a folder; give the name of a file"),
        ((*SNAPSHOT[:-1], "before.pt", *BEFORE), r"before\.pt is named twice"),
        ((*SNAPSHOT[:-1], "/dev/null", *BEFORE), "/dev/null is a link or a device"),
        (("snapshot", "--probes", "nope", "--out", "x", *BEFORE), "nope cannot be read as a probe set: No such file"),
        (("snapshot", "--probes", "eyes.py", "--out", "x", *BEFORE), r"eyes\.py cannot be read as a probe set"),
        (
            ("check", "--probes", "probes", "--baseline", "nope", *BEFORE),
            "nope does not exist; --update-baseline writes",
        ),
        (("compare", "a", "b", "check.safetensors"), r"unrecognized arguments: check\.safetensors"),
        (("compare", "nope", "nope"), "nope cannot be read as a snapshot: No such file"),
        (("compare", "before.pt", "before.pt"), r"before\.pt cannot be read as a snapshot"),
        ((*COMPARE, "--max-drift", "3"), "max_drift must lie in 0"),
        ((*COMPARE, "--max-drift", "nan"), "--max-drift: Expected a number"),
        ((*COMPARE, "--max-drift", "some"), "--max-drift: Expected a number"),
        ((*COMPARE, "--html", "a", "--json", "a"), "a is named twice"),
        ((*COMPARE, "--json", "before.safetensors"), r"before\.safetensors is named twice"),
        ((*COMPARE, "--json", "eyes.py/x"), r"eyes\.py is a file, not a folder"),
        (("demo", "--out", "eyes.py"), r"eyes\.py is a file, not a folder"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: tuple[str, ...], said: str, refused: Callable[..., str]) -> None:
    assert re.search(said, refused(*arguments))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), r"which model\? None of these was given: --model NAME"),
        (("--model", "RN50", *BEFORE), r"which model\? Both"),
        (("--model", "RN50"), "random weights mean nothing; .* --checkpoint FILE or --pretrained TAG"),
        (OPTIONS[:-1], r"random weights mean nothing; .* --checkpoint FILE\.$"),
        (("--model", "RN50", "--pretrained", "openai", "--checkpoint", "before.pt"), "there is one set of weights"),
        ((*BEFORE, "--pretrained", "openai"), "--pretrained goes with --model"),
        (("--model", "ViT-B32", "--pretrained", "openai"), r"knows no model 'ViT-B32'; do you mean ViT-B-32 or "),
        (("--model", "xyz", "--pretrained", "openai"), r"no model 'xyz'; open_clip\.list_models\(\) lists them"),
        (
            ("--model", "RN50", "--pretrained", "before.pt"),
            r"no weights 'before\.pt' of RN50, but openai, .*--checkpoint",
        ),
        (("--model", "RN50x4", "--checkpoint", "nope.pt"), r"nope\.pt cannot be read: No such file"),
        ((*OPTIONS, "eyes.py"), r"eyes\.py is damaged, or no checkpoint"),
        ((*OPTIONS, "probes"), "probes cannot be read: Is a directory"),
        ((*BEFORE, "--init-args", "{colour: blue}"), r"made of eyes\.Eyes: Option 'colour' is not accepted"),
        ((*BEFORE, "--init-args", "[1]"), "--init-args: Expected a mapping"),
        ((*BEFORE, "--init-args", '{"tower": 3}'), 'Parser key "tower": Expected a'),
        ((*BEFORE, "--init-args.tower", "resnet"), r"1 of another shape: clip\.visual\.conv1\.weight \("),
        (("--class-path", "eyes.Ears", "--checkpoint", "before.pt"), "module 'eyes' has no attribute 'Ears'"),
        (("--class-path", "ears.Ears", "--checkpoint", "before.pt"), "No module named 'ears'"),
        (("--class-path", "eyes.WordTokenizer", "--checkpoint", "before.pt"), "not correspond to a subclass of Module"),
        (("--class-path", "eyes.BrokenEyes", "--checkpoint", "before.pt"), r"KeyError: 'lens' \(eyes\.py, line \d+\)"),
        (("--checkpoint", "before.pt", "--config", "nope.yaml"), r"nope\.yaml cannot be read: .*No such file"),
        (("--config", "probes/0.png", "--checkpoint", "before.pt"), r"0\.png cannot be read: "),
        ((*BEFORE, "--config", "nope.yaml", "--init-args", "{a: 1}"), "--init-args goes with --class-path, and not"),
    ],
)
def test_models_that_cannot_be_loaded(options: tuple[str, ...], said: str, refused: Callable[..., str]) -> None:
    assert re.search(said, refused(*EXPLAIN, *options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(refused: Callable[..., str]) -> None:
    assert "use --device cpu" in refused(*EXPLAIN, *BEFORE, "--device", "cuda")


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        ("model: [1", (), "cannot be read: while parsing"),
        ("- 1", (), r"has no 'model: \.\.\.'"),
        ("model: 1", (), r"has no 'model: \.\.\.'"),
        ("trainer: {max_epochs: 1}", (), "does not name the model's class; say it with --class-path"),
        ("model: {tower: vit}", (), "does not name the model's class; say it with --class-path"),
        ("model: {class_path: eyes.Eyes}", OPTIONS[:-1], "names its class, eyes.Eyes; leave out --class-path"),
    ],
)
def test_configs_that_do_not_say_it(
    config: str, options: tuple[str, ...], said: str, refused: Callable[..., str], project: Path
) -> None:
    (project / "config.yaml").write_text(config)

    assert re.search(said, refused(*EXPLAIN, "--checkpoint", "before.pt", "--config", "config.yaml", *options))


@pytest.mark.parametrize("place", ["", "trainer:\n  nope: {class_path: not.there}\n"])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("model: {class_path: eyes.Eyes, init_args: {tower: vit, untyped: {a: 1}}}", ()),
        ("model: {tower: vit, untyped: null}", OPTIONS[:-1]),
        ("seed_everything: 0", OPTIONS[:-1]),
    ],
)
def test_of_a_config_only_the_model_is_used(
    place: str, model: str, options: tuple[str, ...], shell: Main, project: Path
) -> None:
    (project / "config.yaml").write_text(f"{place}{model}\n")

    code, out, err = shell(*EXPLAIN, "--checkpoint", "before.pt", "--config", "config.yaml", *options)

    assert (code, err) == (0, "")
    assert "wrote 1 picture to maps: " in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "0" * 64}, "other probes"),
        ({"method": "gae"}, "method 'gae', now"),
        ({"target": "contrast(a cat)"}, r"target 'contrast\(a cat\)', now 'similarity'"),
        ({"layers": ("visual.other",)}, r"layers \('visual\.other',\), now"),
    ],
)
def test_snapshots_that_must_not_be_compared(
    change: dict[str, Any], said: str, refused: Callable[..., str], baseline: Path
) -> None:
    other = Snapshot.load(baseline)
    replace(other, info=replace(other.info, **change)).save("other.safetensors")

    assert re.search(said, refused("compare", "other.safetensors", baseline))


def test_a_snapshot_cut_short(refused: Callable[..., str], baseline: Path) -> None:
    Path("cut.safetensors").write_bytes(baseline.read_bytes()[:-100])

    assert refused("compare", "cut.safetensors", baseline).startswith("cut.safetensors cannot be read as a snapshot: ")
    assert refused(*CHECK[:-1], "cut.safetensors", *BEFORE).startswith("cut.safetensors cannot be read")
    assert refused(*CHECK[:-1], "cut.safetensors", *BEFORE, "--update-baseline").startswith("cut.safetensors cannot")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"target": "contrast(a cat)"}, "only code can say"), ({"method": "mine"}, "none of the package's")],
)
def test_a_baseline_that_the_shell_cannot_repeat_can_be_replaced(
    change: dict[str, Any], said: str, refused: Callable[..., str], shell: Main, baseline: Path
) -> None:
    other = Snapshot.load(baseline)
    replace(other, info=replace(other.info, **change)).save("other.safetensors")
    check = (*CHECK[:-1], "other.safetensors", *BEFORE)

    assert said in refused(*check)
    assert shell(*check, "--update-baseline", "--method", "gradcam")[0] == 0
    assert Snapshot.load("other.safetensors").info.method == "gradcam"


def test_check_follows_the_baseline_s_method_and_layers_unless_told_otherwise(
    shell: Main, refused: Callable[..., str]
) -> None:
    check = ("check", "--probes", "probes", "--baseline", "hires.safetensors", *BEFORE)
    assert shell(*check, "--method", "hirescam", "--layers", -2, -1, "--update-baseline")[0] == 0

    code, out, err = shell(*check, "--json", "same.json")
    assert (code, err) == (0, "")
    assert json.loads(Path("same.json").read_text())["drift"] == pytest.approx(0, abs=1e-5)
    assert "the baseline was made with another CAM method: method 'hirescam', now 'gradcam'" in refused(
        *check, "--method", "gradcam"
    )
    assert "other layers" in refused(*check, "--layers", -1)

    code, out, err = shell(*check, "--update-baseline", "--html", "new.html")
    assert (code, err) == (0, "")
    layers = "visual.transformer.resblocks.1.ln_1, visual.transformer.resblocks.2.ln_1"
    assert out == f"wrote hires.safetensors: 2 probes, hirescam at {layers}, step 7\nwrote new.html\n"


def test_other_probes_are_refused_before_the_model_is_loaded(
    refused: Callable[..., str], baseline: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "fewer").mkdir()
    (project / "fewer" / "probes.csv").write_text("image,prompt\n../probes/0.png,a star\n")
    monkeypatch.setattr(models, "read_checkpoint", None)

    assert "made with other probes" in refused("check", "--probes", "fewer", "--baseline", baseline, *BEFORE)


def test_max_drift_decides(shell: Main, baseline: Path) -> None:
    code, out, _ = shell(*CHECK, *OPTIONS, "after.pt", "--max-drift", 2)
    assert (code, "no alarm at step 70" in out) == (0, True)


def test_a_map_that_says_nothing_is_a_warning(shell: Main, project: Path) -> None:
    content = torch.load("before.pt", weights_only=True)
    content["state_dict"]["clip.visual.proj"].zero_()
    torch.save(content, "dark.pt")

    code, _, err = shell(*EXPLAIN, *OPTIONS, "dark.pt", "--method", "gradcam")

    assert code == 0
    assert re.match(r"clipcam: warning: the map of probes/0\.png for 'a star' says nothing: it is ", err)


def test_a_bug_keeps_its_traceback_and_is_neither_pass_nor_drift(
    shell: Main, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Snapshot, "load", lambda _: 1 / 0)

    code, out, err = shell(*COMPARE)

    assert (code, out) == (70, "")
    assert err.startswith("Traceback")
    assert err.endswith("ZeroDivisionError: division by zero\n")


def test_a_small_architecture_of_one_s_own_by_name(shell: Main, project: Path) -> None:
    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {**TEXT, "vocab_size": 49408, "context_length": 77}
    (project / "tiny-eyes.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(project / "tiny-eyes.json")
    model = open_clip.create_model("tiny-eyes")
    twice = {f"{name}.{key}": value for name in ("student", "other") for key, value in model.state_dict().items()}
    torch.save(twice, "tiny.pt")
    source = ModelSource(model="tiny-eyes", checkpoint=Path("tiny.pt"), clip="other")

    loaded = load_clip(source)

    assert (loaded.step, loaded.epoch) == (0, 0)
    assert torch.equal(loaded.clip.module.visual.proj, model.visual.proj)
    assert loaded.clip.embed_texts(["a cat"]).shape == (1, 16)
    code, _, err = shell(*EXPLAIN, "--model", "tiny-eyes", "--checkpoint", "tiny.pt")
    assert (code, "holds 2 such CLIPs: student, other. Choose one with --clip" in err) == (2, True)


def test_a_fine_tuned_architecture_is_fed_as_its_published_weights_were() -> None:
    assert models._published_preprocessing("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert models._published_preprocessing("ViT-B-16-SigLIP")["resize_mode"] == "squash"
    assert models._published_preprocessing("ViT-L-14").keys() == {"interpolation", "resize_mode"}, "they disagree"
    assert models._published_preprocessing("ViT-S-32-alt") == {}


def test_the_hooks_that_lightning_calls_on_loading_are_called(shell: Main, project: Path) -> None:
    (project / "hooked.py").write_text(
        "from eyes import Eyes\n"
        "class Hooked(Eyes):\n"
        "    def configure_model(self):\n"
        "        self.eye = self.__dict__['_modules'].pop('clip')\n"
        "    def on_load_checkpoint(self, checkpoint):\n"
        "        weights = checkpoint['state_dict'].items()\n"
        "        checkpoint['state_dict'] = {key.replace('clip.', 'eye.'): value for key, value in weights}\n"
    )

    code, _, err = shell(*EXPLAIN, "--class-path", "hooked.Hooked", "--checkpoint", "before.pt")

    assert (code, err) == (0, "")


@pytest.mark.parametrize(("ends", "code"), [(None, 0), (SystemExit(1), 130), (KeyboardInterrupt(), 130)])
def test_demo_runs_in_its_folder_and_knows_when_it_was_interrupted(
    ends: BaseException | None, code: int, shell: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    def run(folder: Path) -> None:
        folders.append(folder)
        if ends is not None:
            raise ends

    monkeypatch.setattr(demo, "main", run)
    monkeypatch.delitem(sys.modules, "clipcam_lightning.cli.demo", raising=False)

    assert shell("demo", "--out", "logs")[0] == code
    assert folders == [Path("logs")]
