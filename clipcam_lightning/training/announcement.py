"""What a user is told when the first evaluation of a run is done."""

from clipcam_lightning.cam.encoders import EncoderPair
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.towers.traced import TracedTower
from clipcam_lightning.monitoring.baselines import has_valid_map
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
    """Say what is monitored, which loggers show no images, and what cannot be trusted or tested.

    Args:
        evaluation: the first one of a fit.
        clip: what is monitored.
        sinks: of the run.
        directory: of the run's files; ``None`` if none could be written.
        are_probes_given: whether the user gave the probes; else they are of a batch.
        is_baseline_given: whether the user gave the baseline.

    Returns:
        One to four lines.
    """
    snapshot, baseline = evaluation.snapshot, evaluation.baseline
    layers = snapshot.info.layers if len(snapshot.info.layers) < 3 else (f"{len(snapshot.info.layers)} layers",)
    start = f"step {baseline.info.step} {'of a file' if is_baseline_given else 'of the fit before'}"
    if baseline is snapshot:
        start = f"the model at step {snapshot.info.step}" if snapshot.info.step else "the model before training"
    files = f"; files in {directory}" if directory else ""
    lines = [
        f"{len(snapshot.names)} probes {'as given' if are_probes_given else 'from a batch'}; method "
        f"{snapshot.info.method!r} on {' and '.join(layers)}{_describe_origin(clip)}; baseline: {start}{files}"
    ]
    if without := name_loggers_without_images(sinks):
        verb = "shows" if len(without) == 1 else "show"
        lines.append(f"{' and '.join(without)} {verb} no images{f'; they are in {directory}' if directory else ''}")
    untested = _describe_untested_backgrounds(evaluation)
    if not has_valid_map(baseline):
        lines.append("all maps of the baseline are degenerate, so that there is no map to compare with.")
    elif not baseline.has_trusted_maps and baseline.map_agrees is not None:
        lines.append(
            f"{baseline.map_agreement}, so that their drift raises no alarm. clipcam rank finds a method that fits."
        )
    return [*lines, untested] if untested else lines


def _describe_untested_backgrounds(evaluation: Evaluation) -> str:
    """Say which backgrounds cannot be tested, and what to do; ``""`` if all can."""
    snapshot, rule = evaluation.snapshot, evaluation.report.rule
    if rule.max_drift is not None or snapshot.background_score is None or not snapshot.similarity.isfinite().all():
        return ""
    count, untested = len(snapshot.names), int(snapshot.background_score.isnan().sum())
    advice = "Each needs three other images with another prompt: give more probes, or let a loader shuffle."
    if untested == count:
        return f"backgrounds are not tested, so that shortcuts of single classes and diffuse ones are missed. {advice}"
    return f"the backgrounds of {untested} of {count} probes are not tested. {advice}" if untested else ""


def _describe_origin(clip: ClipModel) -> str:
    """Say which part of the module is monitored where that is not a CLIP that was found by its methods."""
    if not isinstance(clip.module, EncoderPair):
        return ""
    kind = ", whose layers were found by tracing one pass" if isinstance(clip.tower, TracedTower) else ""
    return f"; images are embedded by {clip.module}{kind}"
