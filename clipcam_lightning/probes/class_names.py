"""The names of the classes that labels stand for."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from torch import nn
from torch.utils.data import Dataset

from clipcam_lightning.probes.leaves import is_strings

ClassNames: TypeAlias = Sequence[str] | Mapping[int, str]
PROMPTS = ("prompts", "class_prompts")
NAMES = ("class_names", "classes", "classnames", "label_names", "id2label", "idx_to_class")
NUMBERS = ("class_to_idx", "label2id")
COUNTS = ("num_classes", "n_classes")
COUNTED = {"category", "class", "cls", "cluster", "folder", "group", "id", "label"}  # words before numbers of classes
MAX_DEPTH = 8  # of wrappers around a dataset


def find_class_names(owners: Sequence[object]) -> ClassNames | None:
    """Find a prompt of each class, or their names, among the attributes of a module or a dataset.

    Attributes of ``hparams``, of the configuration of a CLIP of transformers, and of datasets inside a loader,
    ``Subset``, ``ConcatDataset`` or a dataset of the user count, too, and so do the features of a Hugging Face dataset.
    Prompts that are not as many as the classes, such as several templates of each, are left out.

    Args:
        owners: the first that has names counts.

    Returns:
        Strings by class number; ``None`` if there are none.
    """
    names: ClassNames | None = _find(owners, _read_names)
    prompts: ClassNames | None = _find(owners, partial(_read_strings, attributes=PROMPTS))
    count = len(names) if names is not None else _find(owners, _read_count)
    return prompts if prompts is not None and count in (None, len(prompts)) else names


def have_words(names: ClassNames) -> bool:
    """Whether a name holds a word, and not all are numbers or codes such as ``"n01440764"`` and ``"class_3"``."""
    values = names.values() if isinstance(names, Mapping) else names
    words = (word for name in values for word in re.findall(r"[^\W\d_]+", name.lower()))
    return any(word not in COUNTED and (len(word) > 1 or not word.isascii()) for word in words)


def _find(owners: Sequence[object], read: Callable[[object], Any], depth: int = MAX_DEPTH) -> Any:
    """Read the first of ``owners`` that has a value, itself or inside."""
    for owner in owners if depth else ():
        value = read(owner)
        if value is None:
            value = _find(_list_inner(owner), read, depth - 1)
        if value is None:
            value = _agreed([_find([dataset], read, depth - 1) for dataset in _list_datasets(owner)])
        if value is not None:
            return value
    return None


def _list_inner(owner: object) -> list[object]:
    """List what an owner wraps, and its settings."""
    parts = owner.modules() if isinstance(owner, nn.Module) else ()
    configs = [_read(part, "config") for part in parts]
    # The labels of other networks, such as a teacher trained on ImageNet, are not those of the batch.
    of_clips = [config for config in configs if _read(config, "text_config") is not None]
    return [_read(owner, "hparams"), _read(owner, "dataset"), *of_clips]


def _list_datasets(owner: object) -> list[object]:
    """List the datasets that an owner combines, or that a dataset of the user wraps under any name."""
    datasets = _read(owner, "datasets")
    held = [*(datasets if isinstance(datasets, list | tuple) else ())]
    if isinstance(owner, Dataset):  # no datamodule: its validation may have other classes
        held += vars(owner).values()
    for each in (owner, datasets):  # splits of Hugging Face, and StackDataset
        held += each.values() if isinstance(each, Mapping) else ()
    return [each for each in held if isinstance(each, Dataset) or _read_features(each)]


def _agreed(values: Sequence[Any]) -> Any:
    """Return the one value that is not ``None``; ``None`` if there are several."""
    several = [value for value in values if value is not None]
    return several[0] if several and all(value == several[0] for value in several) else None


def _read(owner: object, attribute: str) -> Any:
    try:
        return getattr(owner, attribute, None)
    except Exception:  # a property of the user's class may fail before it is set up
        return None


def _read_names(owner: object) -> ClassNames | None:
    names = _read_strings(owner, NAMES)
    if names is None:
        inverted = (_invert(_read(owner, each)) for each in NUMBERS)
        names = next((each for each in inverted if each is not None), None)
    if names is None:
        names = _agreed([_read_strings(feature, ("names",)) for feature in _read_features(owner)])
    return names


def _read_strings(owner: object, attributes: Sequence[str]) -> ClassNames | None:
    return next((_number(names) for each in attributes if _are_names(names := _read(owner, each))), None)


def _read_features(owner: object) -> list[object]:
    """List the features, of which some may be labels, of a Hugging Face dataset."""
    features = _read(owner, "features")
    return list(features.values()) if isinstance(features, Mapping) else []


def _invert(numbers: Any) -> ClassNames | None:
    """Get the name of each number, from the number of each name."""
    if not isinstance(numbers, Mapping) or not all(isinstance(number, int) for number in numbers.values()):
        return None
    names = {number: name for name, number in numbers.items()}
    return names if _are_names(names) else None


def _number(names: Any) -> ClassNames:
    """Let names that were read from JSON, where all keys are strings, have numbers as keys."""
    if isinstance(names, Mapping) and all(isinstance(key, str) and key.isdecimal() for key in names):
        return {int(key): name for key, name in names.items()}
    numbered: ClassNames = names
    return numbered


def _are_names(names: Any) -> bool:
    """Whether an attribute names classes: no template, and not the default names of transformers."""
    values = list(names.values()) if isinstance(names, Mapping) else names
    return is_strings(values) and not any("{" in name or re.fullmatch(r"LABEL_\d+", name) for name in values)


def _read_count(owner: object) -> int | None:
    return next((count for each in COUNTS if type(count := _read(owner, each)) is int), None)
