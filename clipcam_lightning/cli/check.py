"""``clipcam check``: a snapshot of now against a baseline file."""

from typing import Any

from clipcam_lightning.cam.arguments import require_positive
from clipcam_lightning.cam.methods import METHODS, check_method
from clipcam_lightning.cli.evaluate import evaluate
from clipcam_lightning.cli.models import source_of
from clipcam_lightning.cli.outputs import check_outputs
from clipcam_lightning.cli.reports import report_on, save_snapshot, write_reports
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.errors import ConfigError, SnapshotError
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.probes.probe_set import ProbeSet


def run(options: Any) -> int:
    """Map the probes and compare with the baseline, or write it anew; 1 if attention drifted."""
    updates, file = options.update_baseline, options.baseline
    reports, inputs = (options.json, options.html), (options.probes, options.checkpoint)
    if updates:
        check_outputs(file, *reports, inputs=inputs)
    else:
        check_outputs(*reports, inputs=(file, *inputs))
    require_positive(batch_size=options.batch_size)
    if not (updates or file.exists()):
        raise SnapshotError(f"the baseline {file} does not exist; --update-baseline writes it from this model.")
    known = Snapshot.load(file).info if file.exists() else None
    source = source_of(options)
    monitor = Monitor(
        ProbeSet(options.probes),
        **_settings(options, known),
        rule=DriftRule(options.max_drift),
        baseline="start" if updates else file,
        batch_size=options.batch_size,
    )
    seen = evaluate(monitor, source)
    if updates:
        save_snapshot(seen.snapshot, file)
        write_reports(seen.baseline, seen.snapshot, seen.report, json_file=options.json, html=options.html)
        return 0
    return report_on(seen.baseline, seen.snapshot, seen.report, json_file=options.json, html=options.html)


def _settings(options: Any, known: SnapshotInfo | None) -> dict[str, Any]:
    """How the maps are made: as was said, else as those of the baseline were.

    Raises:
        ConfigError: they were made in a way that cannot be said in the shell.
    """
    if options.method is not None:
        check_method(options.method)
    if known is None:
        return {"method": options.method or "auto", "layers": options.layers, "target": "similarity"}
    method = options.method or known.method
    if not options.update_baseline and known.target != "similarity":
        raise ConfigError(
            f"the baseline maps the target {known.target!r}, which only code can say; compare with compare() in "
            "Python, or take a new baseline with --update-baseline, of the similarity."
        )
    if method not in ("auto", *METHODS):
        raise ConfigError(
            f"the baseline was made with the method {method!r}, which is none of the package's; compare with "
            "compare() in Python, or take a new baseline with --update-baseline --method NAME."
        )
    layers = options.layers or (known.layers if method == known.method else None)
    return {"method": method, "layers": layers, "target": "similarity"}
