"""``clipcam rank``: measure which CAM method is to be trusted on a model."""

import json
from typing import Any

from rich.table import Table

from clipcam_lightning.analysis.method_measurement import BUDGET, MethodBench
from clipcam_lightning.analysis.method_ranking import MethodRanking
from clipcam_lightning.cli.models import load_clip, read_model_source
from clipcam_lightning.cli.outputs import check_outputs, write_file
from clipcam_lightning.cli.terminal import Output, sanitize, show_progress
from clipcam_lightning.probes.manifest import list_probe_files
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.visualization.ranking_report import (
    MEANINGS,
    METRICS,
    format_row,
    ranking_as_json,
    ranking_report,
)


def run(options: Any) -> int:
    """Measure the methods, print the table and the recommended setting, and write the requested reports.

    Returns:
        0.
    """
    check_outputs(
        options.json, options.html, inputs=[*list_probe_files(options.probes), options.checkpoint, options.config]
    )
    budget = BUDGET if options.budget is None else options.budget
    source, probes = read_model_source(options), ProbeSet(options.probes)
    with show_progress(time_left=True) as progress:
        loading = progress.add_task("loading the model", total=None)
        clip = load_clip(source).clip
        bench = MethodBench(clip, probes, budget, options.batch_size)
        candidates, left_out = bench.choose_candidates(options.methods)
        progress.remove_task(loading)
        measuring = progress.add_task("", total=sum(candidate.forwards for candidate in candidates))
        rows = []
        for candidate in candidates:
            progress.update(measuring, description=f"measuring {sanitize(candidate.method.name)}")
            rows.append(bench.measure(candidate))
            progress.advance(measuring, candidate.forwards)
    ranking = MethodRanking.of(bench, rows, left_out)
    output = Output()
    table = _make_table(ranking)
    output.print(table)
    output.explain({str(column.header): MEANINGS.get(str(column.header), "") for column in table.columns})
    for name, reason in ranking.left_out.items():
        output.print(sanitize(f"left out: {name} {reason}"), style="dim", soft_wrap=True)
    output.print(sanitize(f"recommended: {ranking.best.setting}"), style="bold green", soft_wrap=True)
    if options.json is not None:
        write_file(options.json, json.dumps(ranking_as_json(ranking), indent=2, allow_nan=False).encode())
    if options.html is not None:
        write_file(options.html, ranking_report(ranking, bench.prepared.pixels, bench.prepared.masks).encode())
    return 0


def _make_table(ranking: MethodRanking) -> Table:
    """Tabulate the methods, the best first, with the metrics that at least one of them has."""
    rows = [format_row(row) for row in ranking.rows]
    columns = [name for name in METRICS if any(name in row for row in rows)]
    table = Table()
    table.add_column("Method", overflow="fold", min_width=max(len(row.method) for row in ranking.rows))
    for name in columns:
        table.add_column(name, justify="right")
    table.add_column("Forwards", justify="right")
    table.add_column("Problem", overflow="fold")
    for title, ranked, row in zip(ranking.titles, ranking.rows, rows, strict=True):
        cells = [row.get(name, "") for name in columns]
        remarks = str(ranked.forwards), "; ".join(ranked.problems)
        table.add_row(sanitize(title), *cells, *remarks, style="red" if ranked.problems else None)
    return table
