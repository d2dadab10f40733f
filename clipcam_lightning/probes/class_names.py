"""The names of the classes that labels stand for."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from clipcam_lightning.probes.leaves import is_strings

ClassNames: TypeAlias = Sequence[str] | Mapping[int, str]
PROMPTS = ("prompts", "class_prompts")
NAMES = ("class_names", "classes", "classnames", "id2label")
COUNTS = ("num_classes", "n_classes")
MAX_DEPTH = 8  # of wrappers around a dataset


def find_class_names(owners: Sequence[object]) -> ClassNames | None:
    """Find a prompt of each class, or their names, among the attributes of a module or a dataset.

    Attributes of ``hparams``, of the configuration of a CLIP of transformers, and of datasets inside a loader,
    ``Subset`` or ``ConcatDataset`` count, too. Prompts that are not as many as the classes, such as several templates
    of each, are left out.

    Args:
        owners: the first that has names counts.

    Returns:
        Strings by class number; ``None`` if there are none.
    """
    names: ClassNames | None = _find(owners, _reader(NAMES))
    prompts: ClassNames | None = _find(owners, _reader(PROMPTS))
    count = len(names) if names is not None else _find(owners, _read_count)
    return prompts if prompts is not None and count in (None, len(prompts)) else names


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
    """List the datasets of a ``ConcatDataset`` or ``StackDataset``."""
    datasets = _read(owner, "datasets")
    if isinstance(datasets, Mapping):
        return list(datasets.values())
    return list(datasets) if isinstance(datasets, list | tuple) else []


def _agreed(values: Sequence[Any]) -> Any:
    """Return the one value that is not ``None``; ``None`` if there are several."""
    several = [value for value in values if value is not None]
    return several[0] if several and all(value == several[0] for value in several) else None


def _read(owner: object, attribute: str) -> Any:
    try:
        return getattr(owner, attribute, None)
    except Exception:  # a property of the user's class may fail before it is set up
        return None


def _reader(attributes: Sequence[str]) -> Callable[[object], ClassNames | None]:
    return lambda owner: next((names for each in attributes if _are_names(names := _read(owner, each))), None)


def _are_names(names: Any) -> bool:
    """Whether an attribute names classes: no template, and not the default names of transformers."""
    values = list(names.values()) if isinstance(names, Mapping) else names
    return is_strings(values) and not any("{" in name or re.fullmatch(r"LABEL_\d+", name) for name in values)


def _read_count(owner: object) -> int | None:
    return next((count for each in COUNTS if type(count := _read(owner, each)) is int), None)
