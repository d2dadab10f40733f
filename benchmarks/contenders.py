"""Who is measured: every method of ``explain``, and its peers."""

from collections.abc import Iterator
from functools import partial
from math import inf

import torch
from goals import GOALS
from jaxtyping import Float
from measure import FORWARD, LIMIT, Case, Contender
from peers import PEERS, image_tower
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning import METHODS, ClipModel, explain
from clipcam_lightning.cam.capture import ScoreCapture

STRINGS = "gradcam, prompts as strings"
HEADLINE = {"auto", *(goal.contender for goal in GOALS)}
CHEAP = "ViT-B-32"  # the model on which every method can be had for several images
FEW = 8  # images or prompts
SHARE, HEADLINE_SHARE = 2.0, 20.0  # seconds

THINGS = ("dog", "cat", "car", "tree", "house", "boat", "cup", "child")
CAPTIONS = [f"a {kind} of a {thing}" for kind in ("photo", "drawing", "painting", "model") for thing in THINGS]


def contenders(clip: ClipModel, case: Case, device: torch.device) -> Iterator[tuple[str, Contender]]:
    """Everything that is measured on ``case``, by name: the unit, the limit, our methods and the peers."""
    images = torch.randn(case.images, 3, *clip.tower.input_size, device=device)
    texts = F.normalize(torch.randn(case.images, case.prompts, image_tower(clip).output_dim, device=device), dim=-1)

    yield FORWARD, Contender(partial(_forward, clip, images), share=inf)
    yield LIMIT, Contender(partial(_shortened_forward, clip, images), share=inf)
    for method in ("auto", *METHODS):
        if _is_measured(clip, method, case):
            run = partial(explain, clip, images, texts, method=method)
            yield method, Contender(run, HEADLINE_SHARE if method in HEADLINE else SHARE)
    run = partial(explain, clip, images, CAPTIONS[: case.prompts], method="gradcam")
    yield STRINGS, Contender(run, SHARE)
    # A peer's passes are as many as the prompts: many prompts take minutes, and need no more memory than one.
    for name, peer in PEERS.items():
        if case.prompts <= FEW or (case.model == CHEAP and case.images <= FEW):
            weighed = case.prompts == 1 or case.images <= FEW
            yield name, Contender(partial(peer, clip, images, texts), HEADLINE_SHARE, weighed)


def _forward(clip: ClipModel, images: Float[Tensor, "n 3 y x"]) -> None:
    with torch.no_grad():
        image_tower(clip)(images)


def _shortened_forward(clip: ClipModel, images: Float[Tensor, "n 3 y x"]) -> None:
    """The least that has to be computed for a map: where a class token is pooled, its row alone of the last block."""
    with torch.no_grad(), clip.tower.skipping_unused((clip.tower.default_layer,)):
        image_tower(clip)(images)


def _is_measured(clip: ClipModel, name: str, case: Case) -> bool:
    """Whether a method fits the tower and the case, and is worth its time there."""
    if name == "auto":
        return True
    method = METHODS[name]
    if method.missing(clip.tower) or (method.target is not None and case.prompts == 1):  # that one compares prompts
        return False
    if method.reads is ScoreCapture:  # a forward a channel, or a cell
        return case.images == case.prompts == 1 and (case.model == CHEAP or name != "scorecam")
    return case.images <= FEW or name in HEADLINE or (case.model == CHEAP and case.prompts <= FEW)
