"""One look at a probe set with a model that the shell names."""

from clipcam_lightning.cli.models import ModelSource, load_clip
from clipcam_lightning.cli.terminal import progress, warn
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.monitoring.monitor import Monitor


def evaluate(monitor: Monitor, source: ModelSource) -> Evaluation:
    """Load the model, map the probes of ``monitor`` and compare with its baseline.

    Raises:
        ClipCamError: model, probes, settings and baseline do not go together.
    """
    with progress() as bar:
        loading = bar.add_task("loading the model", total=None)
        loaded = load_clip(source)
        bar.remove_task(loading)
        bar.add_task(f"mapping {len(monitor.probes)} probes", total=None)
        outcome = monitor.evaluate(loaded.clip, step=loaded.step, epoch=loaded.epoch)
    if outcome.note:
        warn(outcome.note)
    assert monitor.last is not None  # the look was just taken
    return monitor.last
