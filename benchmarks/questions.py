"""Every map that the localisation benchmark grades, drawn in as few passes as will do."""

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
from clipcam_lightning.shapes_world.scenes import CAPTIONS

LAYERS = ((-1,), (-2,), (-2, -1))
LAST_THREE = (-3, -2, -1)  # where grids do not get finer: all there are in the ViT
NO_TARGET = ("eigencam", "fem", "rollout", "finercam")  # three ask for no prompt, the last is a target of its own
CHANNELWISE = ("scorecam", "ablationcam")  # one forward a channel
CONTROL_GRID = (8, 8)
FORWARDS = 64  # changed images at once

LAYER_METHODS = [each for each in METHODS.values() if issubclass(CurvatureCapture, each.reads) and not each.target]
SCORE_METHODS = [each for each in METHODS.values() if each.reads is ScoreCapture]
OTHER_METHODS = [each for each in METHODS.values() if each not in LAYER_METHODS + SCORE_METHODS]
# What may be a default: it asks for a prompt, and for no more than a forward and a backward pass for it.
CANDIDATES = [
    each.name
    for each in LAYER_METHODS + OTHER_METHODS
    if each.name not in NO_TARGET and each.reads is not CurvatureCapture
]


class Question(NamedTuple):
    """What a map is asked for.

    Attributes:
        method: a name in ``METHODS``, ``"auto"``, or ``"edges"`` for the control.
        layers: indices; ``None`` for the method's own choice.
        target: its name; ``None`` where no target has a say.
    """

    method: str
    layers: tuple[int, ...] | None
    target: str | None


Maps: TypeAlias = tuple[Question, Float[Tensor, "n p h w"]]


@dataclass(frozen=True)
class Asked:
    """Scenes as a model is fed with them, and what they are asked.

    Attributes:
        prompts: of each image, one for every object it shows.
        targets: by their names, ``"similarity"`` among them.
    """

    images: Float[Tensor, "n 3 y x"]
    prompts: Sequence[Sequence[str]]
    targets: Mapping[str, Target]

    def first(self, count: int) -> "Asked":
        """The same of fewer images."""
        return Asked(self.images[:count], self.prompts[:count], self.targets)

    def only(self, target: str) -> "Asked":
        """The same with one target."""
        return Asked(self.images, self.prompts, {target: self.targets[target]})


def targets_for(objects: int) -> dict[str, Target]:
    """The targets of scenes that are asked about all of their objects, each of which is set against the others.

    A single object is set against all captions. Its own among them shortens the gradient and turns it nowhere.
    """
    negatives = CAPTIONS if objects == 1 else ()
    targets = (Similarity(negatives=negatives), Contrast(negatives), LogSoftmax(negatives))
    return dict(zip(("similarity", "contrast", "logsoftmax"), targets, strict=True))


def cheap_maps(clip: ClipModel, asked: Asked) -> Iterator[Maps]:
    """The control, ``method="auto"``, and all methods that take a pass or two."""
    control = edges(asked.images, CONTROL_GRID)[:, None].expand(-1, len(asked.prompts[0]), -1, -1)
    yield Question("edges", None, None), control
    yield Question("auto", None, "similarity"), _maps(clip, asked, "auto", None, "similarity")
    yield from layer_maps(clip, asked)
    for method in OTHER_METHODS:
        several = method.name == "gae" and BLOCKS in clip.tower.offers
        for layers in ((-1,), (-2, -1), LAST_THREE) if several else (None,):
            for target in asked.targets:
                if not method.missing(clip.tower) and _has_say(target, method):
                    yield _question(method, layers, target), _maps(clip, asked, method, layers, target)


def layer_maps(clip: ClipModel, asked: Asked) -> Iterator[Maps]:
    """Maps of every method that reads one layer, for each choice of layers: one pass a target serves them all."""
    choices = (*LAYERS, LAST_THREE) if BLOCKS in clip.tower.offers else LAYERS
    deepest = max(choices, key=len)
    for target, score in asked.targets.items():
        captures = _recorded(clip, asked, lambda capture: capture, CurvatureCapture, score, deepest)
        # One prompt after the other, each with its layers first to last.
        prompts = [captures[start : start + len(deepest)] for start in range(0, len(captures), len(deepest))]
        for method in LAYER_METHODS:
            if _has_say(target, method):
                maps = [[method(capture) for capture in prompt] for prompt in prompts]
                for layers in choices:
                    chosen = [fuse_maps([prompt[layer] for layer in layers], "mean") for prompt in maps]
                    yield _question(method, layers, target), torch.cat(chosen, dim=1)


def score_maps(clip: ClipModel, asked: Asked, method: Method) -> Iterator[Maps]:
    """Maps of a method that reads nothing but scores: one pass serves all targets."""
    (maps,) = _recorded(clip, asked, method, ScoreCapture, SideBySide(tuple(asked.targets.values())))
    for target, own in zip(asked.targets, maps.chunk(len(asked.targets), dim=1), strict=True):
        yield _question(method, None, target), own


@dataclass(frozen=True)
class SideBySide:
    """The scores of several targets in one."""

    targets: tuple[Target, ...]
    name: str = "side by side"

    @property
    def negatives(self) -> Sequence[str] | Tensor:
        """They share them."""
        return self.targets[0].negatives

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n r"]:
        """All prompts' by the first target, then by the second, and so on."""
        return torch.cat([target(similarity, prompts) for target in self.targets], dim=1)


def _recorded(
    clip: ClipModel,
    asked: Asked,
    make: Callable[[Any], Any],
    reads: type,
    target: Target,
    layers: tuple[int, ...] | None = None,
) -> list[Any]:
    """What ``make`` makes of the captures of one pass over all images, in the order in which they come."""
    made = []

    def record(capture: Any) -> Tensor:
        made.append(make(capture))
        activations: Tensor = capture.activations[:, :1]
        return activations  # in place of a map

    recorder, together = Method(record, reads), max(len(asked.images), FORWARDS)
    explain(clip, asked.images, asked.prompts, method=recorder, layers=layers, target=target, batch_size=together)
    return made


def _maps(clip: ClipModel, asked: Asked, method: MethodLike, layers: Layers, target: str) -> Float[Tensor, "n p h w"]:
    score = asked.targets[target]
    return explain(clip, asked.images, asked.prompts, method=method, layers=layers, target=score).maps


def _has_say(target: str, method: Method) -> bool:
    """Whether a map under that target is not one that was drawn before."""
    return target == "similarity" or method.name not in NO_TARGET


def _question(method: Method, layers: tuple[int, ...] | None, target: str) -> Question:
    return Question(method.name, layers, None if method.name in NO_TARGET else target)
