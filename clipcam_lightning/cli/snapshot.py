"""``clipcam snapshot``: the maps of a probe set, as a file."""

from typing import Any

from clipcam_lightning.cam.arguments import require_positive
from clipcam_lightning.cam.methods import check_method
from clipcam_lightning.cli.evaluate import evaluate
from clipcam_lightning.cli.models import source_of
from clipcam_lightning.cli.outputs import check_outputs
from clipcam_lightning.cli.reports import save_snapshot
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.probes.probe_set import ProbeSet


def run(options: Any) -> int:
    """Map the probes and write the snapshot."""
    check_outputs(options.out, inputs=(options.probes, options.checkpoint))
    check_method(options.method)
    require_positive(batch_size=options.batch_size)
    source = source_of(options)
    monitor = Monitor(
        ProbeSet(options.probes),
        method=options.method,
        layers=options.layers,
        target="similarity",
        rule=DriftRule(),
        batch_size=options.batch_size,
    )
    save_snapshot(evaluate(monitor, source).snapshot, options.out)
    return 0
