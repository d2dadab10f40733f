"""The fixed images and prompts that every evaluation explains."""

import hashlib
import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeAlias, overload

import numpy as np
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor
from typing_extensions import override
from upath import UPath

from clipcam_lightning.cam.decoding import ImageLike
from clipcam_lightning.cam.display.drawing import fit_image, outline_mask, to_image
from clipcam_lightning.cam.display.gallery import Gallery, Tile, describe_rest
from clipcam_lightning.cam.display.shown import Shown
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.errors import ProbeError, SnapshotError, abridge
from clipcam_lightning.probes.batch import find_images_and_prompts
from clipcam_lightning.probes.batch_images import SizeFilter
from clipcam_lightning.probes.batch_texts import TextInput
from clipcam_lightning.probes.class_names import ClassNames
from clipcam_lightning.probes.load import load_probe
from clipcam_lightning.probes.manifest import MANIFESTS, has_manifest, read_manifest
from clipcam_lightning.probes.names import name_probes
from clipcam_lightning.probes.prepared import PreparedProbes, prepare_probes
from clipcam_lightning.probes.probe import LoadedProbe, Probe, TokensLike, name_tokens
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.reading import exists
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

KIND = "probe set"
ProbeLike: TypeAlias = Probe | LoadedProbe | tuple[ImageLike, str]
ProbesLike: TypeAlias = PathLike | Sequence[ProbeLike]


class ProbeSet(Shown, Sequence[LoadedProbe]):
    """Probes in a fixed order, read and checked once.

    In Jupyter a set shows itself: each image with its prompt and the outline of its mask.

    A set is a sequence of :class:`LoadedProbe`, and a slice of it is a set. Two sets are equal if their digests are:
    if they hold the same pixels, prompts, masks and token ids in the same order, under whatever names.

    Args:
        probes: :class:`Probe` objects or ``(image, prompt)`` pairs, at least one; or another set; or the path or URL of
            a manifest, of its folder, or of a file that :meth:`save` wrote. The manifest is ``probes.csv`` or
            ``probes.jsonl`` with the columns ``image,prompt[,name,mask,box]``: paths are relative to the folder, or
            URLs; a box is ``left top right bottom`` in pixels.
        places: what error messages call each probe of a sequence; by default "probe 1" and so on.

    Raises:
        ConfigError: the URL cannot be opened.
        ProbeError: a probe or its manifest row cannot be used (the message says which and why), two probes have one
            name, or there is no such file or folder.
        SnapshotError: the file is damaged, or not a probe set.

    Example:
        >>> import numpy as np
        >>> from clipcam_lightning import Probe, ProbeSet
        >>> pixels = np.zeros((40, 60, 3), np.uint8)
        >>> probes = ProbeSet([(pixels, "an owl"), Probe(pixels, "a fox", box=(10, 5, 50, 35))])
        >>> probes
        ProbeSet(2 probes: 'an-owl', 'a-fox')
        >>> int(probes[1].mask.sum())
        1200
        >>> probes[:1] == ProbeSet([(pixels, "an owl")])
        True
    """

    def __init__(self, probes: PathLike | Iterable[ProbeLike], *, places: Sequence[str] | None = None) -> None:
        if isinstance(probes, str | os.PathLike | UPath):
            self._probes = _load_place(probes)
        else:
            self._probes = _load_probes(probes, places)

    @classmethod
    def from_batch(
        cls,
        batch: object,
        *,
        size: tuple[int, int],
        other_sizes: SizeFilter | None = None,
        count: int = 8,
        tokenizer: Tokenizer | None = None,
        names: ClassNames | None = None,
    ) -> "ProbeSet":
        """Take the first images and prompts of a training batch, however it is nested.

        Args:
            batch: anything that holds images (float or uint8 tensors, PIL images) and for each a string, token ids or
                a label; or a list of samples.
            size: height and width that the model expects, in pixels.
            other_sizes: whether the model takes images of another height and width; asked only if the batch holds no
                images of ``size``. By default it takes none, and float images of another size are resized.
            count: how many probes to take; fewer if the batch is smaller.
            tokenizer: decodes token ids for the names of the probes, where it can; with one, strings of the batch take
                precedence over token ids.
            names: of the classes that integer labels stand for, where a batch holds no text.

        Returns:
            A set that shares no memory with the batch.

        Raises:
            ProbeError: the batch holds no such images or no such prompts.

        Example:
            >>> import torch
            >>> from clipcam_lightning import ProbeSet
            >>> batch = {"image": torch.rand(4, 3, 8, 8), "caption": ["an owl", "a fox", "a cat", "a dog"]}
            >>> ProbeSet.from_batch(batch, size=(8, 8), count=2).prompts
            ['an owl', 'a fox']
        """
        text_input = TextInput(has_tokenizer=tokenizer is not None)
        found = find_images_and_prompts(batch, size, other_sizes, names, text_input=text_input)
        return cls(found.list_probes(count, tokenizer))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], rows: Sequence[Mapping[str, str]]) -> "ProbeSet":
        """Make a set of what :meth:`to_tensors` returned.

        Args:
            tensors: pixels, masks, tokens and embeddings.
            rows: name and prompt per probe.

        Returns:
            A set with the digest of the original.

        Raises:
            KeyError, TypeError, ProbeError: the arguments do not describe a complete set.
        """
        return cls(_probes_from(tensors, rows))

    @overload
    def __getitem__(self, index: int) -> LoadedProbe: ...

    @overload
    def __getitem__(self, index: slice) -> "ProbeSet": ...

    def __getitem__(self, index: int | slice) -> "LoadedProbe | ProbeSet":
        return ProbeSet(self._probes[index]) if isinstance(index, slice) else self._probes[index]

    def __len__(self) -> int:
        return len(self._probes)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, ProbeSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        names = ", ".join(map(repr, self.names[:4])) + (", ..." if len(self) > 4 else "")
        return f"ProbeSet({len(self)} probe{'s' if len(self) > 1 else ''}: {names})"

    @property
    def names(self) -> list[str]:
        """The unique name of each probe."""
        return [probe.name for probe in self]

    @property
    def prompts(self) -> list[str]:
        """The prompt of each probe."""
        return [probe.prompt for probe in self]

    @property
    def digests(self) -> list[str]:
        """The digest of each probe, as 64 hex digits."""
        return [probe.digest for probe in self]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the digests of all probes, as 64 hex digits; names do not count."""
        return _digest(self._probes)

    def prepare(self, clip: ClipModel) -> PreparedProbes:
        """Turn the set into the input of a model.

        Args:
            clip: the model.

        Returns:
            Preprocessed images and masks, and the prompts to embed.

        Raises:
            ProbeError: the model does not take images of a probe's size, or the probes have several sizes; token ids
                have several lengths; or a mask lies outside of what the model sees.
        """
        return prepare_probes(self, clip)

    def save(self, file: PathLike) -> None:
        """Write the set to one safetensors file, pixels included; ``ProbeSet(file)`` reads it.

        Args:
            file: a path or URL; created or replaced, appears whole or not at all.

        Raises:
            ConfigError: the URL cannot be opened.
            OSError: the file cannot be written.
        """
        tensors, rows = self.to_tensors()
        save_tensors(as_path(file), KIND, tensors, {"probes": rows, "digest": self.digest})

    @override
    def _gallery(self, side: int, limit: int) -> Gallery:
        tiles = [Tile(_draw(probe, side), probe.prompt, probe.name) for probe in self._probes[:limit]]
        noun = "probe" if len(self) == 1 else "probes"
        outlined = ", with the outlines of their masks" if any(probe.mask is not None for probe in self) else ""
        return Gallery(
            heading=f"{len(self)} {noun}{outlined}",
            rows=[tiles],
            remark=describe_rest(len(tiles), len(self), "probe"),
        )

    def to_tensors(self) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
        """Take the set apart for a file or a checkpoint.

        Returns:
            Pixels, masks, tokens and embeddings as tensors by name, and the name and prompt of each probe.
        """
        tensors = {}
        for i, probe in enumerate(self):
            tensors[f"image.{i}"] = probe.image if isinstance(probe.image, Tensor) else torch.from_numpy(probe.image)
            if probe.mask is not None:
                tensors[f"mask.{i}"] = torch.from_numpy(probe.mask)
            for name, row in name_tokens(probe.tokens).items():
                tensors[f"tokens.{i}" if name == "input_ids" else f"tokens.{i}.{name}"] = row
            if probe.embedding is not None:
                tensors[f"embedding.{i}"] = probe.embedding
        return tensors, [{"name": probe.name, "prompt": probe.prompt} for probe in self]


def _load_probes(probes: Iterable[ProbeLike], places: Sequence[str] | None = None) -> tuple[LoadedProbe, ...]:
    if not isinstance(probes, Iterable) or isinstance(probes, Mapping | Tensor | np.ndarray):
        raise ProbeError(
            "probes must be a list of Probe or (image, prompt), a ProbeSet, a folder with probes.csv, or a file of "
            f"ProbeSet.save (got {reprlib.repr(probes)})."
        )
    items = list(probes)
    if not items:
        raise ProbeError("a probe set needs at least one probe.")
    places = places or [f"probe {i}" for i in range(1, len(items) + 1)]
    checked = [_require_probe(item, place) for item, place in zip(items, places, strict=True)]
    loaded = [
        probe if isinstance(probe, LoadedProbe) else load_probe(probe, place)
        for probe, place in zip(checked, places, strict=True)
    ]
    names = name_probes(checked, places)
    return tuple(replace(probe, name=name) for probe, name in zip(loaded, names, strict=True))


def _require_probe(item: ProbeLike, place: str) -> Probe | LoadedProbe:
    if isinstance(item, Probe | LoadedProbe):
        return item
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ProbeError(f"{place}: expected a Probe or a pair (image, prompt) (got {reprlib.repr(item)}).")
    return Probe(*item)


def _load_place(place: PathLike) -> tuple[LoadedProbe, ...]:
    path = as_path(place)
    try:
        is_listed = place != "" and has_manifest(path)
        is_missing = not is_listed and not exists(path)
    except OSError as error:
        raise ProbeError(f"{abridge(path)} cannot be read: {error.strerror or error}.") from error
    if is_missing:
        raise ProbeError(
            f"{abridge(path)} does not exist; give a folder with {' or '.join(MANIFESTS)}, or a file of ProbeSet.save."
        )
    return _load_manifest(path) if is_listed else _load_file(path)


def _load_manifest(place: UPath) -> tuple[LoadedProbe, ...]:
    rows = read_manifest(place)
    probes = [Probe(row.image, row.prompt, row.name, row.mask, row.box) for row in rows]
    return _load_probes(probes, [row.place for row in rows])


def _load_file(file: UPath) -> tuple[LoadedProbe, ...]:
    tensors, metadata = load_tensors(file, KIND)
    try:
        probes = _load_probes(_probes_from(tensors, metadata["probes"]))
    except (KeyError, TypeError, ProbeError) as error:
        raise SnapshotError(f"{file} is not a complete probe set: {abridge(repr(error))}") from error
    if _digest(probes) != metadata.get("digest"):
        raise SnapshotError(f"{file} is damaged: its pixels, prompts or masks are not those that were saved.")
    return probes


def _probes_from(tensors: Mapping[str, Tensor], rows: Sequence[Mapping[str, str]]) -> list[Probe]:
    probes = []
    for i, row in enumerate(rows):
        image, mask = tensors[f"image.{i}"], tensors.get(f"mask.{i}")
        probes.append(
            Probe(
                image=image.numpy() if image.dtype == torch.uint8 else image,
                prompt=row["prompt"],
                name=row["name"],
                mask=mask,
                tokens=_tokens_from(tensors, i),
                embedding=tensors.get(f"embedding.{i}"),
            )
        )
    return probes


def _draw(probe: LoadedProbe, side: int) -> Image.Image:
    """Draw the image of a probe, with the outline of its mask."""
    if isinstance(probe.image, Tensor):  # the normalisation shows by the values
        large = to_image(Preprocessing(PreprocessCfg()).pixels(probe.image)[0])
    else:
        large = Image.fromarray(probe.image)
    image = fit_image(large, side)
    if probe.mask is not None:
        outline_mask(image, probe.mask)
    return image


def _tokens_from(tensors: Mapping[str, Tensor], i: int) -> TokensLike | None:
    ids, prefix = tensors.get(f"tokens.{i}"), f"tokens.{i}."
    others = {name.removeprefix(prefix): row for name, row in tensors.items() if name.startswith(prefix)}
    return ids if ids is None or not others else {"input_ids": ids, **others}


def _digest(probes: Iterable[LoadedProbe]) -> str:
    return hashlib.sha256("".join(probe.digest for probe in probes).encode()).hexdigest()
