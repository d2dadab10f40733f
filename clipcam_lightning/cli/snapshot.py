"""``clipcam snapshot``: write the maps of a probe set to a file."""

from typing import Any

from clipcam_lightning.cli.evaluate import evaluate
from clipcam_lightning.cli.models import read_model_source
from clipcam_lightning.cli.outputs import check_outputs
from clipcam_lightning.cli.reports import save_snapshot
from clipcam_lightning.cli.settings import read_map_settings
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.probes.manifest import list_probe_files
from clipcam_lightning.probes.probe_set import ProbeSet


def run(options: Any) -> int:
    """Explain the probes and write the snapshot.

    Returns:
        0.
    """
    check_outputs(options.out, inputs=[*list_probe_files(options.probes), options.checkpoint, options.config])
    settings, source = read_map_settings(options), read_model_source(options)
    monitor = Monitor(ProbeSet(options.probes))
    save_snapshot(evaluate(monitor, source, settings).snapshot, options.out)
    return 0
