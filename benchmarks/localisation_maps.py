"""Every map that the localisation benchmark grades, made in as few passes as possible."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.grading import edges
from clipcam_lightning import METHODS, ClipModel, Contrast, LogSoftmax, Method, explain
from clipcam_lightning.cam.capture import CurvatureCapture, ScoreCapture
from clipcam_lightning.cam.fuse import fuse_maps
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.targets import Similarity, Target
from clipcam_lightning.cam.towers.tower import BLOCKS

LAYERS = ((-1,), (-2,), (-2, -1))
LAST_THREE = (-3, -2, -1)  # for towers whose layers have equal grids; these are all layers of the ViT
NO_TARGET = ("eigencam", "fem", "rollout", "finercam")  # three use no prompt, the last has its own target
CHANNELWISE = ("scorecam", "ablationcam")  # one forward per channel
CONTROL_GRID = (8, 8)
FORWARDS = 64  # perturbed images per pass

SIMILARITY = "similarity"
BY_BLOCK = ("attnlrp", "input_x_gradient", "integrated_gradients")  # of these, each layer is tried alone

LAYER_METHODS = [  # they share a gradient
    each
    for each in METHODS.values()
    if issubclass(CurvatureCapture, each.reads) and not (each.target or each.rules or each.steps)
]
SCORE_METHODS = [each for each in METHODS.values() if each.reads is ScoreCapture]
OTHER_METHODS = [each for each in METHODS.values() if each not in LAYER_METHODS + SCORE_METHODS]


class Setting(NamedTuple):
    """How a map is made.

    Attributes:
        method: a name in ``METHODS``, or ``"edges"`` for the control.
        layers: indices; ``None`` for the method's own choice.
        target: its name; ``None`` if the map does not depend on a target.
    """

    method: str
    layers: tuple[int, ...] | None
    target: str | None


Maps: TypeAlias = tuple[Setting, Float[Tensor, "n p h w"]]


@dataclass(frozen=True)
class Inputs:
    """Scenes as input of a model.

    Attributes:
        images: preprocessed.
        prompts: of each image, one per object in it.
        targets: by their names.
    """

    images: Float[Tensor, "n 3 y x"]
    prompts: Sequence[Sequence[str]]
    targets: Mapping[str, Target]

    def first(self, count: int) -> "Inputs":
        """Keep the first images."""
        return Inputs(self.images[:count], self.prompts[:count], self.targets)

    def only(self, target: str) -> "Inputs":
        """Keep one target."""
        return Inputs(self.images, self.prompts, {target: self.targets[target]})


def targets_for(objects: int, captions: Sequence[str]) -> dict[str, Target]:
    """Make the targets for scenes with so many objects, each of which is contrasted with the others.

    A single object is contrasted with all captions of its world. Its own caption among them changes only the length of
    the gradient.
    """
    negatives = tuple(captions) if objects == 1 else ()
    targets = (Similarity(negatives=negatives), Contrast(negatives), LogSoftmax(negatives))
    return dict(zip((SIMILARITY, "contrast", "logsoftmax"), targets, strict=True))


def cheap_maps(clip: ClipModel, inputs: Inputs) -> Iterator[Maps]:
    """Make the maps of the control, and of all methods that take one or two passes."""
    control = edges(inputs.images, CONTROL_GRID)[:, None].expand(-1, len(inputs.prompts[0]), -1, -1)
    yield Setting("edges", None, None), control
    yield Setting("auto", None, SIMILARITY), _maps(clip, inputs, "auto", None, SIMILARITY)
    yield from layer_maps(clip, inputs)
    for method in OTHER_METHODS:
        for layers in _layer_choices(clip, method):
            for target in inputs.targets:
                if not method.missing(clip.tower) and _depends_on(target, method):
                    yield _setting(method, layers, target), _maps(clip, inputs, method, layers, target)


def _layer_choices(clip: ClipModel, method: Method) -> Sequence[tuple[int, ...] | None]:
    blocks = BLOCKS in clip.tower.offers
    if method.name == "gae" and blocks:
        return (-1,), (-2, -1), LAST_THREE
    if method.name in BY_BLOCK:
        return ((0,), (1,), (2,)) if blocks else LAYERS
    return (None,)


def layer_maps(clip: ClipModel, inputs: Inputs) -> Iterator[Maps]:
    """Make the maps of every method that reads one layer, for each choice of layers, in one pass per target."""
    choices = (*LAYERS, LAST_THREE) if BLOCKS in clip.tower.offers else LAYERS
    deepest = max(choices, key=len)
    for target, score in inputs.targets.items():
        captures = _map_captures(clip, inputs, lambda capture: capture, CurvatureCapture, score, deepest)
        # Captures come prompt by prompt, and of each prompt from the first layer to the last.
        prompts = [captures[start : start + len(deepest)] for start in range(0, len(captures), len(deepest))]
        for method in LAYER_METHODS:
            if _depends_on(target, method):
                maps = [[method(capture) for capture in prompt] for prompt in prompts]
                for layers in choices:
                    chosen = [fuse_maps([prompt[layer] for layer in layers], "mean") for prompt in maps]
                    yield _setting(method, layers, target), torch.cat(chosen, dim=1)


def score_maps(clip: ClipModel, inputs: Inputs, method: Method) -> Iterator[Maps]:
    """Make the maps of a perturbation-based method, in one pass for all targets."""
    (maps,) = _map_captures(clip, inputs, method, ScoreCapture, SideBySide(tuple(inputs.targets.values())))
    for target, own in zip(inputs.targets, maps.chunk(len(inputs.targets), dim=1), strict=True):
        yield _setting(method, None, target), own


@dataclass(frozen=True)
class SideBySide(Target):
    """A target whose scores are those of several targets, one after the other."""

    name = "side by side"
    targets: tuple[Target, ...]

    @property
    def negatives(self) -> Sequence[str] | Tensor:
        """The negatives, which all targets share."""
        return self.targets[0].negatives

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n r"]:
        """Compute the scores of all prompts by the first target, then by the second, and so on."""
        return torch.cat([target(similarity, prompts) for target in self.targets], dim=1)


def _map_captures(
    clip: ClipModel,
    inputs: Inputs,
    make: Callable[[Any], Any],
    reads: type,
    target: Target,
    layers: tuple[int, ...] | None = None,
) -> list[Any]:
    """Apply a function to every capture of one pass over all images.

    Args:
        clip: the model.
        inputs: what to explain.
        make: applied to each capture.
        reads: the type of the captures.
        target: of the scores.
        layers: indices; ``None`` for the default.

    Returns:
        The results in the order of the captures.
    """
    made = []

    def record(capture: Any) -> Tensor:
        made.append(make(capture))
        activations: Tensor = capture.activations[:, :1]
        return activations  # the pass needs a map, which is not used

    recorder, together = Method(record, reads), max(len(inputs.images), FORWARDS)
    explain(clip, inputs.images, inputs.prompts, method=recorder, layers=layers, target=target, batch_size=together)
    return made


def _maps(clip: ClipModel, inputs: Inputs, method: MethodLike, layers: Layers, target: str) -> Float[Tensor, "n p h w"]:
    score = inputs.targets[target]
    return explain(clip, inputs.images, inputs.prompts, method=method, layers=layers, target=score).maps


def _depends_on(target: str, method: Method) -> bool:
    """Whether a method's map for a target may differ from that for ``SIMILARITY``, which comes first."""
    return target == SIMILARITY or method.name not in NO_TARGET


def _setting(method: Method, layers: tuple[int, ...] | None, target: str) -> Setting:
    return Setting(method.name, layers, None if method.name in NO_TARGET else target)
