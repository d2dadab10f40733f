"""What came out, for people and for machines."""

import json
from pathlib import Path

from rich.table import Table

from clipcam_lightning.cli.outputs import writing
from clipcam_lightning.cli.terminal import Output, plain
from clipcam_lightning.drift.compare import DriftReport, ProbeDrift
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.storage.atomic import write_atomically
from clipcam_lightning.visualization.report import format_metrics, html_report, report_as_json

PASSED, DRIFTED = 0, 1
ROWS = 40  # probes of a table; more would push the verdict's neighbours off the screen
METRICS = ("Drift", "Drift / noise floor", "Shared gain", "Energy on object")


def save_snapshot(snapshot: Snapshot, file: Path) -> None:
    """Write a snapshot, and say so."""
    with writing(file):
        snapshot.save(file)
    info, count = snapshot.info, len(snapshot.names)
    probes = "1 probe" if count == 1 else f"{count} probes"
    Output().print(
        f"wrote {plain(str(file))}: {probes}, {info.method} at {', '.join(info.layers)}, step {info.step}",
        soft_wrap=True,
    )


def report_on(
    baseline: Snapshot, snapshot: Snapshot, report: DriftReport, *, json_file: Path | None, html: Path | None
) -> int:
    """Write the reports that were asked for, print the table and the verdict; 1 if attention drifted."""
    output = Output()
    output.print(_table(report))
    output.print(plain(f"an alarm means: {report.rule}"), style="dim", soft_wrap=True)
    output.print(plain(str(report)), style="bold red" if report.alarm else "bold green", soft_wrap=True)
    write_reports(baseline, snapshot, report, json_file=json_file, html=html)
    return DRIFTED if report.alarm else PASSED


def write_reports(
    baseline: Snapshot, snapshot: Snapshot, report: DriftReport, *, json_file: Path | None, html: Path | None
) -> None:
    """Write a comparison to the files that were asked for."""
    if json_file is not None:
        _write(json_file, json.dumps(report_as_json(report), indent=2, allow_nan=False))
    if html is not None:
        _write(html, html_report(baseline, snapshot, report))


def _write(file: Path, text: str) -> None:
    with writing(file):
        write_atomically(file, text.encode())
    Output().print(f"wrote {plain(str(file))}", soft_wrap=True)


def _table(report: DriftReport) -> Table:
    """The probes in the order of the report, with the metrics that are known of any of them."""
    order = [report.probes[i] for i in report.flagged_first]
    rows = [format_metrics(probe) for probe in order[:ROWS]]
    columns = [name for name in METRICS if any(name in row for row in rows)]
    more = len(order) - len(rows)
    table = Table(caption=f"and {more} more, which moved less" if more else None)
    table.add_column("Probe", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Flagged", overflow="fold")
    for probe, row in zip(order, rows, strict=False):
        cells = [row.get(name, "") for name in columns]
        table.add_row(plain(probe.name), *cells, _remark(probe), style="red" if probe.flagged else None)
    return table


def _remark(probe: ProbeDrift) -> str:
    """Why a probe is flagged, or why it cannot be."""
    return plain(probe.reason) or (f"no valid baseline: {probe.degenerate}" if not probe.has_valid_baseline else "")
