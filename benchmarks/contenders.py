"""What is measured: every method of ``explain``, and its peers."""

from collections.abc import Callable, Iterator
from functools import partial
from math import inf

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks.goals import GOALS
from benchmarks.measure import FORWARD, LIMIT, Case, Contender
from benchmarks.peers import PEERS, image_tower
from clipcam_lightning import METHODS, ClipModel, explain
from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.methods import Method

STRINGS = "gradcam, strings"
CHEAP, FEW = "ViT-B-32", 8  # the model, and the numbers of images or prompts, with which all contenders are measured
SHARE, GOAL_SHARE = 1.0, 10.0  # seconds

THINGS = ("dog", "cat", "car", "tree", "house", "boat", "cup", "child")
CAPTIONS = [f"a {kind} of a {thing}" for kind in ("photo", "drawing", "painting", "model") for thing in THINGS]


def contenders(clip: ClipModel, case: Case, device: torch.device) -> Iterator[tuple[str, Contender]]:
    """List the contenders of a case by name: the plain forward, the limit, our methods and the peers.

    Where a run takes seconds, methods and peers are left out that no goal names.

    Args:
        clip: the model of the case.
        case: what they get.
        device: of the model.
    """
    images = torch.randn(case.images, 3, *clip.tower.input_size, device=device)
    texts = F.normalize(torch.randn(case.images, case.prompts, image_tower(clip).output_dim, device=device), dim=-1)
    has_all = case.images <= FEW or (case.model == CHEAP and case.prompts <= FEW)
    in_goals = {name for goal in GOALS if goal.prompts == case.prompts for name in (goal.contender, goal.peer)}

    yield FORWARD, Contender(partial(_forward, clip, images), share=inf)
    yield LIMIT, Contender(partial(_shortened_forward, clip, images), share=inf)
    for name, run in _runs(clip, case, images, texts):
        if has_all or name in in_goals:
            # The memory of a peer does not depend on the number of prompts, since it makes one pass per prompt.
            weighed = name not in PEERS or case.prompts == 1 or case.images <= FEW
            yield name, Contender(run, GOAL_SHARE if name in in_goals else SHARE, weighed)


def _runs(
    clip: ClipModel, case: Case, images: Float[Tensor, "n 3 y x"], texts: Float[Tensor, "n p e"]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """List everything that can run on the case, however slow."""
    fitting = [name for name, method in METHODS.items() if _fits(method, clip, case)]
    for method in ("auto", *fitting):
        yield method, partial(explain, clip, images, texts, method=method)
    yield STRINGS, partial(explain, clip, images, CAPTIONS[: case.prompts], method="gradcam")
    if case.prompts <= FEW or case.model == CHEAP:
        for name, peer in PEERS.items():
            yield name, partial(peer, clip, images, texts)


def _fits(method: Method, clip: ClipModel, case: Case) -> bool:
    """Whether a method fits the tower and the number of prompts, and runs for less than a minute."""
    if method.missing(clip.tower) or (method.target is not None and case.prompts == 1):
        return False
    if method.reads is ScoreCapture:  # one forward per cell or per channel
        return case.model == CHEAP and case.images == case.prompts == 1
    return True


def _forward(clip: ClipModel, images: Float[Tensor, "n 3 y x"]) -> None:
    with torch.no_grad():
        image_tower(clip)(images)


def _shortened_forward(clip: ClipModel, images: Float[Tensor, "n 3 y x"]) -> None:
    """Compute what every map needs: if a class token is pooled, only its row of the last block."""
    with torch.no_grad(), clip.tower.skipping_unused((clip.tower.default_layer,)):
        image_tower(clip)(images)
