"""A pytest plugin with the fixture ``cam_regression``, whose checks fail when the maps of a model drift.

pytest loads this file in every session of every project, so it imports nothing heavy. Torch and the rest of the package
are imported at the first check.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from clipcam_lightning.drift.rule import DEFAULT_RATE

if TYPE_CHECKING:
    from torch import nn
    from upath import UPath

    from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
    from clipcam_lightning.cam.fuse import Fusion
    from clipcam_lightning.cam.methods import Layers, MethodLike
    from clipcam_lightning.cam.model import Tokenizer
    from clipcam_lightning.cam.precision import Precision
    from clipcam_lightning.cam.targets import TargetLike
    from clipcam_lightning.cam.towers.tower import Tower
    from clipcam_lightning.drift.report import DriftReport
    from clipcam_lightning.monitoring.evaluation import Evaluation
    from clipcam_lightning.probes.probe_set import ProbesLike

FOLDER = "clipcam_baselines"
NAME_LENGTH = 80


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--clipcam-update``, ``--clipcam-ci``, ``--clipcam-report-dir`` and the ini option ``clipcam_baselines``."""
    group = parser.getgroup("clipcam", "attention maps of CLIP models")
    group.addoption(
        "--clipcam-update",
        action="store_true",
        help="replace the baselines of cam_regression; tests that write one fail, so that the change is noticed",
    )
    group.addoption(
        "--clipcam-ci",
        action="store_true",
        help="write no baselines: a check of cam_regression without a baseline fails",
    )
    group.addoption(
        "--clipcam-report-dir",
        metavar="DIR",
        default=None,
        help="folder, or its URL, for the HTML reports of all checks of cam_regression, passed ones too: "
        "DIR/<path of the test module>/<name of the baseline>.html (default: reports of failures, in tmp_path)",
    )
    parser.addini(
        "clipcam_baselines",
        "folder for the baselines of cam_regression, relative to the root of the project, or its URL, such as "
        f"s3://bucket/baselines (default: {FOLDER} beside each test module)",
        default="",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse options that contradict each other."""
    if config.getoption("clipcam_update", False) and config.getoption("clipcam_ci", False):
        raise pytest.UsageError("--clipcam-update writes baselines and --clipcam-ci forbids it; use one of them.")


class CamRegression:
    """Compares the maps of a model with baseline files: the value of the fixture ``cam_regression``.

    Attributes:
        messages: one per baseline that was written and is not reported yet; a test that wrote one fails at its end.
    """

    def __init__(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        self.messages: list[str] = []
        self._node: pytest.Item = request.node
        self._tmp_path = tmp_path
        self._report_dir: str | None = request.config.getoption("clipcam_report_dir", None)
        self._updates: bool = request.config.getoption("clipcam_update", False)
        self._folder: str = request.config.getini("clipcam_baselines")
        self._may_create = not request.config.getoption("clipcam_ci", False)
        self._unnamed = 0

    def check(
        self,
        model: "nn.Module",
        probes: "ProbesLike",
        name: str | None = None,
        *,
        method: "MethodLike" = "auto",
        layers: "Layers" = None,
        target: "TargetLike" = "similarity",
        score_scale: float | None = None,
        scales: "Sequence[float]" = (1.0,),
        flip: bool = False,
        shift: bool = False,
        fuse: "Fusion | None" = None,
        batch_size: int | None = None,
        precision: "Precision" = "float32",
        max_drift: float | None = None,
        false_alarm_rate: float = DEFAULT_RATE,
        clip: str | None = None,
        tokenizer: "Tokenizer | None" = None,
        towers: "Sequence[type[Tower]]" = (),
        encode_image: "EncodeImage | None" = None,
        encode_text: "EncodeText | None" = None,
    ) -> "DriftReport":
        """Fail the test if the comparison of ``probes`` with their baseline is an alarm.

        The baseline is ``clipcam_baselines/<test module>/<name>.safetensors`` beside the test module. If the ini option
        ``clipcam_baselines`` names a folder or a URL, it is ``<path of the test module>/<name>.safetensors`` in that
        folder. A missing baseline is written, and the test fails at its end: look at the maps, commit the file and run
        the test again.

        Args:
            model: a CLIP, or any module that holds one.
            probes: a :class:`ProbeSet`, a folder with a manifest, a file that ``ProbeSet.save`` wrote, the URL of
                either, or ``(image, prompt)`` pairs. A relative path is looked up beside the test first.
            name: name of the baseline, unique in the test module; by default the name of the test.
            method, layers, target, score_scale, scales, flip, shift, fuse, batch_size, precision: how maps are made, as
                in :class:`MapSettings`.
            max_drift: largest tolerated drift, 0 to 2; by default the conditions of :class:`DriftRule` decide.
            false_alarm_rate: of these conditions, per check, above 0 and at most 0.2.
            clip, tokenizer, towers, encode_image, encode_text: where the CLIP is and how it is read, as in
                :class:`ModelSpec`.

        Returns:
            The comparison that passed; if the baseline was just written, its comparison with itself.

        Raises:
            ModelError, TowerError: ``model`` holds no CLIP, several, or an unknown one.
            ProbeError, ConfigError: the probes or settings cannot be used, or do not fit the model.

        Example:
            In a test module::

                def test_the_maps_stay(cam_regression):
                    cam_regression.check(load_my_model(), "probes/", max_drift=0.3)
        """
        from clipcam_lightning.cam.finding import ModelSpec
        from clipcam_lightning.cam.settings import MapSettings
        from clipcam_lightning.cam.urls import is_url
        from clipcam_lightning.drift.rule import DriftRule
        from clipcam_lightning.errors import ClipCamWarning, ConfigError, SnapshotError
        from clipcam_lightning.monitoring.baselines import require_valid_map
        from clipcam_lightning.monitoring.explainer import LocalExplainer
        from clipcam_lightning.monitoring.monitor import Monitor
        from clipcam_lightning.probes.probe_set import ProbeSet
        from clipcam_lightning.storage.reading import exists

        try:
            file = self._baseline(name)
            writes = self._updates or not exists(file)
        except ConfigError as error:
            _fail(f"the option clipcam_baselines cannot be used: {error}")
        except OSError as error:
            _fail(f"{error.filename} cannot be read: {error.strerror}")
        if writes and not self._may_create:
            _fail(
                f"{file} does not exist, and --clipcam-ci forbids writing it. "
                f"Run once without --clipcam-ci{'' if is_url(file) else ', and commit the file'}."
            )
        if isinstance(probes, str | os.PathLike) and not is_url(probes):
            beside = self._node.path.parent / probes
            probes = beside if beside.exists() else probes
        probe_set = ProbeSet(probes)
        settings = MapSettings(
            method=method,
            layers=layers,
            target=target,
            score_scale=score_scale,
            scales=scales,
            flip=flip,
            shift=shift,
            fuse=fuse,
            batch_size=batch_size,
            precision=precision,
        )
        explainer = LocalExplainer(
            ModelSpec(
                clip=clip, tokenizer=tokenizer, towers=towers, encode_image=encode_image, encode_text=encode_text
            ).find(model),
            settings,
        )
        try:
            rule = DriftRule(max_drift, false_alarm_rate)
            monitor = Monitor(probe_set, rule=rule, baseline="start" if writes else file)
            outcome = monitor.evaluate(explainer, step=0, epoch=0)
            assert monitor.last is not None
            require_valid_map(monitor.last.baseline)
        except SnapshotError as error:
            advice = "" if writes else f"\n{self._how_to_accept()}"
            _fail(f"{file} cannot be used as the baseline: {error}{advice}")
        for note in outcome.notes:
            warnings.warn(f"{file}: {note.text}", ClipCamWarning, stacklevel=2)
        if writes:
            self._write(monitor.last, file)
        elif monitor.last.report.alarm:
            self._fail_for(monitor.last, file)
        elif self._report_dir is not None:
            self._write_page(monitor.last, file)
        return monitor.last.report

    def _baseline(self, name: str | None) -> "UPath":
        """Name the file of the next check after ``name``, or after the test and its number of unnamed checks."""
        spec = getattr(self._node, "callspec", None)
        if name is not None:
            text = f"{name}[{spec.id}]" if spec else name
        else:
            self._unnamed += 1
            test = self._node.nodeid.partition("::")[2] or self._node.name
            text = test if self._unnamed == 1 else f"{test}-{self._unnamed}"
        return self._module_folder() / f"{file_name(text)}.safetensors"

    def _module_folder(self) -> "UPath":
        """Return the folder for the baselines of the test module."""
        from clipcam_lightning.storage.paths import as_path, is_remote

        module, root = self._node.path, self._node.config.rootpath
        if not self._folder:
            return as_path(module.parent / FOLDER / file_name(module.stem))
        folder = as_path(self._folder)
        return self._below(folder if is_remote(folder) else as_path(root / self._folder))

    def _below(self, folder: "UPath") -> "UPath":
        """Return the folder of the test module below one that holds those of all modules."""
        module, root = self._node.path, self._node.config.rootpath
        below = module.relative_to(root) if module.is_relative_to(root) else Path(module.name)
        return folder.joinpath(*map(file_name, below.with_suffix("").parts))

    def _write(self, evaluation: "Evaluation", file: "UPath") -> None:
        from clipcam_lightning.storage.paths import is_remote

        try:
            evaluation.baseline.save(file)
        except OSError as error:
            _fail(f"the baseline {file} cannot be written: {error.strerror or error}")
        page = self._write_page(evaluation, file)
        commit = "" if is_remote(file) else ", commit the baseline"
        what_to_do = f"Check its maps in {page}{commit} and run again."
        self.messages.append(f"wrote the baseline {file}\n{what_to_do}")

    def _fail_for(self, evaluation: "Evaluation", file: "UPath") -> NoReturn:
        page = self._write_page(evaluation, file)
        _fail(f"{_describe(evaluation.report)}\nbaseline: {file}\nreport: {page}\n{self._how_to_accept()}")

    def _write_page(self, evaluation: "Evaluation", file: "UPath") -> "UPath":
        """Write the comparison as an HTML page, outside the project unless the user names a folder."""
        from clipcam_lightning.cam.writing import write_atomically
        from clipcam_lightning.visualization.report import html_pages

        page = self._report_folder() / f"{file.stem}.html"
        try:
            for path, html in html_pages(evaluation.baseline, evaluation.snapshot, evaluation.report, page.name):
                write_atomically(page.parent / path, html.encode())
        except OSError as error:
            _fail(f"the report {page} cannot be written: {error.strerror or error}")
        return page

    def _report_folder(self) -> "UPath":
        """Return the folder for the reports of the test: no other test module, and so no other worker, writes there."""
        from clipcam_lightning.errors import ConfigError
        from clipcam_lightning.storage.paths import as_path, is_remote

        if self._report_dir is None:
            return as_path(self._tmp_path)
        try:
            folder = as_path(self._report_dir)
        except ConfigError as error:
            _fail(f"the option --clipcam-report-dir cannot be used: {error}")
        return self._below(folder if is_remote(folder) else as_path(self._node.config.invocation_params.dir / folder))

    def _how_to_accept(self) -> str:
        return f'If the new maps are right, accept them: pytest --clipcam-update "{self._node.nodeid}"'


_REGRESSION = pytest.StashKey[CamRegression]()


@pytest.fixture
def cam_regression(request: pytest.FixtureRequest, tmp_path: Path) -> CamRegression:
    """Check that the maps of a model stay as they were: ``cam_regression.check(model, probes)``."""
    regression = CamRegression(request, tmp_path)
    request.node.stash[_REGRESSION] = regression
    return regression


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a test that wrote baselines at its end, so that one run writes those of all its checks."""
    return (yield from _reporting_baselines(item, "call"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail the teardown of a test if baselines were written in it, or in a setup after which the test did not run."""
    return (yield from _reporting_baselines(item, "teardown"))


def _reporting_baselines(item: pytest.Item, phase: str) -> Generator[None, Any, Any]:
    """Fail a phase of a test at its end if baselines were written; another failure gets their messages as a section."""
    try:
        result = yield
    except (pytest.skip.Exception, pytest.xfail.Exception):
        if messages := _take_messages(item):
            _fail("\n".join(messages))
        raise
    except BaseException:  # pytest's own outcomes are not derived from Exception
        for message in _take_messages(item):
            item.add_report_section(phase, "clipcam", message)
        raise
    if messages := _take_messages(item):
        _fail("\n".join(messages))
    return result


def _take_messages(item: pytest.Item) -> list[str]:
    """Return the messages that are not reported yet, each once."""
    regression = item.stash.get(_REGRESSION, None)
    if regression is None:
        return []
    messages, regression.messages = regression.messages, []
    return messages


def file_name(text: str) -> str:
    """Turn a text into a file name that any system accepts; different texts get different names."""
    slug = re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-.")[:NAME_LENGTH]
    if slug and slug == text:
        return slug
    return f"{slug}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")


def _describe(report: "DriftReport") -> str:
    """Describe an alarm, with one line per flagged probe."""
    from clipcam_lightning.visualization.report import format_metrics

    flagged = report.flagged
    lines = [": ".join(filter(None, (report.finding, report.grounds)))]
    for probe in flagged:
        metrics = ", ".join(f"{name} {text}" for name, text in format_metrics(probe).items())
        lines.append(f"  {probe.name}: {probe.reason} ({metrics})")
    return "\n".join(lines)


def _fail(message: str) -> NoReturn:
    pytest.fail(f"clipcam: {message}", pytrace=False)
