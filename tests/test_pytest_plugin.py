"""The fixture ``cam_regression`` in small projects, each with a pytest process of its own."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.pathlib import make_numbered_dir
from PIL import Image

from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.pytest_plugin import FOLDER, NAME_LENGTH, file_name
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.storage.paths import as_path
from tests.support.warm_python import run_module

pytestmark = pytest.mark.slow

# Loaded by module, because the entry point depends on how the package is installed and must not load it twice.
LOADED = ("-p", "no:clipcam", "-p", "clipcam_lightning.pytest_plugin", "-p", "no:cacheprovider")
PROJECT = """
import os
import sys
import numpy as np
import pytest

def tokens(texts):
    import torch
    words = [[len(word) % 14 for word in text.split()][:7] for text in texts]
    return torch.tensor([[*row, 15, *[0] * (7 - len(row))] for row in words])  # the end token has the highest id

def build(seed):
    import torch
    from tests.support.zoo.open_clip import vit
    torch.manual_seed(seed)
    return vit()

@pytest.fixture
def model():
    return build(int(os.environ.get("SEED", 0)))

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 32, 3), dtype=np.uint8)
PROBES = [(PIXELS[0], "a cat"), (PIXELS[1], "a small dog"), (PIXELS[2], "an owl")]
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project whose tests can import ``tests.support``."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    monkeypatch.delenv("SEED", raising=False)
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    path = os.pathsep.join([str(project.path), os.environ["PYTHONPATH"]])
    basetemp = make_numbered_dir(project.path, "runpytest-", mode=0o700)
    # What is imported already cannot be rewritten, which pytest warns of.
    own = ("-W", "ignore::pytest.PytestAssertRewriteWarning", f"--basetemp={basetemp}", *LOADED)
    done = run_module("pytest", *own, *options, cwd=project.path, env={**os.environ, "PYTHONPATH": path})
    print(done.stdout, done.stderr)
    return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0)


def baselines(project: pytest.Pytester) -> dict[str, bytes]:
    files = project.path.rglob("*.safetensors")
    return {file.relative_to(project.path).as_posix(): file.read_bytes() for file in files}


def linked(result: pytest.RunResult, word: str) -> Path:
    """Find the file that the output names after ``word``."""
    (path,) = set(re.findall(rf"{word} (/\S+?\.\w+)[,\s]", result.stdout.str()))
    return Path(path)


def test_a_baseline_is_written_once_compared_with_and_replaced_on_request(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(
        test_maps=PROJECT
        + """
def test_pets(cam_regression, model):
    report = cam_regression.check(model, PROBES, max_drift=0.1, tokenizer=tokens)
    assert [probe.name for probe in report.probes] == ["a-cat", "a-small-dog", "an-owl"]
    assert report.drift < 1e-5
"""
    )

    created = run(project)
    created.assert_outcomes(failed=1)
    (name,) = first = baselines(project)
    assert name == f"{FOLDER}/test_maps/test_pets.safetensors"
    assert linked(created, "wrote the baseline") == project.path / name
    assert "<h1>" in linked(created, "Check its maps in").read_text(encoding="utf-8")
    stored = Snapshot.load(project.path / name)
    assert stored.noise_floor is not None
    assert len(stored.images) == 3

    run(project).assert_outcomes(passed=1)
    assert baselines(project) == first

    monkeypatch.setenv("SEED", "1")
    drifted = run(project)
    drifted.assert_outcomes(failed=1)
    drifted.stdout.re_match_lines(
        [
            r".*attention drifted on \d of 3 probes$",
            r"  [a-z-]+: its map drifted by more than 0.1 \(Drift \d\.\d\d, Drift / noise floor [\d.]+, .*Simila.*\)",
            r"baseline: .*test_pets\.safetensors",
            r"report: .*test_pets\.html",
            r'.*accept them: pytest --clipcam-update "test_maps.py::test_pets"',
        ]
    )
    page = linked(drifted, "report:").read_text(encoding="utf-8")
    assert "✗ Alarm" in page
    assert "Input of " in page
    assert baselines(project) == first

    updated = run(project, "--clipcam-update")
    updated.assert_outcomes(failed=1)
    assert linked(updated, "wrote the baseline") == project.path / name
    assert baselines(project).keys() == first.keys()
    assert baselines(project) != first

    run(project, "--clipcam-ci").assert_outcomes(passed=1)


def test_a_relative_path_of_probes_is_looked_up_beside_the_test(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project.mkdir("probes")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)).save(folder / "cat.png")
    (folder / "probes.csv").write_text("image,prompt\ncat.png,a cat\n")
    test = project.makepyfile(
        PROJECT + "def test_pets(cam_regression, model): cam_regression.check(model, 'probes/', tokenizer=tokens)"
    )
    monkeypatch.chdir(project.mkdir("elsewhere"))

    done = project.runpytest_subprocess(*LOADED, str(test))

    done.stdout.fnmatch_lines(["*wrote the baseline*"])
    assert len(baselines(project)) == 1


def test_baselines_and_probes_may_be_in_a_store(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, s3: str
) -> None:
    folder = f"{s3}/baselines"
    file = f"{folder}/deep/test_it/test_pets.safetensors"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    write_atomically(as_path(f"{s3}/probes/cat.png"), encode_jpeg(Image.fromarray(pixels), 90))
    write_atomically(as_path(f"{s3}/probes/probes.csv"), b"image,prompt\ncat.png,a cat\n")
    project.makeini(f"[pytest]\nclipcam_baselines = {folder}")
    (project.mkdir("deep") / "test_it.py").write_text(
        PROJECT
        + f"""
def test_pets(cam_regression, model):
    cam_regression.check(model, "{s3}/probes", tokenizer=tokens, max_drift=0.2)
"""
    )

    forbidden = run(project, "--clipcam-ci")
    forbidden.assert_outcomes(failed=1)
    forbidden.stdout.fnmatch_lines([f"*{file} does not exist, and --clipcam-ci forbids writing it. Run once without*"])
    written = run(project)
    written.assert_outcomes(failed=1)
    written.stdout.fnmatch_lines([f"*wrote the baseline {file}", "Check its maps in *.html and run again."])
    run(project, "--clipcam-ci").assert_outcomes(passed=1)
    monkeypatch.setenv("SEED", "1")
    drifted = run(project)
    drifted.assert_outcomes(failed=1)
    drifted.stdout.fnmatch_lines([f"*baseline: {file}"])

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    lost = run(project)
    lost.assert_outcomes(failed=1)
    lost.stdout.fnmatch_lines([f"*clipcam: {file} cannot be read: EndpointConnectionError: Could not connect*"])
    assert not [path for path in project.path.rglob("*") if path.name.endswith(":")]
    assert baselines(project) == {}


def test_baselines_may_be_in_one_folder_of_the_project(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nclipcam_baselines = maps/good")
    (project.mkdir("deep") / "test_it.py").write_text(
        PROJECT + "\ndef test_pets(cam_regression, model): cam_regression.check(model, PROBES, tokenizer=tokens)\n"
    )
    run(project, "deep").assert_outcomes(failed=1)
    assert set(baselines(project)) == {"maps/good/deep/test_it/test_pets.safetensors"}


def test_a_folder_of_baselines_that_cannot_be_opened_is_explained(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nclipcam_baselines = foo://maps")
    project.makepyfile(PROJECT + "\ndef test_pets(cam_regression, model): cam_regression.check(model, PROBES)\n")
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the option clipcam_baselines cannot be used: foo://maps: fsspec has no protocol*"])


def test_a_check_takes_functions_of_a_module_that_is_no_clip(project: pytest.Pytester) -> None:
    project.makepyfile(
        PROJECT
        + """
def test_pets(cam_regression, model):
    import torch
    module = torch.nn.ModuleDict({"eye": model.visual, "ear": model})
    cam_regression.check(
        module,
        PROBES,
        tokenizer=tokens,
        encode_image=lambda module, images: module["eye"](images),
        encode_text=lambda module, ids: module["ear"].encode_text(ids),
    )
"""
    )
    run(project).stdout.fnmatch_lines(["*wrote the baseline*"])
    run(project, "--clipcam-ci").assert_outcomes(passed=1)


def test_with_clipcam_ci_nothing_is_written(project: pytest.Pytester) -> None:
    project.makepyfile(
        PROJECT + "def test_pets(cam_regression, model): cam_regression.check(model, PROBES, tokenizer=tokens)"
    )
    result = run(project, "--clipcam-ci")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r".*test_pets\.safetensors does not exist, and --clipcam-ci forbids writing it.*"])
    assert not (project.path / FOLDER).exists()


def test_clipcam_update_and_clipcam_ci_together_are_refused(project: pytest.Pytester) -> None:
    result = run(project, "--clipcam-update", "--clipcam-ci")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--clipcam-update writes baselines and --clipcam-ci forbids it*"])


def test_an_incomparable_baseline_is_not_reported_as_drift(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(
        PROJECT
        + """
changed = "CHANGED" in os.environ
def test_method(cam_regression, model):
    cam_regression.check(model, PROBES, tokenizer=tokens, method="hirescam" if changed else "gradcam")
def test_layers(cam_regression, model):
    cam_regression.check(model, PROBES, tokenizer=tokens, method="gradcam", layers=-2 if changed else -1)
def test_probes(cam_regression, model):
    cam_regression.check(model, PROBES[changed:], tokenizer=tokens)
def test_file(cam_regression, model):
    cam_regression.check(model, PROBES, tokenizer=tokens)
"""
    )
    run(project).assert_outcomes(failed=4)
    next(project.path.rglob("test_file.safetensors")).write_bytes(b"not a snapshot")
    before = baselines(project)
    monkeypatch.setenv("CHANGED", "1")

    result = run(project)

    result.assert_outcomes(failed=4)
    for test, reason in {
        "test_method": "the baseline was made with another CAM method",
        "test_layers": "the baseline was made with other layers",
        "test_probes": "the baseline was made with other probes",
        "test_file": "cannot be read as a snapshot",
    }.items():
        result.stdout.re_match_lines([rf".*{test}\.safetensors cannot be used as the baseline: .*{reason}.*"])
    result.stdout.no_fnmatch_line("*attention drifted*")
    assert baselines(project) == before


def test_every_check_has_a_file_of_its_own_in_the_folder_of_its_test_module(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_names=PROJECT
        + """
def check(cam_regression, seed, name=None):
    cam_regression.check(build(seed), PROBES[:1], name, method="eigencam", tokenizer=tokens)
def test_two(cam_regression):
    check(cam_regression, 0)
    check(cam_regression, 1)
def test_named(cam_regression):
    check(cam_regression, 2, "before")
    check(cam_regression, 3, "after")
@pytest.mark.parametrize("seed, odd", enumerate(["a/b", "a-b", "A-B", "../../x", "a::b", "x" * 300]))
def test_many(cam_regression, seed, odd):
    check(cam_regression, seed)
    check(cam_regression, seed, "shared")
class TestOne:
    def test_same(self, cam_regression): check(cam_regression, 4)
class TestOther:
    def test_same(self, cam_regression): check(cam_regression, 5)
def test_outside(cam_regression):
    check(cam_regression, 6, "../../../outside")
    check(cam_regression, 7, "/outside")
    check(cam_regression, 8, "..")
"""
    )

    run(project).assert_outcomes(failed=11)

    folder = project.path / FOLDER / "test_names"
    written = [project.path / name for name in baselines(project)]
    assert len(written) == 2 + 2 + 6 * 2 + 2 + 3
    assert {file.parent for file in written} == {folder}
    assert {"test_two", "test_two-2", "before", "after"} <= {file.stem for file in written}
    run(project).assert_outcomes(passed=11)
    assert len(baselines(project)) == len(written)


def test_a_check_takes_the_settings_of_every_entry_point(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(
        PROJECT
        + """
from clipcam_lightning import Contrast
def test_pets(cam_regression, model):
    views = {} if "PLAIN" in os.environ else {"scales": (1.0, 2.0), "flip": True, "fuse": "max"}
    views |= {} if "PLAIN" in os.environ else {"shift": True, "score_scale": 9.0, "precision": "bfloat16"}
    cam_regression.check(
        model, PROBES, tokenizer=tokens, method="hirescam", layers=(-2, -1), target=Contrast(("a bird",)),
        batch_size=2, **views,
    )
"""
    )
    run(project).assert_outcomes(failed=1)
    (name,) = baselines(project)
    info = Snapshot.load(project.path / name).info
    assert (info.method, len(info.layers), info.target) == ("hirescam", 2, "contrast(a bird)")
    assert (info.score_scale, info.scales, info.flip, info.shift, info.fuse) == (9.0, (1.0, 2.0), True, True, "max")
    assert info.precision == "bfloat16"
    run(project).assert_outcomes(passed=1)

    monkeypatch.setenv("PLAIN", "1")
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r".*cannot be used as the baseline: .*another scale of the score"])


def test_reports_of_all_checks_are_kept_in_a_folder_by_test(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = """
@pytest.mark.parametrize("seed", [0, 1])
def test_pets(cam_regression, seed):
    model = build(seed + int(os.environ.get("SEED", 0)) * seed)
    cam_regression.check(model, PROBES[:1], max_drift=0.1, method="eigencam", tokenizer=tokens)
"""
    for folder in ("unit", "slow"):  # two modules of one name
        project.mkdir(folder)
        (project.path / folder / "test_maps.py").write_text(PROJECT + check)
    run(project, "--import-mode=importlib").assert_outcomes(failed=4)

    monkeypatch.setenv("SEED", "7")
    options = ("--import-mode=importlib", "--clipcam-report-dir", "out/reports", "-p", "xdist", "-n", "1")
    result = run(project, *options)

    result.assert_outcomes(passed=2, failed=2)
    reports = (project.path / "out").rglob("*.*")
    pages = {page.relative_to(project.path).as_posix(): page for page in reports}
    names = [file_name(f"test_pets[{seed}]") for seed in (0, 1)]
    assert set(pages) == {f"out/reports/{where}/test_maps/{name}.html" for where in ("unit", "slow") for name in names}
    for name, page in pages.items():
        verdict = "✓ No alarm" if Path(name).stem == names[0] else "✗ Alarm"
        assert verdict in page.read_text(encoding="utf-8")
        assert (f"report: {page}" in result.stdout.str()) == (verdict == "✗ Alarm")


@pytest.mark.parametrize(
    ("folder", "message"),
    [("a_file/reports", "*the report *a_file/reports/*.html cannot be written: *"), ("nope://x", "*fsspec has no*")],
)
def test_a_folder_for_reports_that_cannot_be_used_fails_the_test(
    folder: str, message: str, project: pytest.Pytester
) -> None:
    (project.path / "a_file").write_text("")
    project.makepyfile(
        PROJECT
        + """
def test_pets(cam_regression, model):
    cam_regression.check(model, PROBES, method="eigencam", tokenizer=tokens)
"""
    )
    result = run(project, "--clipcam-report-dir", folder)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])


def test_a_failing_test_still_reports_that_it_wrote_a_baseline(project: pytest.Pytester) -> None:
    project.makepyfile(
        PROJECT
        + """
def test_pets(cam_regression, model):
    cam_regression.check(model, PROBES, tokenizer=tokens)
    assert not "another thing"
"""
    )
    result = run(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert not 'another thing'*", "*wrote the baseline*test_pets.safetensors"])


def test_a_baseline_is_reported_once_wherever_in_a_test_it_is_written(project: pytest.Pytester) -> None:
    project.makepyfile(
        PROJECT
        + """
def check(cam_regression, model):
    cam_regression.check(model, PROBES[:1], method="eigencam", tokenizer=tokens)

@pytest.fixture
def in_teardown(cam_regression, model):
    yield
    check(cam_regression, model)
def test_teardown(in_teardown): pass

@pytest.fixture
def in_setup(cam_regression, model):
    check(cam_regression, model)
    pytest.skip("later")
def test_setup(in_setup): pass

def test_skip(cam_regression, model):
    check(cam_regression, model)
    pytest.skip("later")

def test_xfail(cam_regression, model):
    check(cam_regression, model)
    pytest.xfail("later")

@pytest.fixture
def fails_in_teardown(in_teardown):
    yield
    assert not "another thing"
def test_failure(fails_in_teardown): pass
"""
    )
    for options in ((), ("--clipcam-update",)):
        # Where CI is set, the summary repeats the messages, so there is none.
        result = run(project, "-rN", *options)
        result.assert_outcomes(passed=2, skipped=1, failed=2, errors=3)
        output = result.stdout.str()
        for name in ("test_teardown", "test_setup", "test_skip", "test_xfail", "test_failure"):
            assert (
                len(re.findall(rf"Check its maps in \S+/{name}.html, commit the baseline and run again", output)) == 1
            )
        assert "assert not 'another thing'" in output

    run(project).assert_outcomes(passed=2, skipped=2, xfailed=1, errors=1)


def test_a_degenerate_map_in_a_baseline_is_a_warning_and_a_baseline_without_a_valid_map_is_refused(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(
        PROJECT
        + """
def some_maps(capture):
    maps = capture.gradients.norm(dim=2)
    maps[int(os.environ.get("VALID", 1)):] = 0
    return maps
def test_pets(cam_regression, model):
    cam_regression.check(model, PROBES, method=some_maps, tokenizer=tokens)
"""
    )
    run(project)
    result = run(project)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*2 of 3 probes have no valid baseline, so that their drift is unknown*"])
    (file,) = baselines(project)
    stored = Snapshot.load(project.path / file)
    replace(stored, maps=torch.zeros_like(stored.maps)).save(project.path / file)
    before = baselines(project)

    compared = run(project)
    compared.assert_outcomes(failed=1)
    reason = "cannot be used as the baseline: a baseline needs a valid map, but all 3 are degenerate (3 all zero: *"
    compared.stdout.fnmatch_lines([f"*{reason}", "If the new maps are right, accept them: *"])
    monkeypatch.setenv("VALID", "0")
    written = run(project, "--clipcam-update")
    written.assert_outcomes(failed=1)
    written.stdout.fnmatch_lines([f"*{reason}"])
    written.stdout.no_fnmatch_line("If the new maps are right*")
    written.stdout.no_fnmatch_line("*wrote the baseline*")
    assert baselines(project) == before


def test_a_session_that_does_not_use_the_fixture_imports_nothing_heavy(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # others of this environment do import numpy
    project.makepyfile(
        """
def test_imports():
    import sys
    assert "clipcam_lightning.pytest_plugin" in sys.modules
    assert not {"torch", "lightning", "open_clip", "numpy", "PIL", "jinja2"} & set(sys.modules)
"""
    )
    project.runpytest_subprocess(*LOADED).assert_outcomes(passed=1)
    program = "import sys, clipcam_lightning.pytest_plugin; print({'torch', 'lightning', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


TEXTS = (
    "", ".", "..", "../x", "/x", "a/b", "a\\b", "a-b", "A-B", "a b", "a", "A", " a", "a.", "-a", "日本",
    "x" * 300, "x" * 301, "c:x", "a\0b", "\ud800", "test_x[1]", "test_x[1-]",
)  # fmt: skip


def test_file_names_are_safe_and_differ_for_different_texts() -> None:
    names = [file_name(text) for text in TEXTS]
    assert len({name.lower() for name in names}) == len(TEXTS)
    for name in names:
        assert re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", name), name
        assert len(name) <= NAME_LENGTH + 9
        assert Path(name).name == name
    assert file_name("test_pets") == "test_pets"
