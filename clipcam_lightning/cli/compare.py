"""``clipcam compare``: two snapshots, no model."""

from typing import Any

from clipcam_lightning.cli.outputs import check_outputs
from clipcam_lightning.cli.reports import report_on
from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot


def run(options: Any) -> int:
    """Compare, and report; 1 if attention drifted."""
    check_outputs(options.json, options.html, inputs=(options.baseline, options.snapshot))
    rule = DriftRule(options.max_drift)
    baseline, snapshot = Snapshot.load(options.baseline), Snapshot.load(options.snapshot)
    return report_on(baseline, snapshot, compare(baseline, snapshot, rule), json_file=options.json, html=options.html)
