"""The fixed images and prompts that every look explains."""

import hashlib
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipcam_lightning.cam.arguments import abridged
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.errors import ProbeError, SnapshotError
from clipcam_lightning.probes.batch import decoded, images_and_prompts
from clipcam_lightning.probes.manifest import read_manifest
from clipcam_lightning.probes.probe import ImageLike, PathLike, Probe, read_probe
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

NAME_LENGTH = 48
ProbeLike: TypeAlias = Probe | tuple[ImageLike, str]


@dataclass(frozen=True)
class PreparedProbes:
    """A probe set as one model is fed with it.

    Attributes:
        images: preprocessed.
        texts: unit embeddings are made of these: one prompt or row of token ids an image.
        masks: at the size of ``images``; all ``False`` where a probe has none.
        has_mask: which probes have one.
    """

    images: Float[Tensor, "n 3 y x"]
    texts: list[str | Int[Tensor, "l"]]
    masks: Bool[Tensor, "n y x"]
    has_mask: Bool[Tensor, "n"]

    def embedded(self, clip: ClipModel) -> Float[Tensor, "n 1 d"]:
        """Unit embeddings of the prompts."""
        strings = [text for text in self.texts if isinstance(text, str)]
        tokens = [text for text in self.texts if not isinstance(text, str)]
        parts = iter(clip.embed_texts(strings)) if strings else iter(())
        others = iter(clip.embed_tokens(torch.stack(tokens))) if tokens else iter(())
        return torch.stack([next(parts if isinstance(text, str) else others) for text in self.texts])[:, None]


class ProbeSet(Sequence[Probe]):
    """Probes in a fixed order, read and checked once.

    Args:
        probes: :class:`Probe` objects or ``(image, prompt)`` pairs, at least one.
        places: what error messages call each of them; by default "probe 1" and so on.

    Raises:
        ProbeError: a probe cannot be used (the message says which and why), or two have one name.
    """

    def __init__(self, probes: Iterable[ProbeLike], places: Sequence[str] | None = None) -> None:
        pairs = list(probes)
        if not pairs:
            raise ProbeError("a probe set needs at least one probe.")
        places = places or [f"probe {i}" for i in range(1, len(pairs) + 1)]
        given = [_probe(pair, place) for pair, place in zip(pairs, places, strict=True)]
        read = [read_probe(probe, place) for probe, place in zip(given, places, strict=True)]
        names = _names(given, places)
        self._probes = tuple(replace(probe, name=name) for probe, name in zip(read, names, strict=True))
        self.digests = [_digest(probe) for probe in self._probes]
        self.digest = hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._probes)

    def __getitem__(self, index: Any) -> Any:
        return self._probes[index]

    def __iter__(self) -> Iterator[Probe]:
        return iter(self._probes)

    @property
    def names(self) -> list[str]:
        """One unique slug a probe."""
        return [probe.name for probe in self]

    @property
    def prompts(self) -> list[str]:
        """One prompt a probe."""
        return [probe.prompt for probe in self]

    @classmethod
    def from_folder(cls, folder: PathLike) -> "ProbeSet":
        """Read ``probes.csv`` or ``probes.jsonl`` (``image,prompt[,name,mask,box]``) beside the images.

        Paths are relative to the folder; a box is ``left top right bottom`` in pixels.

        Raises:
            ProbeError: no manifest, or a row that cannot be used, with its line number.
        """
        rows = read_manifest(Path(folder))
        probes = [Probe(row.image, row.prompt, row.name, row.mask, row.box) for row in rows]
        return cls(probes, [row.where for row in rows])

    @classmethod
    def from_batch(
        cls, batch: object, *, size: tuple[int, int], count: int = 8, tokenizer: Tokenizer | None = None
    ) -> "ProbeSet":
        """Take the first images and prompts of a training batch, however it is nested; the pixels are cloned.

        Args:
            batch: anything that holds a float tensor ``[n, 3, y, x]`` and token ids ``[n, l]`` or ``n`` strings.
            size: height and width the model expects.
            count: probes to take at most.
            tokenizer: decodes token ids for the probe's name, where it can.

        Raises:
            ProbeError: the batch holds no such images or no such prompts.
        """
        images, prompts = images_and_prompts(batch, size)
        return cls(
            Probe(image, decoded(prompt, tokenizer), tokens=prompt if isinstance(prompt, Tensor) else None)
            for image, prompt in zip(images[:count], prompts[:count], strict=True)
        )

    @classmethod
    def of(cls, probes: "ProbeSet | PathLike | Sequence[ProbeLike]") -> "ProbeSet":
        """A probe set from whatever may stand for one: itself, a folder, a saved file, or pairs.

        Raises:
            ProbeError, SnapshotError: it cannot be read.
        """
        if isinstance(probes, ProbeSet):
            return probes
        if isinstance(probes, str | os.PathLike):
            is_folder = os.path.isdir(probes)  # noqa: PTH112 - pathlib's raises for a name that is too long
            return cls.from_folder(probes) if is_folder else cls.load(probes)
        return cls(probes)

    def save(self, file: PathLike) -> None:
        """Write the set to one safetensors file, pixels included."""
        tensors, rows = self.tensors()
        save_tensors(Path(file), "probe set", tensors, {"probes": rows, "digest": self.digest})

    @classmethod
    def load(cls, file: PathLike) -> "ProbeSet":
        """Read what :meth:`save` wrote.

        Raises:
            SnapshotError: the file is missing, damaged or something else.
        """
        tensors, metadata = load_tensors(Path(file), "probe set")
        try:
            probes = cls.from_tensors(tensors, metadata["probes"])
        except (KeyError, TypeError, ProbeError) as error:
            raise SnapshotError(f"{file} is not a whole probe set: {abridged(repr(error))}") from error
        if probes.digest != metadata.get("digest"):
            raise SnapshotError(f"{file} is damaged: its pixels, prompts or masks are not those that were saved.")
        return probes

    def tensors(self) -> tuple[dict[str, Tensor], list[dict[str, str]]]:
        """The set as plain tensors and strings, for a file or a checkpoint."""
        tensors = {}
        for i, probe in enumerate(self):
            pixels, mask = probe.image, probe.mask
            tensors[f"image.{i}"] = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
            if mask is not None:
                tensors[f"mask.{i}"] = torch.from_numpy(mask)
            if probe.tokens is not None:
                tensors[f"tokens.{i}"] = probe.tokens
        return tensors, [{"name": probe.name, "prompt": probe.prompt} for probe in self]

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], rows: Sequence[dict[str, str]]) -> "ProbeSet":
        """The inverse of :meth:`tensors`."""
        probes = []
        for i, row in enumerate(rows):
            image, mask = tensors[f"image.{i}"], tensors.get(f"mask.{i}")
            probes.append(
                Probe(
                    image=image.numpy() if image.dtype == torch.uint8 else image,
                    prompt=row["prompt"],
                    name=row["name"],
                    mask=None if mask is None else mask.numpy(),
                    tokens=tensors.get(f"tokens.{i}"),
                )
            )
        return cls(probes)

    def prepared(self, clip: ClipModel) -> PreparedProbes:
        """The set as ``clip`` is fed with it.

        Raises:
            ProbeError: preprocessed pixels of another size than the model's, token ids of several lengths, or a
                mask of which the model sees nothing.
        """
        size, images, masks = clip.preprocessing.size, [], []
        lengths = {probe.name: len(probe.tokens) for probe in self if probe.tokens is not None}
        if len(set(lengths.values())) > 1:
            raise ProbeError(f"the probes' token ids must be of one length (got {lengths}).")
        for probe in self:
            pixels: Any = probe.image
            if isinstance(pixels, Tensor) and tuple(pixels.shape[1:]) != size:
                raise ProbeError(
                    f"probe {probe.name!r} holds preprocessed pixels of {pixels.shape[1]}x{pixels.shape[2]}, "
                    f"the model expects {size[0]}x{size[1]}."
                )
            images.append(pixels if isinstance(pixels, Tensor) else clip.preprocessing.image(pixels))
            mask: Any = probe.mask
            if mask is None:
                masks.append(torch.zeros(size, dtype=torch.bool))
            else:
                preprocessed = isinstance(pixels, Tensor)
                masks.append(torch.from_numpy(mask) if preprocessed else clip.preprocessing.mask(mask))
                if not masks[-1].any():
                    raise ProbeError(
                        f"the mask of probe {probe.name!r} vanishes when its image is resized and cropped to "
                        f"{size[0]}x{size[1]}; give another picture, or leave the mask out."
                    )
        return PreparedProbes(
            images=torch.stack(images),
            texts=[probe.prompt if probe.tokens is None else probe.tokens for probe in self],
            masks=torch.stack(masks),
            has_mask=torch.tensor([probe.mask is not None for probe in self]),
        )


def _probe(given: ProbeLike, place: str) -> Probe:
    if isinstance(given, Probe):
        return given
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ProbeError(f"{place}: expected a Probe or a pair (image, prompt) (got {reprlib.repr(given)}).")
    return Probe(*given)


def _names(probes: Sequence[Probe], places: Sequence[str]) -> list[str]:
    """A unique slug a probe; names that were given must be unique slugs already."""
    taken: set[str] = set()
    for probe, place in zip(probes, places, strict=True):
        if probe.name and probe.name != _slug(probe.name):
            name = reprlib.repr(probe.name)
            raise ProbeError(f"{place}: the name {name} is not a slug; write {_slug(probe.name)!r}.")
        if probe.name and probe.name in taken:
            raise ProbeError(f"{place}: a probe before it is named {probe.name!r} too; names must be unique.")
        taken.add(probe.name)
    names = []
    for probe in probes:
        of_file = isinstance(probe.image, str | os.PathLike)
        base = _slug(Path(probe.image).stem if of_file else probe.prompt)  # type: ignore[arg-type]
        name, number = probe.name or base, 2
        while not probe.name and name in taken:
            suffix = f"-{number}"
            name, number = base[: NAME_LENGTH - len(suffix)].rstrip("-.") + suffix, number + 1
        taken.add(name)
        names.append(name)
    return names


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-.")[:NAME_LENGTH].strip("-.") or "probe"


def _digest(probe: Probe) -> str:
    """sha256 over pixels, prompt and mask; the name does not count."""
    digest = hashlib.sha256()
    image: Any = probe.image
    pixels = image.numpy() if isinstance(image, Tensor) else image
    for part in (pixels, probe.mask, None if probe.tokens is None else probe.tokens.numpy()):
        array: Any = part
        digest.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode() + array.tobytes())
    digest.update(probe.prompt.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()
