"""Input that cannot be used: one line on what is wrong, exit code 2 and no file written."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipcam_lightning import Contrast, MapState, Snapshot, explain
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
CONTRAST = "{class_path: clipcam_lightning.Contrast, init_args: {negatives: [a red star]}}"
Main = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, shapes_vit: open_clip.CLIP) -> Path:
    return make_project(tmp_path_factory.mktemp("project"), shapes_vit)


@pytest.fixture(autouse=True)
def _inside(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in the project's folder, and unload its modules afterwards."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("eyes", None)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Main:
    """Run a command in this process; returns its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(shell: Main, project: Path) -> Callable[..., str]:
    """Run a command that must be refused; returns the message."""

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
    ("arguments", "message"),
    [
        ((), r'expected "command" to be one of \{explain,snapshot,compare,check,'),
        (("explian",), r"invalid choice: 'explian'.* Did you mean 'explain'\?"),
        (("explain", "--prompt", "a", "--out", "maps", *BEFORE), "required: IMAGE"),
        (("explain", "probes/0.png", "--out", "maps", *BEFORE), r"required: --prompt \(see --help\)"),
        ((*EXPLAIN, *BEFORE, "--prompt", " "), "prompt 2: the prompt is empty"),
        ((*EXPLAIN, *BEFORE, "--colour", "red"), "unrecognized arguments: --colour red"),
        ((*EXPLAIN, *BEFORE, "--promt", "a cat"), r"unrecognized arguments: --promt.*\. Did you mean '--prompt'\?"),
        ((*EXPLAIN, *BEFORE, "--fuse", "maen"), r"--fuse: invalid choice: 'maen'.* Did you mean 'mean'\?"),
        ((*EXPLAIN, *BEFORE, "--batch-size", "many"), "--batch-size: Expected a whole number. Got value: many"),
        ((*EXPLAIN, *BEFORE, "--batch-size", "0"), "batch_size must be at least 1"),
        ((*EXPLAIN, *BEFORE, "--target", "contrast"), "--target contrast .* give at least two --prompt"),
        ((*EXPLAIN, *BEFORE, "--scales", "1", "big"), "--scales element 2: Expected a number"),
        ((*EXPLAIN, *BEFORE, "--scales", "0"), r"scales must be positive factors, at least one \(got \[0\.0\]\)"),
        ((*EXPLAIN, *BEFORE, "--score-scale", "0"), r"score_scale must be a positive number, or None \(got 0\.0\)"),
        ((*EXPLAIN, *BEFORE, "--fuse", "sum"), "--fuse: invalid choice: 'sum'"),
        ((*EXPLAIN, *BEFORE, "--method", "gradcam", "--layers", "7"), "layer must be an index from -3 to 2"),
        ((*EXPLAIN, *BEFORE, "--image-size", "48"), r"--image-size .*goes with --model \(got 48\); a class takes"),
        ((*EXPLAIN, *BEFORE, "--clip", "model"), r"clip='model' names no CLIP in Eyes; found: clip \(CLIP\)"),
        (("explain", "nope.png", *EXPLAIN[2:], *BEFORE), r"image 1: the image nope\.png does not exist"),
        (("explain", "eyes.py", *EXPLAIN[2:], *BEFORE), r"image 1: the image eyes\.py cannot be read"),
        ((*EXPLAIN[:-1], "eyes.py/maps", *BEFORE), r"to eyes\.py/maps: .*eyes\.py is a file, not a folder"),
        ((*SNAPSHOT, *BEFORE, "--batch-size", "-1"), "batch_size must be at least 1"),
        ((*SNAPSHOT[:-1], "probes", *BEFORE), "probes is a folder; give the name of a file"),
        ((*SNAPSHOT[:-1], "before.pt", *BEFORE), r"before\.pt is named twice"),
        ((*SNAPSHOT[:-1], "/dev/null", *BEFORE), "/dev/null is a link or a device"),
        (("snapshot", "--probes", "nope", "--out", "x", *BEFORE), "nope does not exist; give a folder with"),
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
        ((*COMPARE, "--json", "-"), "'-' is not standard output here: .* give the name of a file"),
        ((*COMPARE, "--html", "./-"), "'-' is not standard output here"),
        ((*SNAPSHOT[:-1], "-", *BEFORE), "'-' is not standard output here"),
        ((*CHECK[:-1], "-", *BEFORE, "--update-baseline"), "'-' is not standard output here"),
        (("rank", "--probes", "probes", "--json", "-", *BEFORE), "'-' is not standard output here"),
        ((*EXPLAIN[:-1], "-", *BEFORE), "'-' is not standard output here"),
        (("demo", "--out", "-"), "'-' is not standard output here"),
        (("demo", "--out", "eyes.py"), r"eyes\.py is a file, not a folder"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    arguments: tuple[str, ...], message: str, refused: Callable[..., str]
) -> None:
    assert re.search(message, refused(*arguments))


@pytest.mark.parametrize(
    "command",
    [
        ("snapshot", "--out"),
        ("check", "--baseline", "before.safetensors", "--json"),
        ("check", "--baseline", "new.safetensors", "--update-baseline", "--html"),
        ("check", "--update-baseline", "--baseline"),
        ("rank", "--json"),
        ("rank", "--html"),
    ],
    ids=" ".join,
)
def test_no_input_is_replaced(
    command: tuple[str, ...], refused: Callable[..., str], baseline: Path, project: Path
) -> None:
    (project / "config.yaml").write_text("model: {class_path: eyes.Eyes}")
    (project / "listed").mkdir(exist_ok=True)
    rows = (f"../probes/{i}.png,a star,../probes/mask-{i}.png\n" for i in range(2))
    (project / "listed" / "probes.csv").write_text("image,prompt,mask\n" + "".join(rows))
    model = ("--checkpoint", "before.pt", "--config", "config.yaml")
    inputs = ("config.yaml", "before.pt", "probes/0.png", "probes/mask-1.png")
    for probes, manifest in {
        "probes": "probes/probes.csv",
        "probes/probes.csv": "probes/probes.csv",
        "listed": "listed/probes.csv",
    }.items():
        for file in (*inputs, manifest):
            message = refused(*command, file, "--probes", probes, *model)

            assert re.match(f"{file} (is named twice|cannot be read as a snapshot)", message)


def test_a_new_file_may_be_in_the_folder_of_the_probes_and_a_baseline_there_replaced(
    shell: Main, refused: Callable[..., str], baseline: Path, project: Path
) -> None:
    shutil.copytree(project / "probes", project / "with outputs")
    check = ("check", "--probes", "with outputs", "--baseline", "with outputs/baseline.safetensors", *BEFORE)
    assert shell(*check, "--update-baseline")[0] == 0
    assert shell(*check, "--update-baseline", "--json", "with outputs/new.json")[0] == 0
    assert shell(*check, "--json", "with outputs/new.json")[0] == 0, "nor is a report refused the second time"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "camgrad"), "method must be 'auto', one of gradcam, "),
        (("--method", "ears.listen"), r"ears\.listen cannot be imported: ModuleNotFoundError: No module named 'ears'"),
        (("--method", "eyes.blink"), r"eyes\.blink cannot be imported: AttributeError: module 'eyes' has no attribute"),
        (("--method", "eyes.not_a_method"), r"--method eyes\.not_a_method is not a function .*\(got 3\.14\)"),
        (("--target", "loss"), r"target must be 'similarity', 'contrast', 'logsoftmax', .*\(got 'loss'\)"),
        (("--target", "{negatives: [a dog]}"), r"expected \{class_path: .*\(got \{'negatives': \['a dog'\]\}\)"),
        (
            ("--target", "{class_path: clipcam_lightning.Contrasts}"),
            r"Contrasts cannot be built: module 'clipcam_lightning' has no attribute 'Contrasts'",
        ),
        (("--target", "ears.Loud"), r"ears\.Loud cannot be built: No module named 'ears'"),
        (("--target", "eyes.Eyes"), r"eyes\.Eyes cannot be built: .*not correspond to a subclass of Target"),
        (
            ("--target", "{class_path: clipcam_lightning.Contrast, init_args: {negative: [a dog]}}"),
            r"Contrast cannot be built: Option 'negative' is not accepted",
        ),
        (
            ("--target", "{class_path: clipcam_lightning.Contrast, init_args: {negatives: 3}}"),
            r'Contrast cannot be built: Parser key "negatives": .*Given value: 3',
        ),
        (
            ("--target", "{class_path: clipcam_lightning.LogSoftmax, init_args: {temperature: -1}}"),
            r"temperature must be positive and finite \(got -1\.0\)",
        ),
    ],
)
def test_methods_and_targets_that_do_not_exist_or_fit_are_refused(
    options: tuple[str, ...], message: str, refused: Callable[..., str]
) -> None:
    assert re.search(message, refused(*EXPLAIN, *BEFORE, *options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "^no model given: use --model NAME with --pretrained TAG or --checkpoint FILE; or --checkpoint FILE with"),
        (("--model", "RN50", *BEFORE), r"^two models given: leave out --model, or --class-path and --config\."),
        (("--model", "RN50"), "random weights mean nothing; .* --checkpoint FILE or --pretrained TAG"),
        (OPTIONS[:-1], r"random weights mean nothing; .* --checkpoint FILE\.$"),
        (("--model", "RN50", "--pretrained", "openai", "--checkpoint", "before.pt"), "there is one set of weights"),
        ((*BEFORE, "--pretrained", "openai"), "--pretrained goes with --model"),
        (("--model", "ViT-B32", "--pretrained", "openai"), r"has no model 'ViT-B32'\. Did you mean 'ViT-B-32'\?"),
        (("--model", "xyz", "--pretrained", "openai"), r"no model 'xyz'\. open_clip\.list_models\(\) lists them"),
        (
            ("--model", "RN50", "--pretrained", "before.pt"),
            r"no weights 'before\.pt' of RN50, but openai, .*--checkpoint",
        ),
        (("--model", "RN50x4", "--checkpoint", "nope.pt"), r"nope\.pt cannot be read: No such file"),
        ((*OPTIONS, "eyes.py"), r"eyes\.py is damaged, or no checkpoint"),
        ((*OPTIONS, "probes"), "probes cannot be read: Is a directory"),
        ((*BEFORE, "--init-args", "{colour: blue}"), r"eyes\.Eyes cannot be built: Option 'colour' is not accepted"),
        ((*BEFORE, "--init-args", "[1]"), "--init-args: Expected a mapping"),
        ((*BEFORE, "--init-args", '{"tower": 3}'), 'Parser key "tower": Expected a'),
        ((*BEFORE, "--init-args.tower", "resnet"), r"1 of another shape: clip\.visual\.conv1\.weight \("),
        (("--class-path", "eyes.Ears", "--checkpoint", "before.pt"), "module 'eyes' has no attribute 'Ears'"),
        (("--class-path", "ears.Ears", "--checkpoint", "before.pt"), "No module named 'ears'"),
        (("--class-path", "eyes.WordTokenizer", "--checkpoint", "before.pt"), "not correspond to a subclass of Module"),
        (("--class-path", "eyes.BrokenEyes", "--checkpoint", "before.pt"), r"KeyError: 'lens' \(eyes\.py, line \d+\)"),
        (
            ("--class-path", "eyes.BrokenHook", "--checkpoint", "before.pt"),
            r"BrokenHook\.configure_model fails: KeyError: 'lens' \(eyes\.py, line \d+\)",
        ),
        (("--checkpoint", "before.pt", "--config", "nope.yaml"), r"nope\.yaml cannot be read: .*No such file"),
        (("--config", "probes/0.png", "--checkpoint", "before.pt"), r"0\.png cannot be read: "),
        ((*BEFORE, "--config", "nope.yaml", "--init-args", "{a: 1}"), "--init-args goes with --class-path, and not"),
    ],
)
def test_models_that_cannot_be_loaded_are_refused(
    options: tuple[str, ...], message: str, refused: Callable[..., str]
) -> None:
    assert re.search(message, refused(*EXPLAIN, *options))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_device_on_a_machine_without_one_is_refused(refused: Callable[..., str]) -> None:
    assert "use --device cpu" in refused(*EXPLAIN, *BEFORE, "--device", "cuda")


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("model: [1", (), "cannot be read: while parsing"),
        ("- 1", (), r"has no 'model: \.\.\.'"),
        ("model: 1", (), r"has no 'model: \.\.\.'"),
        ("trainer: {max_epochs: 1}", (), "does not name the model's class; give it with --class-path"),
        ("model: {tower: vit}", (), "does not name the model's class; give it with --class-path"),
        ("model: {class_path: eyes.Eyes}", OPTIONS[:-1], "names its class, eyes.Eyes; leave out --class-path"),
    ],
)
def test_configs_without_the_model_are_refused(
    config: str, options: tuple[str, ...], message: str, refused: Callable[..., str], project: Path
) -> None:
    (project / "config.yaml").write_text(config)

    assert re.search(message, refused(*EXPLAIN, "--checkpoint", "before.pt", "--config", "config.yaml", *options))


@pytest.mark.parametrize("other_keys", ["", "trainer:\n  nope: {class_path: not.there}\n"])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("model: {class_path: eyes.Eyes, init_args: {tower: vit, untyped: {a: 1}}}", ()),
        ("model: {tower: vit, untyped: null}", OPTIONS[:-1]),
        ("seed_everything: 0", OPTIONS[:-1]),
    ],
)
def test_only_the_model_of_a_config_is_used(
    other_keys: str, model: str, options: tuple[str, ...], shell: Main, project: Path
) -> None:
    (project / "config.yaml").write_text(f"{other_keys}{model}\n")

    code, out, err = shell(*EXPLAIN, "--checkpoint", "before.pt", "--config", "config.yaml", *options)

    assert (code, err) == (0, "")
    assert "wrote 1 sheet to maps: " in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "0" * 64}, "other probes"),
        ({"method": "gae"}, "method 'gae', now"),
        ({"target": "contrast(a cat)"}, r"target 'contrast\(a cat\)', now 'similarity'"),
        ({"layers": ("visual.other",)}, r"layers \('visual\.other',\), now"),
    ],
)
def test_snapshots_made_in_different_ways_are_not_compared(
    change: dict[str, Any], message: str, refused: Callable[..., str], baseline: Path
) -> None:
    other = Snapshot.load(baseline)
    replace(other, info=replace(other.info, **change)).save("other.safetensors")

    assert re.search(message, refused("compare", "other.safetensors", baseline))


def test_a_truncated_snapshot_is_refused(refused: Callable[..., str], baseline: Path) -> None:
    Path("cut.safetensors").write_bytes(baseline.read_bytes()[:-100])

    assert refused("compare", "cut.safetensors", baseline).startswith("cut.safetensors cannot be read as a snapshot: ")
    assert refused(*CHECK[:-1], "cut.safetensors", *BEFORE).startswith("cut.safetensors cannot be read")
    assert refused(*CHECK[:-1], "cut.safetensors", *BEFORE, "--update-baseline").startswith("cut.safetensors cannot")


@pytest.mark.parametrize(
    ("change", "message", "option"),
    [
        ({"target": "contrast(a cat)"}, "repeat it with --target", ("--target", "similarity")),
        ({"method": "mine"}, "repeat it with --method", ("--method", "gradcam")),
    ],
)
def test_a_baseline_of_an_unknown_method_or_target_can_be_replaced_with_an_explicit_one(
    change: dict[str, Any],
    message: str,
    option: tuple[str, str],
    refused: Callable[..., str],
    shell: Main,
    baseline: Path,
) -> None:
    other = Snapshot.load(baseline)
    replace(other, info=replace(other.info, **change)).save("other.safetensors")
    check = (*CHECK[:-1], "other.safetensors", *BEFORE)

    assert message in refused(*check)
    assert message in refused(*check, "--update-baseline")
    assert shell(*check, "--update-baseline", *option)[0] == 0
    info = Snapshot.load("other.safetensors").info
    assert {"target": info.target, "method": info.method}[option[0].strip("-")] == option[1]


def test_explain_takes_a_target_with_arguments_and_several_views_and_layers(shell: Main, project: Path) -> None:
    options = ("--method", "hirescam", "--layers", "-2", "-1", "--fuse", "max", "--scales", "1", "1.5", "--flip")

    overlays = []
    for target in ("similarity", CONTRAST):
        code, out, err = shell(*EXPLAIN, *BEFORE, *options, "--target", target)
        assert (code, err) == (0, "")
        with Image.open(project / "maps" / "0-maps.png") as drawing:
            overlays.append(drawing.crop((356, 60, 676, 380)).tobytes())

    layers = "visual.transformer.resblocks.1.ln_1, visual.transformer.resblocks.2.ln_1"
    assert f"wrote 1 sheet to maps: hirescam of contrast(a red star) at {layers}" in out
    assert overlays[0] != overlays[1]


def test_a_dotted_name_selects_a_method_of_the_project(shell: Main, refused: Callable[..., str]) -> None:
    own = ("--method", "eyes.gradient_norm")
    check = ("check", "--probes", "probes", "--baseline", "own.safetensors", *BEFORE)

    code, out, err = shell(*EXPLAIN, *BEFORE, *own)
    assert (code, err) == (0, "")
    assert "wrote 1 sheet to maps: gradient_norm at " in out
    assert shell(*SNAPSHOT[:-1], "own.safetensors", *BEFORE, *own, "--layers", -2)[0] == 0
    assert "--method my_project.my_function" in refused(*check)
    code, out, err = shell(*check, *own)  # with the layer of the baseline
    assert (code, err) == (0, "")
    assert "no alarm at step 7; mean drift 0.00" in out


def test_snapshot_records_the_settings_and_check_takes_those_that_are_not_set_from_the_baseline(
    shell: Main, refused: Callable[..., str]
) -> None:
    file = "views.safetensors"
    check = ("check", "--probes", "probes", "--baseline", file, *BEFORE)
    views = ("--scales", "1", "1.5", "--flip", "--fuse", "max", "--layers", "-2", "-1", "--method", "hirescam")
    views += ("--score-scale", "9", "--shift", "--precision", "bfloat16")
    assert shell(*SNAPSHOT[:-1], file, *BEFORE, *views, "--target", CONTRAST)[0] == 0
    first = Snapshot.load(file).info
    clip = load_clip(ModelSource(class_path="eyes.Eyes", checkpoint=Path("before.pt"))).clip
    images = [clip.preprocessing.image(np.array(Image.open(f"probes/{i}.png"))) for i in range(2)]
    explanation = explain(
        clip, torch.stack(images), [[prompt] for prompt in Snapshot.load(file).prompts],
        method="hirescam", layers=(-2, -1), target=Contrast(negatives=("a red star",)), scales=(1.0, 1.5), flip=True,
        shift=True, fuse="max", score_scale=9.0, precision="bfloat16",
    )  # fmt: skip
    torch.testing.assert_close(Snapshot.load(file).maps, explanation.maps[:, 0])
    assert (first.scales, first.flip, first.fuse) == ((1.0, 1.5), True, "max")
    assert (first.method, len(first.layers), first.target) == ("hirescam", 2, "contrast(a red star)")
    assert (first.score_scale, first.shift, first.precision) == (9, True, "bfloat16")

    code, out, err = shell(*check, "--target", CONTRAST)
    assert (code, err) == (0, "")
    assert "no alarm at step 7; mean drift 0.00" in out

    assert shell(*check, "--target", CONTRAST, "--update-baseline")[0] == 0
    assert Snapshot.load(file).info == first
    assert (
        shell(*check, "--update-baseline", "--no-flip", "--no-shift", "--fuse", "mean", "--target", "similarity")[0]
        == 0
    )
    changed = Snapshot.load(file).info
    assert (changed.scales, changed.flip, changed.fuse, changed.target) == ((1.0, 1.5), False, "mean", "similarity")
    assert (changed.method, changed.layers, changed.score_scale) == (first.method, first.layers, 9)
    assert not changed.shift
    assert shell(*check, "--update-baseline", "--method", "gradcam")[0] == 0
    info = Snapshot.load(file).info
    assert (len(info.layers), info.score_scale) == (1, 1), "another method has its own layers and scale"


def test_check_refuses_another_method_or_other_layers_than_the_baseline_s(
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


def test_max_drift_replaces_the_rule(shell: Main, baseline: Path) -> None:
    code, out, _ = shell(*CHECK, *OPTIONS, "after.pt", "--max-drift", 2)
    assert (code, "no alarm at step 70" in out) == (0, True)


def test_a_degenerate_map_is_a_warning(shell: Main, project: Path) -> None:
    content = torch.load("before.pt", weights_only=True)
    content["state_dict"]["clip.visual.proj"].zero_()
    torch.save(content, "dark.pt")

    code, _, err = shell(*EXPLAIN, *OPTIONS, "dark.pt", "--method", "gradcam")

    assert code == 0
    warning, words = "clipcam: warning: the map of probes/0.png for 'a star' is all zero", MapState.ALL_ZERO.words
    assert err.splitlines()[0] == f"{warning}: {words}."


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.0, rf"2 all zero: {MapState.ALL_ZERO.words}\). Use another method or other layers"),
        (torch.nan, rf"2 not finite: {MapState.NOT_FINITE.words}\). Repair the model"),
    ],
)
def test_a_baseline_without_a_valid_map_is_refused(
    value: float, reason: str, refused: Callable[..., str], baseline: Path, project: Path
) -> None:
    content = torch.load("before.pt", weights_only=True)
    content["state_dict"]["clip.visual.proj"].fill_(value)
    torch.save(content, "dark.pt")
    stored = Snapshot.load(baseline)
    replace(stored, maps=torch.full_like(stored.maps, value)).save("dark.safetensors")

    for arguments in (
        (*SNAPSHOT, *OPTIONS, "dark.pt", "--method", "gradcam"),
        (*CHECK, *OPTIONS, "dark.pt", "--method", "gradcam", "--update-baseline"),
        (*CHECK[:-1], "dark.safetensors", *BEFORE),
        ("compare", "dark.safetensors", baseline),
    ):
        assert re.search(f"a baseline needs a valid map, but all 2 are degenerate \\({reason}", refused(*arguments))


def test_a_bug_shows_its_traceback_and_has_an_exit_code_of_its_own(
    shell: Main, baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Snapshot, "load", lambda _: 1 / 0)

    code, out, err = shell(*COMPARE)

    assert (code, out) == (70, "")
    assert err.startswith("Traceback")
    assert err.endswith("ZeroDivisionError: division by zero\n")


def test_an_architecture_added_to_open_clip_is_built_by_name(shell: Main, project: Path) -> None:
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


@pytest.mark.parametrize(("given", "size"), [((48,), (48, 48)), ((32, 64), (32, 64))])
def test_an_architecture_is_built_for_the_image_size_of_its_checkpoint(
    project: Path, given: tuple[int, ...], size: tuple[int, int]
) -> None:
    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {**TEXT, "vocab_size": 49408, "context_length": 77}
    (project / "sized-eyes.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(project / "sized-eyes.json")
    trained = open_clip.create_model("sized-eyes", force_image_size=size)
    torch.save(trained.state_dict(), "sized.pt")

    clip = load_clip(ModelSource(model="sized-eyes", checkpoint=Path("sized.pt"), image_size=given)).clip

    assert clip.preprocessing.size == clip.tower.input_size == size
    assert torch.equal(clip.module.visual.positional_embedding, trained.visual.positional_embedding)


def test_preprocessing_is_what_all_published_weights_share() -> None:
    assert models._published_preprocessing("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert models._published_preprocessing("ViT-B-16-SigLIP")["resize_mode"] == "squash"
    assert models._published_preprocessing("ViT-L-14").keys() == {"interpolation", "resize_mode"}, "they disagree"
    assert models._published_preprocessing("ViT-S-32-alt") == {}


def test_loading_calls_the_hooks_that_lightning_calls(shell: Main, project: Path) -> None:
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
def test_demo_runs_in_its_folder_and_an_interrupted_one_exits_with_130(
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


def test_a_class_may_have_its_methods_named(shell: Main, refused: Callable[..., str]) -> None:
    names = ("--class-path", "eyes.OtherNames", "--checkpoint", "before.pt", "--encode-image", "see", "--encode-text")
    code, _, err = shell(*SNAPSHOT[:-1], "named.safetensors", *names, "hear")
    assert (code, err) == (0, "")
    assert Snapshot.load("named.safetensors").info.method == "decomposition"
    assert "encode_text='here' is no method of OtherNames. Did you mean 'hear'?" in refused(*SNAPSHOT, *names, "here")
    with_model = ("--model", "ViT-B-32", "--checkpoint", "before.pt", "--encode-image", "see")
    assert "go with --class-path or --config" in refused(*SNAPSHOT, *with_model)
