"""Reasons to doubt the evaluations of a training: a model that is not trained, and hooks that run in evaluations."""

from collections.abc import Iterator

from torch import nn

from clipcam_lightning.cam.model import ClipModel

ENCODE_ADVICE = (
    "If images pass through more than that, say how they are embedded, with encode_image=lambda module, images: ... "
    "and encode_text=lambda module, texts: ..., each of which returns [n, d]."
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


def describe_training(clip: ClipModel, module: nn.Module, *, is_named: bool) -> str:
    """Say that what is monitored may not be what is trained; ``""`` if nothing speaks for that.

    Args:
        clip: what is monitored.
        module: the user's LightningModule.
        is_named: whether the user chose this CLIP, beside which others may be trained.
    """
    if clip.doubt:
        return f"{clip.doubt}. {ENCODE_ADVICE}"
    name = f" {clip.name!r}" if clip.name else ""
    inside = {parameter for parameter in clip.module.parameters() if parameter.requires_grad}
    outside = {path: each for path, each in module.named_parameters() if each.requires_grad and each not in inside}
    if not outside:
        return ""
    if not inside:
        return (
            f"no parameter of the CLIP{name} is trained, but {len(outside)} others of {type(module).__name__} are: its "
            f"maps cannot change. {ENCODE_ADVICE}"
        )
    # A temperature or a bias of a loss adds nothing to an embedding.
    weights = [path for path, each in outside.items() if each.ndim > 1 and each.numel() > 1]
    if is_named or not weights:
        return ""
    more = f" and {len(weights) - MAX_NAMED} more" if len(weights) > MAX_NAMED else ""
    return (
        f"weights outside the CLIP{name} are trained as well ({', '.join(weights[:MAX_NAMED])}{more}), and the maps do "
        f"not show what they add. {ENCODE_ADVICE}"
    )


def describe_hooks(clip: ClipModel) -> str:
    """Say that forward hooks of the user run in evaluations, too; ``""`` if there are none.

    Args:
        clip: what is monitored.
    """
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
