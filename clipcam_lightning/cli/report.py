"""``clipcam report``: the page of a whole training, or of two, from the files of the run; without a model."""

import json
from pathlib import Path
from typing import Any

from upath import UPath

from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.cli.outputs import check_outputs, write_file, write_pages
from clipcam_lightning.cli.reports import DRIFTED, PASSED, print_table
from clipcam_lightning.cli.terminal import Output, sanitize, warn
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.monitoring.recorded_run import RecordedRun, find_run, load_run
from clipcam_lightning.storage.paths import as_path, is_remote
from clipcam_lightning.storage.run_folder import is_file_of_a_run
from clipcam_lightning.visualization.animation import animate, encode_gif, encode_mp4, require_av
from clipcam_lightning.visualization.run_comparison import RunComparison, comparison_as_json, comparison_report
from clipcam_lightning.visualization.run_report import describe_alarm, run_as_json, run_report

PAGE, COMPARISON = "training.html", "comparison.html"


def run(options: Any) -> int:
    """Report on a run, or compare two.

    Returns:
        1 if the last evaluation of a run is an alarm, else 0.
    """
    if options.other is None:
        return _report(options)
    for name in ("gif", "mp4", "probe"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name} is of one run; give a single RUN.")
    return _compare(options)


def _report(options: Any) -> int:
    folder = find_run(options.run)
    html = options.html
    if not any((html, options.json, options.gif, options.mp4)):
        html = as_path(PAGE) if is_remote(folder) else folder / PAGE
    _check_files(html, options, [folder])
    if options.mp4 is not None:
        require_av()
    recorded = load_run(folder)
    probe = _choose_probe(recorded, options.probe)
    output = Output()
    print_table(output, recorded.last.report)
    _print_verdict(output, recorded)
    if html is not None:
        write_pages(html, run_report(recorded, html.name, first=options.probe or ""))
    if options.json is not None:
        write_file(options.json, _to_json(run_as_json(recorded)))
    animation = animate(recorded, probe) if options.gif is not None or options.mp4 is not None else None
    if options.gif is not None and animation is not None:
        write_file(options.gif, encode_gif(animation))
    if options.mp4 is not None and animation is not None:
        write_file(options.mp4, encode_mp4(animation))
    return DRIFTED if recorded.last.report.alarm else PASSED


def _compare(options: Any) -> int:
    folders = [find_run(options.run), find_run(options.other)]
    html = options.html
    if html is None and options.json is None:
        html = as_path(COMPARISON)
    _check_files(html, options, folders)
    comparison = RunComparison.of(*map(load_run, folders))
    output = Output()
    for recorded in comparison.runs:
        _print_verdict(output, recorded, f"{recorded.folder}: ")
    output.print(sanitize(str(comparison)), style="bold", soft_wrap=True)
    if html is not None:
        write_pages(html, comparison_report(comparison, html.name))
    if options.json is not None:
        write_file(options.json, _to_json(comparison_as_json(comparison)))
    return DRIFTED if any(each.last.report.alarm for each in comparison.runs) else PASSED


def _check_files(html: UPath | None, options: Any, folders: list[UPath]) -> None:
    """Refuse outputs that cannot be written, or that would replace a file of a run."""
    outputs = [html, options.json, options.gif, options.mp4]
    for path in filter(None, outputs):
        if is_file_of_a_run(path.name) and any(_locate(path.parent) == _locate(folder) for folder in folders):
            raise ConfigError(f"{path} is a file of the run itself; give the report another name, such as {PAGE}.")
    check_outputs(*outputs)


def _locate(path: UPath) -> str:
    return str(path.resolve() if isinstance(path, Path) else path)


def _choose_probe(run: RecordedRun, name: str | None) -> str:
    if name is None:
        return run.worst_first[0]
    if name not in run.last.probes:
        raise ConfigError(f"the run has no probe {name!r}.{suggest(name, run.worst_first)}")
    return name


def _print_verdict(output: Output, run: RecordedRun, label: str = "") -> None:
    report = run.last.report
    text = f"{label}{describe_alarm(run)}; at the end: {report}"
    output.print(sanitize(text), style="bold red" if report.alarm else "bold green", soft_wrap=True)
    for problem in run.problems:
        warn(problem)


def _to_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=2, allow_nan=False).encode()
