"""``clipcam check``: compare the maps of a model with a baseline file."""

from typing import Any

from clipcam_lightning.cli.evaluate import evaluate
from clipcam_lightning.cli.models import read_model_source
from clipcam_lightning.cli.outputs import check_outputs
from clipcam_lightning.cli.reports import report_on, save_snapshot, write_reports
from clipcam_lightning.cli.settings import read_map_settings, read_map_settings_like
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.probes.manifest import list_probe_files
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.reading import exists


def run(options: Any) -> int:
    """Explain the probes and compare them with the baseline, or replace the baseline.

    Returns:
        1 if the evaluation is an alarm, else 0.
    """
    updates, file = options.update_baseline, options.baseline
    inputs = [file, *list_probe_files(options.probes), options.checkpoint, options.config]
    check_outputs(options.json, options.html, inputs=inputs)
    if updates:
        check_outputs(file)  # of the inputs, only a snapshot can be loaded below
    if exists(file):
        settings = read_map_settings_like(options, Snapshot.load(file).info)
    elif updates:
        settings = read_map_settings(options)
    else:
        raise SnapshotError(f"the baseline {file} does not exist; --update-baseline writes it from this model.")
    source = read_model_source(options)
    monitor = Monitor(
        ProbeSet(options.probes),
        rule=DriftRule(options.max_drift, options.false_alarm_rate),
        baseline="start" if updates else file,
    )
    evaluation = evaluate(monitor, source, settings)
    comparison = evaluation.baseline, evaluation.snapshot, evaluation.report
    if not updates:
        return report_on(*comparison, json_file=options.json, html_file=options.html)
    save_snapshot(evaluation.snapshot, file)
    write_reports(*comparison, json_file=options.json, html_file=options.html)
    return 0
