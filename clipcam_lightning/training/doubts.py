"""Reasons to doubt the evaluations of a training: a model that is not trained, and hooks that run in evaluations."""

from collections.abc import Iterator, Sequence

from torch import nn
from torch.optim import Optimizer

from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.monitoring.notices import UNTRAINED, Notice
from clipcam_lightning.probes.leaves import split_words

ENCODE_ADVICE = (
    "If images or texts pass through more than that, say how they are embedded, with encode_image=lambda module, "
    "images: ... and encode_text=lambda module, texts: ..., each of which returns [n, d]."
)
MAX_NAMED = 3  # parameters in a sentence
LIBRARIES = (
    "torch",
    "lightning",
    "pytorch_lightning",
    "transformers",
    "peft",
    "accelerate",
    "timm",
    "open_clip",
    "wandb",
)
"""Packages whose hooks belong to the model or to the strategy."""


def find_doubts(clip: ClipModel, module: nn.Module, optimizers: Sequence[Optimizer], *, is_named: bool) -> list[Notice]:
    """Note reasons to doubt the evaluations of a training.

    Args:
        clip: what is monitored.
        module: the user's LightningModule.
        optimizers: of the training.
        is_named: whether the user chose this CLIP, beside which others may be trained.

    Returns:
        That what is monitored may not be what is trained, and that hooks of the user run in evaluations, too.
    """
    trained = _list_trained(module, optimizers)
    inside = trained.intersection(clip.module.parameters())
    if clip.doubt:
        about_training = Notice(UNTRAINED, f"{clip.doubt}. {ENCODE_ADVICE}")
    elif not inside:
        about_training = Notice(UNTRAINED, _describe_frozen_clip(clip, module, len(trained)))
    else:
        weights = [] if is_named else _list_weights(module, trained - inside)
        about_training = Notice("outside", _describe_outside(clip, weights))
    doubts = about_training, Notice("hooks", _describe_hooks(clip))
    return [doubt for doubt in doubts if doubt.text]


def _list_trained(module: nn.Module, optimizers: Sequence[Optimizer]) -> set[nn.Parameter]:
    """List the parameters that require a gradient and that an optimizer holds."""
    trainable = {each for each in module.parameters() if each.requires_grad}
    held = {each for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}
    return trainable & held or trainable  # an optimizer may be unknown here, or hold shards of the parameters


def _list_weights(module: nn.Module, parameters: set[nn.Parameter]) -> list[str]:
    """Name those that may add to an embedding: no temperature, no bias, and nothing of a loss."""
    losses = {
        parameter
        for each in module.modules()
        if each is not module and "loss" in split_words(type(each).__name__)
        for parameter in each.parameters()
    }
    others = parameters - losses
    return [path for path, each in module.named_parameters() if each in others and each.ndim > 1 and each.numel() > 1]


def _describe_frozen_clip(clip: ClipModel, module: nn.Module, trained: int) -> str:
    if not trained:
        return ""
    return (
        f"no parameter of the CLIP{_quote_name(clip)} is trained, but {trained} others of {type(module).__name__} are: "
        f"as long as that is so, its maps do not change. {ENCODE_ADVICE}"
    )


def _describe_outside(clip: ClipModel, weights: Sequence[str]) -> str:
    if not weights:
        return ""
    more = f" and {len(weights) - MAX_NAMED} more" if len(weights) > MAX_NAMED else ""
    return (
        f"weights outside the CLIP{_quote_name(clip)} are trained as well ({', '.join(weights[:MAX_NAMED])}{more}), "
        f"and the maps do not show what they add. {ENCODE_ADVICE}"
    )


def _quote_name(clip: ClipModel) -> str:
    return f" {clip.name!r}" if clip.name else ""


def _describe_hooks(clip: ClipModel) -> str:
    hooked = list(dict.fromkeys(_find_hooks(clip.module)))
    if not hooked:
        return ""
    more = f" and {len(hooked) - 1} more" if len(hooked) > 1 else ""
    return (
        f"the forward hook {hooked[0]}{more} also runs when probes are evaluated. If it stores or changes something, "
        "the training is not the same as without evaluations: let it return at once if module.training is false, since "
        "evaluations run in eval mode."
    )


def _find_hooks(model: nn.Module) -> Iterator[str]:
    """Name the forward hooks of a model that no library registered."""
    for path, module in model.named_modules():
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            function = getattr(hook, "func", hook)  # of a functools.partial
            kind = function if hasattr(function, "__qualname__") else type(function)
            if (kind.__module__ or "").partition(".")[0] not in LIBRARIES:
                yield f"{kind.__qualname__!r} on {path!r}"
