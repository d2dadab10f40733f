"""Load the CLIP that the options of a command select, with its weights."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import open_clip
import torch
from jsonargparse import get_loader
from torch import nn
from upath import UPath

from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cli.checkpoints import Checkpoint, load_weights, read_checkpoint, select_clip_weights
from clipcam_lightning.cli.objects import build_object, describe_failure
from clipcam_lightning.errors import ConfigError, ModelError, describe_error
from clipcam_lightning.storage.reading import read_bytes

SCHEMAS = ("hf-hub:", "local-dir:")  # model names of open_clip that come with weights
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model and its weights come from.

    Attributes:
        model: name of an open_clip architecture.
        pretrained: open_clip's tag of published weights.
        image_size: side, or height and width, in pixels for which the architecture is built; ``None`` for its own.
        checkpoint: a file of weights.
        class_path: dotted name of a LightningModule, or of any other module.
        init_args: arguments of that class.
        config: a file that LightningCLI wrote, with the arguments and usually the class.
        clip: dotted name of the CLIP inside the module; with ``model``, inside the checkpoint.
        encode_image, encode_text: names of the methods of the class that embed images and texts.
        device: where the model computes.

    Raises:
        ConfigError: the options contradict each other, or select no model or no weights.
    """

    model: str | None = None
    pretrained: str | None = None
    image_size: Sequence[int] | None = None
    checkpoint: Path | UPath | None = None
    class_path: str | None = None
    init_args: Mapping[str, Any] | None = None
    config: Path | UPath | None = None
    clip: str | None = None
    encode_image: str | None = None
    encode_text: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        has_class = bool(self.class_path or self.config)
        if self.model and has_class:
            raise ConfigError("two models given: leave out --model, or --class-path and --config.")
        if not self.model and not has_class:
            raise ConfigError(
                "no model given: use --model NAME with --pretrained TAG or --checkpoint FILE; or --checkpoint FILE "
                "with --class-path NAME or --config FILE."
            )
        if self.pretrained and (has_class or self.checkpoint):
            raise ConfigError("--pretrained goes with --model, and not with --checkpoint: there is one set of weights.")
        if self.image_size and (has_class or len(self.image_size) > 2 or min(self.image_size) < 1):
            raise ConfigError(
                "--image-size is one side, or height and width, in pixels, and goes with --model "
                f"(got {' '.join(map(str, self.image_size))}); a class takes its size from its arguments."
            )
        if self.init_args and (self.config or not self.class_path):
            raise ConfigError("--init-args goes with --class-path, and not with --config, which has the arguments.")
        if not (self.checkpoint or self.pretrained or str(self.model).startswith(SCHEMAS)):
            raise ConfigError(
                "maps of random weights mean nothing; give the model's weights with --checkpoint FILE"
                + ("." if has_class else " or --pretrained TAG.")
            )
        if (self.encode_image or self.encode_text) and not has_class:
            raise ConfigError("--encode-image and --encode-text go with --class-path or --config, not with --model.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu.")
        if self.device == "mps" and not torch.backends.mps.is_available():
            raise ConfigError("--device mps: torch finds no Apple GPU here; use --device cpu.")


def read_model_source(options: Any) -> ModelSource:
    """Read from the options of a command where its model comes from.

    Raises:
        ConfigError: the options contradict each other, or select no model or no weights.
    """
    return ModelSource(**{field.name: getattr(options, field.name) for field in fields(ModelSource)})


@dataclass(frozen=True)
class LoadedClip:
    """A CLIP with its weights.

    Attributes:
        clip: ready to be explained.
        step: optimizer steps that its checkpoint took; 0 if the checkpoint does not count them.
        epoch: epochs that its checkpoint took; 0 if the checkpoint does not count them.
    """

    clip: ClipModel
    step: int = 0
    epoch: int = 0


def load_clip(source: ModelSource) -> LoadedClip:
    """Build the model, load its weights, and find the CLIP in it.

    Raises:
        ModelError: the model cannot be built, its checkpoint cannot be read or does not fit, or it holds no CLIP.
        ConfigError: a name or the config cannot be used.
    """
    checkpoint = None if source.checkpoint is None else read_checkpoint(source.checkpoint)
    if source.model is not None:
        module, tokenizer = _build_open_clip(source, downloads=checkpoint is None)
        if checkpoint is not None:
            load_weights(module, select_clip_weights(checkpoint, module, source.clip), checkpoint.path)
        clip = find_clip(module.to(source.device).eval(), tokenizer=tokenizer)
    else:
        assert checkpoint is not None  # ModelSource refuses a class without one
        module = _build_module(_read_class_and_arguments(source), checkpoint)
        clip = find_clip(
            module.to(source.device).eval(),
            source.clip,
            encode_image=source.encode_image,
            encode_text=source.encode_text,
        )
    if checkpoint is None:
        return LoadedClip(clip)
    return LoadedClip(clip, checkpoint.counter("global_step"), checkpoint.counter("epoch"))


def _build_open_clip(source: ModelSource, downloads: bool) -> tuple[nn.Module, Tokenizer]:
    """Build an architecture of open_clip and its tokenizer, with published weights only if ``downloads``."""
    assert source.model is not None
    name = source.model if source.model.startswith(SCHEMAS) else source.model.replace("/", "-")
    _check_names(name, source.pretrained)
    size = tuple(source.image_size or ())
    preprocessing = None if downloads else _published_preprocessing(name)
    with _logging_disabled():
        try:
            model = open_clip.create_model(
                name,
                source.pretrained,
                force_image_size=size * 2 if len(size) == 1 else size or None,
                load_weights=downloads,
                require_pretrained=downloads,
                pretrained_text=False,
                force_preprocess_cfg=preprocessing,
            )
            return model, open_clip.get_tokenizer(name)
        except Exception as error:  # a download can raise almost anything
            raise ModelError(f"open_clip cannot build {name}: {describe_error(error)}") from error


def _check_names(name: str, pretrained: str | None) -> None:
    if name.startswith(SCHEMAS):
        return
    names = open_clip.list_models()
    if name not in names:
        hint = suggest(name, names) or " open_clip.list_models() lists them."
        raise ConfigError(f"open_clip has no model {name!r}.{hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is not None and pretrained not in tags:
        raise ConfigError(
            f"open_clip has no weights {pretrained!r} of {name}, but {', '.join(tags) or 'none at all'}."
            f"{suggest(pretrained, tags) or ' A file of weights is given with --checkpoint.'}"
        )


def _published_preprocessing(name: str) -> dict[str, Any]:
    """Collect the settings that all published weights of an architecture share.

    A fine-tuned checkpoint does not store its preprocessing; it is assumed to have kept these settings.
    """
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    values = {key: [config.get(key) for config in published] for key in PREPROCESSING}
    return {key: each[0] for key, each in values.items() if each and each.count(each[0]) == len(each)}


@contextmanager
def _logging_disabled() -> Iterator[None]:
    """Hide the log of open_clip, which repeats its errors and warns of random weights before they are replaced."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _read_class_and_arguments(source: ModelSource) -> dict[str, Any]:
    """Read the module's class and arguments, in the form that LightningCLI writes for a model of any class.

    Raises:
        ConfigError: the config cannot be read, or does not hold them.
    """
    if source.config is None:
        return {"class_path": source.class_path, "init_args": source.init_args or {}}
    try:
        config = get_loader("yaml")(read_bytes(source.config).decode("utf-8"))
    except Exception as error:  # of the file, its encoding or YAML
        raise ConfigError(f"--config {source.config} cannot be read: {' '.join(str(error).split())}") from error
    model = config.get("model") or {} if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise ConfigError(f"--config {source.config} has no 'model: ...' as LightningCLI writes it.")
    if "class_path" in model:
        if source.class_path:
            raise ConfigError(
                f"--config {source.config} names its class, {model['class_path']}; leave out --class-path."
            )
        return model
    if not source.class_path:
        raise ConfigError(f"--config {source.config} does not name the model's class; give it with --class-path.")
    return {"class_path": source.class_path, "init_args": model}


def _build_module(class_and_arguments: dict[str, Any], checkpoint: Checkpoint) -> nn.Module:
    """Build a module and load its weights, with the hooks that Lightning calls.

    Raises:
        ConfigError: the module cannot be built.
        ModelError: a hook fails, or the weights do not fit.
    """
    module: nn.Module = build_object(nn.Module, class_and_arguments)
    try:
        for hook, arguments in (("configure_model", ()), ("on_load_checkpoint", (checkpoint.content,))):
            if hasattr(module, hook):
                getattr(module, hook)(*arguments)
    except Exception as error:  # the user's code can raise anything
        raise ModelError(f"{type(module).__name__}.{hook} fails: {describe_failure(error)}.") from error
    load_weights(module, checkpoint.weights, checkpoint.path)  # after the hooks, which may rename the weights
    return module
