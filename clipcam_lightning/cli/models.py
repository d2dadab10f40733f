"""From the names and files that the shell was told to a CLIP with weights."""

import difflib
import logging
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from traceback import extract_tb
from typing import Any

import open_clip
import torch
from jsonargparse import ArgumentParser, get_loader
from torch import nn

from clipcam_lightning.cam.model import ClipModel, Tokenizer, find_clip
from clipcam_lightning.cli.checkpoints import Checkpoint, fill, read_checkpoint, weights_of_clip
from clipcam_lightning.errors import ConfigError, ModelError, describe_error

SCHEMAS = ("hf-hub:", "local-dir:")  # model names of open_clip that come with weights of their own
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which model is meant.

    Attributes:
        model: name of an open_clip architecture.
        pretrained: open_clip's tag of published weights.
        checkpoint: a file of weights.
        class_path: dotted name of a LightningModule, or of any other module.
        init_args: its arguments.
        config: a file that LightningCLI wrote; it says the arguments, and mostly the class.
        clip: dotted name of the CLIP inside the module; with ``model``, inside the checkpoint.
        device: where it shall compute.

    Raises:
        ConfigError: too much was said, or too little.
    """

    model: str | None = None
    pretrained: str | None = None
    checkpoint: Path | None = None
    class_path: str | None = None
    init_args: Mapping[str, Any] | None = None
    config: Path | None = None
    clip: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        of_class = bool(self.class_path or self.config)
        if bool(self.model) == of_class:
            raise ConfigError(
                f"which model? {'Both' if of_class else 'None'} of these was given: --model NAME with --pretrained TAG "
                "or --checkpoint FILE, and --class-path NAME or --config FILE with --checkpoint FILE."
            )
        if self.pretrained and (of_class or self.checkpoint):
            raise ConfigError("--pretrained goes with --model, and not with --checkpoint: there is one set of weights.")
        if self.init_args and (self.config or not self.class_path):
            raise ConfigError("--init-args goes with --class-path, and not with --config, which has arguments itself.")
        if not (self.checkpoint or self.pretrained or str(self.model).startswith(SCHEMAS)):
            raise ConfigError(
                "maps of random weights mean nothing; give the model's weights with --checkpoint FILE"
                + ("." if of_class else " or --pretrained TAG.")
            )
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch finds no CUDA device here; use --device cpu.")


def source_of(options: Any) -> ModelSource:
    """The model that the options of a command mean.

    Raises:
        ConfigError: they mean none.
    """
    return ModelSource(**{field.name: getattr(options, field.name) for field in fields(ModelSource)})


@dataclass(frozen=True)
class LoadedClip:
    """A CLIP with its weights.

    Attributes:
        clip: ready to be explained.
        step: optimizer steps its checkpoint had taken; 0 where it does not say.
        epoch: epochs, likewise.
    """

    clip: ClipModel
    step: int = 0
    epoch: int = 0


def load_clip(source: ModelSource) -> LoadedClip:
    """Build the model that is meant, fill in its weights, and find the CLIP in it.

    Raises:
        ModelError: it cannot be built, its checkpoint cannot be read or does not fit, or there is no CLIP in it.
        ConfigError: a name or the config cannot be used.
    """
    checkpoint = None if source.checkpoint is None else read_checkpoint(source.checkpoint)
    if source.model is not None:
        module, tokenizer = _of_open_clip(source.model, source.pretrained, downloads=checkpoint is None)
        if checkpoint is not None:
            fill(module, weights_of_clip(checkpoint, module, source.clip), checkpoint.path)
        clip = find_clip(module.to(source.device).eval(), tokenizer=tokenizer)
    else:
        assert checkpoint is not None  # or the source would have been refused
        module = _of_class(_class_and_arguments(source), checkpoint)
        clip = find_clip(module.to(source.device).eval(), source.clip)
    if checkpoint is None:
        return LoadedClip(clip)
    return LoadedClip(clip, checkpoint.count("global_step"), checkpoint.count("epoch"))


def _of_open_clip(name: str, pretrained: str | None, downloads: bool) -> tuple[nn.Module, Tokenizer]:
    """An architecture of open_clip with its tokenizer, and with published weights unless others will be filled in."""
    name = name if name.startswith(SCHEMAS) else name.replace("/", "-")
    _check_names(name, pretrained)
    preprocessing = None if downloads else _published_preprocessing(name)
    with _without_logging():
        try:
            model = open_clip.create_model(
                name,
                pretrained,
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
    names = {each.lower(): each for each in open_clip.list_models()}
    if name not in names.values():
        near = [names[each] for each in difflib.get_close_matches(name.lower(), names)]
        hint = f"do you mean {' or '.join(near)}?" if near else "open_clip.list_models() lists them."
        raise ConfigError(f"open_clip knows no model {name!r}; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is not None and pretrained not in tags:
        raise ConfigError(
            f"open_clip knows no weights {pretrained!r} of {name}, but {', '.join(tags) or 'none at all'}. "
            "A file of weights is given with --checkpoint."
        )


def _published_preprocessing(name: str) -> dict[str, Any]:
    """What all published weights of an architecture agree on; a fine-tuned checkpoint keeps to it without saying so."""
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    values = {key: [config.get(key) for config in published] for key in PREPROCESSING}
    return {key: each[0] for key, each in values.items() if each and each.count(each[0]) == len(each)}


@contextmanager
def _without_logging() -> Iterator[None]:
    """open_clip logs what it then raises, and that weights are random which are filled in a moment later."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _class_and_arguments(source: ModelSource) -> dict[str, Any]:
    """The module's class and arguments, as LightningCLI writes them where any class will do.

    Raises:
        ConfigError: the config cannot be read, or does not say them.
    """
    if source.config is None:
        return {"class_path": source.class_path, "init_args": source.init_args or {}}
    try:
        config = get_loader("yaml")(source.config.read_text("utf-8"))
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
        raise ConfigError(f"--config {source.config} does not name the model's class; say it with --class-path.")
    return {"class_path": source.class_path, "init_args": model}


def _of_class(class_and_arguments: dict[str, Any], checkpoint: Checkpoint) -> nn.Module:
    """Import a class, make a module of it, and load its weights as Lightning does.

    Raises:
        ConfigError: there is no such class, or its arguments do not fit.
        ModelError: its own code fails, or the weights do not fit.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as for `python -m`: a project's modules are not installed
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--module", type=nn.Module, required=True)
    class_path = class_and_arguments["class_path"]
    try:
        config = parser.parse_object({"module": class_and_arguments})
    except ArgumentError as error:
        reason = " ".join(str(error).split()).removeprefix('Parser key "module": ')
        reason = reason.removeprefix(f"Problem with given class_path {class_path!r}: ")
        raise ConfigError(f"no module can be made of {class_path}: {reason}.") from error
    try:
        module: nn.Module = parser.instantiate(config).module
        for hook, arguments in (("configure_model", ()), ("on_load_checkpoint", (checkpoint.content,))):
            getattr(module, hook, lambda *_: None)(*arguments)
    except Exception as error:  # a class of the user's can raise anything
        place = extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        raise ModelError(f"{class_path} cannot be built: {describe_error(error)} ({where}).") from error
    fill(module, checkpoint.weights, checkpoint.path)  # not before: a hook may rename them
    return module
