"""Evaluate a probe set with the model that the options of a command select."""

from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cli.models import ModelSource, load_clip
from clipcam_lightning.cli.terminal import show_progress, warn
from clipcam_lightning.monitoring.baselines import require_valid_map
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor


def evaluate(monitor: Monitor, source: ModelSource, settings: MapSettings) -> Evaluation:
    """Load the model, explain the probes of the monitor and compare them with its baseline.

    Args:
        monitor: with probes and, for a comparison, a baseline.
        source: which model to load.
        settings: how maps are made.

    Returns:
        The evaluation; its step and epoch are those of the checkpoint.

    Raises:
        ClipCamError: model, probes, settings and baseline do not fit each other, or the baseline has no valid map.
    """
    with show_progress() as progress:
        loading = progress.add_task("loading the model", total=None)
        loaded = load_clip(source)
        progress.remove_task(loading)
        progress.add_task(f"explaining {len(monitor.probes)} probes", total=None)
        outcome = monitor.evaluate(LocalExplainer(loaded.clip, settings), step=loaded.step, epoch=loaded.epoch)
    assert monitor.last is not None  # the evaluation has just taken place
    require_valid_map(monitor.last.baseline)
    for note in outcome.notes:
        warn(note.text)
    return monitor.last
