"""Report on a comparison: a table and the verdict on the terminal, and JSON and HTML files."""

import json
from textwrap import fill

from rich.table import Table
from upath import UPath

from clipcam_lightning.cli.outputs import write_file, write_pages, writing
from clipcam_lightning.cli.terminal import TEXT_WIDTH, Output, sanitize
from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.report_json import report_as_json
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.visualization.report import METRICS, format_metrics, html_pages

PASSED, DRIFTED = 0, 1
ROWS = 40  # probes in the table; more would scroll the verdict off the screen
COLUMNS = ("Drift", "Drift / noise floor", "Background score", "Shared gain", "Energy on object")


def save_snapshot(snapshot: Snapshot, file: UPath) -> None:
    """Write a snapshot and print what it holds."""
    with writing(file):
        snapshot.save(file)
    info, count = snapshot.info, len(snapshot.names)
    probes = "1 probe" if count == 1 else f"{count} probes"
    Output().print(
        f"wrote {sanitize(str(file))}: {probes}, {info.method} at {', '.join(info.layers)}, step {info.step}",
        soft_wrap=True,
    )


def report_on(
    baseline: Snapshot, snapshot: Snapshot, report: DriftReport, *, json_file: UPath | None, html_file: UPath | None
) -> int:
    """Print the table, the verdict and if it is an alarm the rule of a comparison, and write the requested reports.

    Args:
        baseline: the earlier snapshot.
        snapshot: the later snapshot.
        report: their comparison.
        json_file: where to write the metrics; ``None`` for nowhere.
        html_file: where to write the page with the maps; ``None`` for nowhere.

    Returns:
        The exit code: 1 if the report is an alarm, else 0.

    Raises:
        ConfigError: a file cannot be written.
    """
    output = Output()
    print_table(output, report)
    output.print(sanitize(str(report)), style="bold red" if report.alarm else "bold green", soft_wrap=True)
    if report.alarm:
        output.print(_explain_rule(report.rule, min(output.width, TEXT_WIDTH)), style="dim", soft_wrap=True)
    write_reports(baseline, snapshot, report, json_file=json_file, html_file=html_file)
    return DRIFTED if report.alarm else PASSED


def print_table(output: Output, report: DriftReport) -> None:
    """Print a table of the probes, flagged ones first, and what its columns mean."""
    table = _make_table(report)
    output.print(table)
    output.explain({str(column.header): METRICS.get(str(column.header), "") for column in table.columns})


def write_reports(
    baseline: Snapshot, snapshot: Snapshot, report: DriftReport, *, json_file: UPath | None, html_file: UPath | None
) -> None:
    """Write the requested reports; the arguments are those of :func:`report_on`."""
    if json_file is not None:
        write_file(json_file, json.dumps(report_as_json(report), indent=2, allow_nan=False).encode())
    if html_file is not None:
        write_pages(html_file, html_pages(baseline, snapshot, report, html_file.name))


def _make_table(report: DriftReport) -> Table:
    """Tabulate the probes, flagged ones first, with the metrics that at least one probe has."""
    order = [report.probes[i] for i in report.flagged_first]
    rows = [format_metrics(probe) for probe in order[:ROWS]]
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    hidden = len(order) - len(rows)
    table = Table(caption=f"and {hidden} more" if hidden else None)
    table.add_column("Probe", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Flagged", overflow="fold")
    for probe, row in zip(order, rows, strict=False):
        cells = [row.get(name, "") for name in columns]
        table.add_row(sanitize(probe.name), *cells, _remark_on(probe), style="red" if probe.flagged else None)
    return table


def _remark_on(probe: ProbeDrift) -> str:
    """Say why a probe is flagged, or why it cannot be, and what its map says if it carries no information."""
    remarks = [probe.reason or ("" if probe.has_valid_baseline else f"no valid baseline: {probe.baseline_state}")]
    if probe.state.is_degenerate:
        remarks.append(probe.state.words)
    return sanitize("; ".join(filter(None, remarks)))


def _explain_rule(rule: DriftRule, width: int) -> str:
    """Say what an alarm means, with one line per condition, broken at ``width`` columns."""
    lines = ["an alarm means that"]
    conditions = [f"{condition}; or" for condition in rule.conditions[:-1]] + [f"{rule.conditions[-1]}."]
    return "\n".join(lines + [fill(each, width, initial_indent="- ", subsequent_indent="  ") for each in conditions])
