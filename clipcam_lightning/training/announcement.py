"""What a user is told when the first evaluation of a run is done."""

from clipcam_lightning.cam.encoders import EncoderPair
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.towers.traced import TracedTower
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks import name_loggers_without_images


def announce(
    evaluation: Evaluation,
    clip: ClipModel,
    sinks: list[Sink],
    *,
    directory: str | None,
    are_probes_given: bool,
    is_baseline_given: bool,
) -> list[str]:
    """Say what is monitored, which loggers show no images, and whether the maps can be trusted.

    Args:
        evaluation: the first one of a fit.
        clip: what is monitored.
        sinks: of the run.
        directory: of the run's files; ``None`` if none could be written.
        are_probes_given: whether the user gave the probes; else they are of a batch.
        is_baseline_given: whether the user gave the baseline.

    Returns:
        One to three lines.
    """
    snapshot, baseline = evaluation.snapshot, evaluation.baseline
    layers = snapshot.info.layers if len(snapshot.info.layers) < 3 else (f"{len(snapshot.info.layers)} layers",)
    start = f"step {baseline.info.step} {'of a file' if is_baseline_given else 'of the fit before'}"
    if baseline is snapshot:
        start = f"the model at step {snapshot.info.step}" if snapshot.info.step else "the model before training"
    files = f"; files in {directory}" if directory else ""
    lines = [
        f"{len(snapshot.names)} probes {'as given' if are_probes_given else 'of a batch'}; maps by "
        f"{snapshot.info.method!r} of {' and '.join(layers)}{_describe_origin(clip)}; baseline: {start}{files}"
    ]
    if without := name_loggers_without_images(sinks):
        verb = "shows" if len(without) == 1 else "show"
        lines.append(f"{' and '.join(without)} {verb} no images{f'; they are in {directory}' if directory else ''}")
    if not baseline.has_trusted_maps and baseline.map_agrees is not None:
        lines.append(
            f"{baseline.map_agreement}, so that maps alone raise no alarm; images without their objects still do. "
            "clipcam rank finds a method that fits."
        )
    return lines


def _describe_origin(clip: ClipModel) -> str:
    """Say which part of the module is monitored where that is not a CLIP that was found by its methods."""
    if not isinstance(clip.module, EncoderPair):
        return ""
    kind = ", whose layers were found by tracing one pass" if isinstance(clip.tower, TracedTower) else ""
    return f"; images are embedded by {clip.module}{kind}"
