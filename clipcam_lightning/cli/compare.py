"""``clipcam compare``: compare two snapshots, without a model."""

from typing import Any

from clipcam_lightning.cli.outputs import check_outputs
from clipcam_lightning.cli.reports import report_on
from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.monitoring.baselines import require_valid_map


def run(options: Any) -> int:
    """Compare two snapshots and report on the drift.

    Returns:
        1 if the later snapshot is an alarm, else 0.
    """
    check_outputs(options.json, options.html, inputs=(options.baseline, options.snapshot))
    rule = DriftRule(options.max_drift, options.false_alarm_rate)
    baseline, snapshot = Snapshot.load(options.baseline), Snapshot.load(options.snapshot)
    require_valid_map(baseline)
    report = compare(baseline, snapshot, rule)
    return report_on(baseline, snapshot, report, json_file=options.json, html_file=options.html)
