"""Evaluate a probe set once, without a training."""

from collections.abc import Sequence

from torch import nn

from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.fuse import Fusion
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cam.precision import Precision
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import TargetLike
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.drift.rule import DEFAULT_RATE, DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.probes.probe_set import ProbeSet, ProbesLike


def evaluate(
    model: nn.Module | ClipModel,
    probes: ProbesLike,
    *,
    baseline: PathLike | Snapshot | None = None,
    max_drift: float | None = None,
    false_alarm_rate: float = DEFAULT_RATE,
    method: MethodLike = "auto",
    layers: Layers = None,
    target: TargetLike = "similarity",
    score_scale: float | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    shift: bool = False,
    fuse: Fusion | None = None,
    batch_size: int | None = None,
    precision: Precision = "float32",
    clip: str | None = None,
    tokenizer: Tokenizer | None = None,
    towers: Sequence[type[Tower]] = (),
    encode_image: EncodeImage | None = None,
    encode_text: EncodeText | None = None,
) -> Evaluation:
    """Evaluate a probe set once, without a training.

    Args:
        model: any module that holds a CLIP, or a :class:`ClipModel`.
        probes: a :class:`ProbeSet`, or what it is made of.
        baseline: a snapshot, its file or the URL of its file; by default the evaluation is its own baseline.
        max_drift: largest tolerated drift, 0 to 2; by default the conditions of :class:`DriftRule` decide.
        false_alarm_rate: of these conditions, per evaluation, above 0 and at most 0.2.
        method, layers, target, score_scale, scales, flip, shift, fuse, batch_size, precision: how maps are made, as in
            :class:`MapSettings`.
        clip, tokenizer, towers, encode_image, encode_text: where the CLIP is and how it is read, as in
            :class:`ModelSpec`.

    Returns:
        Snapshot, comparison and metrics; :func:`contact_sheet`, :func:`probe_panel` and :func:`html_report` draw them.

    Raises:
        ModelError, TowerError: ``model`` holds no CLIP, several, or an unknown one.
        ProbeError, ConfigError: the probes or settings do not fit the model.
        SnapshotError: the baseline cannot be read, or was made with other probes or settings.

    Example:
        >>> from clipcam_lightning import evaluate
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> evaluation.snapshot.maps.shape, evaluation.report.alarm
        (torch.Size([2, 8, 8]), False)
    """
    settings = MapSettings(
        method=method,
        layers=layers,
        target=target,
        score_scale=score_scale,
        scales=scales,
        flip=flip,
        shift=shift,
        fuse=fuse,
        batch_size=batch_size,
        precision=precision,
    )
    found = ModelSpec(
        clip=clip, tokenizer=tokenizer, towers=towers, encode_image=encode_image, encode_text=encode_text
    ).find(model)
    rule = DriftRule(max_drift, false_alarm_rate)
    monitor = Monitor(ProbeSet(probes), rule=rule, baseline="start" if baseline is None else baseline)
    monitor.evaluate(LocalExplainer(found, settings), step=0, epoch=0)
    assert monitor.last is not None  # the evaluation has just taken place
    return monitor.last
