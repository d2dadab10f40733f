"""The stored result of an evaluation: the maps of all probes, and what is needed to compare them."""

import io
import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor
from typing_extensions import override

from clipcam_lightning.cam.display.drawing import draw_maps, fit_image, to_image, to_pixels
from clipcam_lightning.cam.display.gallery import Gallery, Tile, describe_rest
from clipcam_lightning.cam.display.shown import Shown
from clipcam_lightning.cam.map_state import MapState, map_state
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.errors import SnapshotError, abridge
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

KIND = "snapshot"
TRUSTED = 0.5  # share of the maps that are on their objects, if maps alone may raise an alarm
OPTIONAL_VALUES = (
    "noise_floor", "background_score", "named_without_object", "map_agrees", "covered_loss", "control_loss",
)  # fmt: skip
"""Names of tensors with one value per probe."""
PACKED = ("images", "image_sizes", "objects", "objects_size")
OPTIONAL_NUMBERS = ("closest", "donors", "transplants_named")
"""Names of tensors with one (``closest``) or several numbers of probes per probe; -1 for none."""
OF_BASELINES = ("noise_floor", "images", "objects", "map_agrees", "donors", "transplants_named")
"""Attributes that later evaluations take from the first baseline of a run."""


@dataclass(frozen=True)
class SnapshotInfo:
    """How the maps of a snapshot were made.

    Attributes:
        digest: of the probe set.
        step: optimizer steps taken before the evaluation.
        epoch: of the evaluation, counted from 0.
        method: name of the CAM method.
        target: name of the target.
        scales: enlargements of the image whose maps were averaged.
        flip: whether the map of the mirrored image was averaged in.
        fuse: how the maps of several layers were combined.
        layers: dotted names of the mapped layers.
        fingerprint: of the model's architecture.
        dtype: of the image tower's weights.
        versions: of the packages that took part.
        score_scale: factor on the cosine before the target.
        shift: whether the map of the image shifted by half a cell was averaged in.
        precision: in which the image tower computed: ``"float32"``, that of its weights, or ``"bfloat16"``.

    Example:
        >>> from clipcam_lightning import evaluate
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> info = evaluation.snapshot.info
        >>> info.method, info.target, info.scales
        ('decomposition', 'similarity', (1.0,))
    """

    digest: str
    step: int
    epoch: int
    method: str
    target: str
    scales: tuple[float, ...]
    flip: bool
    fuse: str
    layers: tuple[str, ...]
    fingerprint: str
    dtype: str
    versions: dict[str, str]
    score_scale: float = 1.0
    shift: bool = False
    precision: str = "float32"


@dataclass(frozen=True, eq=False, repr=False)
class Snapshot(Shown):
    """The stored result of one evaluation; everything on the CPU.

    In Jupyter it shows itself: the map of each probe over its image, where the snapshot holds the images.

    The callback, ``clipcam snapshot`` and the ``cam_regression`` fixture write snapshots. Two snapshots of the same
    probe set are compared with :func:`~clipcam_lightning.compare`.

    Attributes:
        maps: raw saliency, float32, on the layer's own grid.
        similarity: cosine of image and prompt, -1 to 1.
        energy_inside_mask: share of each map's mass on the object, 0 to 1; 0 for a degenerate map, NaN without mask.
        pointing: 1 if the hottest pixel lies on the object, else 0; 0 for a degenerate map, NaN without mask.
        names: of the probes.
        prompts: of the probes.
        info: how the maps were made.
        closest: for each image the number of a probe to whose prompt it is closest, leaving out other prompts for the
            same image; -1 if its similarities are not finite, ``None`` if unknown.
        noise_floor: mean drift of each probe's map under changes that do not matter, 0 to 2; NaN where unknown,
            ``None`` if it was not measured. Of more than 8 probes 8 are measured, the others have their median.
        images: input of the model for each probe, as JPEG files; empty if another snapshot of the run has them.
        background_score: how much nearer to its prompt an image without its object is than the other images without
            theirs, in standard deviations of these; NaN where fewer than three other images have another prompt,
            ``None`` if it was not measured.
        named_without_object: 1 if an image without its object is closer to its own prompt than to those of the other
            probes, else 0; NaN if an embedding is not finite; NaN and ``None`` as above.
        donors: numbers of the probes whose objects were pasted on the background of each probe, which has lost its own;
            -1 for none, ``None`` if that was not done.
        transplants_named: for each of these images the number of a probe to whose prompt it is closest; -1 for none.
        covered_loss: what the similarity loses if the place outside the object is covered where the map gained most
            since the baseline, -2 to 2; NaN where the map hardly moved, ``None`` without suspicion.
        control_loss: the same for another place, as far from the middle of the image; NaN and ``None`` as above.
        map_agrees: 1 if the map is on the mask or, without one, agrees with occlusion, else 0; in baselines only.
        objects: pixels of the model's input that are taken for the object of each probe; in baselines only.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import torch
        >>> from clipcam_lightning import Snapshot
        >>> from clipcam_lightning.drift.snapshot import SnapshotInfo
        >>> info = SnapshotInfo(
        ...     digest="", step=0, epoch=0, method="gradcam", target="similarity", scales=(1.0,), flip=False,
        ...     fuse="mean", layers=("visual.layer4",), fingerprint="", dtype="float32", versions={})
        >>> snapshot = Snapshot(
        ...     maps=torch.eye(7)[None], similarity=torch.tensor([0.3]), energy_inside_mask=torch.tensor([torch.nan]),
        ...     pointing=torch.tensor([torch.nan]), names=("cat",), prompts=("a cat",), info=info)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     snapshot.save(Path(folder, "step-0.safetensors"))
        ...     loaded = Snapshot.load(Path(folder, "step-0.safetensors"))
        >>> loaded.maps.shape, loaded.info == info
        (torch.Size([1, 7, 7]), True)
    """

    maps: Float[Tensor, "n h w"]
    similarity: Float[Tensor, "n"]
    energy_inside_mask: Float[Tensor, "n"]
    pointing: Float[Tensor, "n"]
    names: tuple[str, ...]
    prompts: tuple[str, ...]
    info: SnapshotInfo
    closest: Int[Tensor, "n"] | None = None
    noise_floor: Float[Tensor, "n"] | None = None
    images: tuple[bytes, ...] = ()
    background_score: Float[Tensor, "n"] | None = None
    named_without_object: Float[Tensor, "n"] | None = None
    donors: Int[Tensor, "n k"] | None = None
    transplants_named: Int[Tensor, "n k"] | None = None
    covered_loss: Float[Tensor, "n"] | None = None
    control_loss: Float[Tensor, "n"] | None = None
    map_agrees: Float[Tensor, "n"] | None = None
    objects: Bool[Tensor, "n y x"] | None = None

    __repr__ = short_repr

    @property
    def states(self) -> tuple[MapState, ...]:
        """Whether each map carries information, and if not, why."""
        return tuple(map(map_state, self.maps))

    @property
    def closest_prompts(self) -> tuple[str, ...]:
        """The prompt of the probes that each image is closest to; empty where it is unknown."""
        numbers = [-1] * len(self.names) if self.closest is None else self.closest.tolist()
        return tuple(self.prompts[number] if number >= 0 else "" for number in numbers)

    @property
    def has_trusted_maps(self) -> bool:
        """Whether at least half of the maps agree with masks or occlusion; ``True`` if that was not measured."""
        return self.map_agrees is None or float(self.map_agrees.mean()) >= TRUSTED

    @property
    def map_agreement(self) -> str:
        """A clause: how many maps are on their masks and, of probes without masks, how many agree with occlusion."""
        if self.map_agrees is None:
            return "it was not measured whether the maps show what the model uses"
        has_mask, facts = torch.isfinite(self.energy_inside_mask), []
        for what, which in (("are on the objects", has_mask), ("agree with occlusion", ~has_mask)):
            if count := int(which.sum()):
                facts.append(f"{int(self.map_agrees[which].sum())} of {count} maps {what}")
        return " and ".join(facts)

    def save(self, file: PathLike) -> None:
        """Write the snapshot to a safetensors file, which is never half written.

        Args:
            file: a path or the URL of a store, such as ``s3://bucket/baseline.safetensors``; replaced if it exists.

        Raises:
            ConfigError: the URL cannot be opened.
            OSError: the file cannot be written.
        """
        save_tensors(as_path(file), KIND, *self.to_tensors())

    @classmethod
    def load(cls, file: PathLike) -> "Snapshot":
        """Read a file that :meth:`save` wrote.

        Args:
            file: the safetensors file, as a path or a URL.

        Returns:
            The same snapshot, bit for bit.

        Raises:
            ConfigError: the URL cannot be opened.
            SnapshotError: the file is missing, damaged or no snapshot.
        """
        tensors, metadata = load_tensors(as_path(file), KIND)
        try:
            return cls.from_tensors(tensors, metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"{file} is not a whole snapshot: {abridge(repr(error))}") from error

    @override
    def _gallery(self, side: int, limit: int) -> Gallery:
        tiles = [self._make_tile(i, side) for i in range(min(limit, len(self.names)))]
        return Gallery(
            heading=f"step {self.info.step}, epoch {self.info.epoch}: {self.info.method} of {self.info.target}",
            rows=[tiles],
            scale="own scale: from 0 to the largest value of each map",
            remark=describe_rest(len(tiles), len(self.names), "probe"),
        )

    def _make_tile(self, i: int, side: int) -> Tile:
        pixels = None
        if self.images:
            pixels = to_pixels(fit_image(to_image(decode_image(self.images[i], self.names[i])), side))
        (drawing,) = draw_maps(self.maps[i : i + 1], pixels, side)
        details, energy = f"similarity {self.similarity[i]:.2f}", float(self.energy_inside_mask[i])
        return Tile(
            drawing, self.prompts[i], details if math.isnan(energy) else f"{details} · {100 * energy:.0f} % on object"
        )

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Split the snapshot for a file or a checkpoint.

        Returns:
            Tensors by name, and metadata that JSON can represent.
        """
        tensors = {
            "maps": self.maps,
            "similarity": self.similarity,
            "energy_inside_mask": self.energy_inside_mask,
            "pointing": self.pointing,
        }
        for name in (*OPTIONAL_VALUES, *OPTIONAL_NUMBERS):
            if (value := getattr(self, name)) is not None:
                tensors[name] = value
        if self.objects is not None:
            tensors["objects"] = torch.from_numpy(np.packbits(self.objects.numpy(), axis=2))
            tensors["objects_size"] = torch.tensor(self.objects.shape[1:], device="cpu")
        if self.images:
            tensors["images"] = torch.frombuffer(bytearray(b"".join(self.images)), dtype=torch.uint8)
            tensors["image_sizes"] = torch.tensor([len(image) for image in self.images], device="cpu")
        return tensors, {
            "names": list(self.names),
            "prompts": list(self.prompts),
            "states": [state.value for state in self.states],  # for other readers: here they follow from the maps
            "info": asdict(self.info),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> "Snapshot":
        """Invert :meth:`to_tensors`.

        Args:
            tensors: by name.
            metadata: ``names``, ``prompts`` and ``info``.

        Returns:
            The snapshot.

        Raises:
            KeyError, TypeError, ValueError: they are not those of a snapshot.
        """
        names, prompts, info = _texts(metadata["names"]), _texts(metadata["prompts"]), _info(metadata["info"])
        values = {key: value for key, value in tensors.items() if key not in PACKED}
        images = _split(tensors["images"], tensors["image_sizes"]) if "images" in tensors else ()
        objects = _unpack(tensors["objects"], tensors["objects_size"]) if "objects" in tensors else None
        snapshot = cls(**values, names=names, prompts=prompts, info=info, images=images, objects=objects)
        count, maps = len(names), values.pop("maps")
        numbers = {name: values.pop(name) for name in OPTIONAL_NUMBERS if name in values}
        several = [value for name, value in numbers.items() if name != "closest"]
        if (
            maps.ndim != 3
            or not maps.numel()
            or not len(prompts) == len(maps) == count
            or any(value.shape != (count,) for value in values.values())
            or any(value.dtype != torch.float32 for value in (maps, *values.values()))
            or len(images) not in (0, count)
            or (objects is not None and len(objects) != count)
            or any(each.dtype != torch.int64 or each.shape[:1] != (count,) for each in numbers.values())
            or any(((each < -1) | (each >= count)).any() for each in numbers.values())
            or any(each.ndim != 2 or each.shape != several[0].shape for each in several)
            or ("closest" in numbers and numbers["closest"].ndim != 1)
        ):
            raise ValueError(
                "lengths, dtypes or values of names, prompts, maps, metrics, objects, donors and images do not match"
            )
        return snapshot


def decode_image(file: bytes, name: str) -> UInt8[Tensor, "3 y x"]:
    """Decode the image of a probe.

    Args:
        file: JPEG, as a snapshot keeps it.
        name: of the probe.

    Raises:
        SnapshotError: the image is damaged.
    """
    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
            return to_pixels(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SnapshotError(f"the image of probe {name!r} is damaged ({error}); take the snapshot again.") from error


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise TypeError("names, prompts and layers must be lists of strings")
    return tuple(values)


def _scales(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not all(type(value) in (int, float) for value in values):
        raise TypeError("scales must be a list of numbers")
    if not values or not all(0 < value <= sys.float_info.max for value in values):
        raise ValueError("scales must be positive and finite, at least one")
    return tuple(map(float, values))


def _info(fields: dict[str, Any]) -> SnapshotInfo:
    info = SnapshotInfo(
        **{
            **fields,
            "scales": _scales(fields["scales"]),
            "layers": _texts(fields["layers"]),
            "versions": dict(fields["versions"]),
        }
    )
    versions = info.versions
    texts = (info.digest, info.method, info.target, info.fuse, info.fingerprint, info.dtype, info.precision, *versions)
    if not all(isinstance(text, str) for text in (*texts, *versions.values())):
        raise TypeError("digest, method, target, fuse, fingerprint, dtype, precision and versions must be strings")
    if not type(info.step) is type(info.epoch) is int or not type(info.flip) is type(info.shift) is bool:
        raise TypeError("step and epoch must be integers, flip and shift booleans")
    if type(info.score_scale) not in (int, float) or not 0 < info.score_scale <= sys.float_info.max:
        raise ValueError("score_scale must be a positive and finite number")
    return info


def _unpack(packed: Tensor, size: Tensor) -> Bool[Tensor, "n y x"]:
    """Invert the packing of eight pixels into a byte."""
    height, width = size.tolist()
    if packed.dtype != torch.uint8 or packed.shape[1:] != (height, -(-width // 8)):
        raise ValueError("objects_size does not match the objects")
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=2, count=width)).bool()


def _split(joined: Tensor, sizes: Tensor) -> tuple[bytes, ...]:
    """Invert the concatenation of files."""
    lengths: list[int] = sizes.tolist() if sizes.ndim == 1 and sizes.dtype == torch.int64 else [-1]
    if joined.ndim != 1 or joined.dtype != torch.uint8 or min(lengths, default=0) < 0 or sum(lengths) != len(joined):
        raise ValueError("image_sizes does not match the image data")
    return tuple(part.numpy().tobytes() for part in joined.split(lengths))
