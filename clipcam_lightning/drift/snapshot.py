"""All maps of one probe set at one step, with what is needed to compare them."""

import os
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.drift import metrics
from clipcam_lightning.errors import SnapshotError, abridge
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

KIND = "snapshot"
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch")
_version = cache(version)  # it reads files


@dataclass(frozen=True)
class SnapshotInfo:
    """How the maps came about.

    Attributes:
        digest: of the probe set.
        step: optimizer steps taken.
        epoch: in which the look was taken, counted from 0.
        method: name of the CAM method.
        target: name of the target.
        layers: dotted names of the mapped layers.
        fingerprint: of the model's architecture.
        dtype: what the image tower computed in.
        versions: of the packages that had a part in it.
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


@dataclass(frozen=True)
class Snapshot:
    """The stored result of one look; everything on the CPU.

    Attributes:
        maps: raw saliency, float32, on the layer's own grid.
        similarity: cosine of image and prompt, -1 to 1.
        energy_inside_mask: share of a map's mass on the object, 0 to 1; NaN without mask or mass.
        pointing: 1 where the hottest pixel lies on the object, else 0; NaN without mask or for a degenerate map.
        names: of the probes.
        prompts: of the probes.
        info: how the maps came about.
        noise: mean drift of each probe's map under changes that do not matter, 0 to 2; NaN where unknown.
        pictures: what the model saw of each probe, as JPEG files; empty where another snapshot of the run has them.
    """

    maps: Float[Tensor, "n h w"]
    similarity: Float[Tensor, "n"]
    energy_inside_mask: Float[Tensor, "n"]
    pointing: Float[Tensor, "n"]
    names: tuple[str, ...]
    prompts: tuple[str, ...]
    info: SnapshotInfo
    noise: Float[Tensor, "n"] | None = None
    pictures: tuple[bytes, ...] = ()

    @property
    def degeneracies(self) -> list[str]:
        """Per probe why its map says nothing; empty for a sound one."""
        return [metrics.degeneracy(map_) for map_ in self.maps]

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write to a safetensors file; the file appears whole or not at all."""
        tensors, metadata = self.tensors()
        save_tensors(Path(file), KIND, tensors, metadata)

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> "Snapshot":
        """Read what :meth:`save` wrote.

        Raises:
            SnapshotError: the file is missing, damaged or something else.
        """
        tensors, metadata = load_tensors(Path(file), KIND)
        try:
            return cls.from_tensors(tensors, metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise SnapshotError(f"{file} is not a whole snapshot: {abridge(repr(error))}") from error

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The snapshot as plain tensors and JSON-able values, for a file or a checkpoint."""
        tensors = {
            "maps": self.maps,
            "similarity": self.similarity,
            "energy_inside_mask": self.energy_inside_mask,
            "pointing": self.pointing,
        }
        if self.noise is not None:
            tensors["noise"] = self.noise
        if self.pictures:
            tensors["pictures"] = torch.frombuffer(bytearray(b"".join(self.pictures)), dtype=torch.uint8)
            tensors["picture_sizes"] = torch.tensor([len(picture) for picture in self.pictures])
        return tensors, {"names": list(self.names), "prompts": list(self.prompts), "info": asdict(self.info)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> "Snapshot":
        """The inverse of :meth:`tensors`.

        Raises:
            KeyError, TypeError, ValueError: they are no snapshot's.
        """
        names, prompts, info = _texts(metadata["names"]), _texts(metadata["prompts"]), _info(metadata["info"])
        figures = {key: value for key, value in tensors.items() if not key.startswith("picture")}
        pictures = _cut(tensors["pictures"], tensors["picture_sizes"]) if "pictures" in tensors else ()
        snapshot = cls(**figures, names=names, prompts=prompts, info=info, pictures=pictures)
        maps = figures.pop("maps")
        if (
            maps.ndim != 3
            or not maps.numel()
            or not len(prompts) == len(maps) == len(names)
            or any(figure.shape != (len(names),) for figure in figures.values())
            or any(figure.dtype != torch.float32 for figure in (maps, *figures.values()))
            or len(pictures) not in (0, len(names))
        ):
            raise ValueError("names, prompts, maps and figures are not equally many, or of another kind")
        return snapshot


def take_snapshot(
    explanation: Explanation, probes: ProbeSet, prepared: PreparedProbes, clip: ClipModel, *, step: int, epoch: int
) -> Snapshot:
    """Put the explanation of a probe set (one prompt an image) into a snapshot, graded where masks are given."""
    maps = explanation.maps[:, 0].float().cpu()
    sound = torch.tensor([not metrics.degeneracy(map_) for map_ in maps])
    graded = prepared.has_mask & sound
    unknown = torch.full((len(maps),), torch.nan)
    return Snapshot(
        maps=maps,
        similarity=explanation.similarity[:, 0].float().cpu(),
        energy_inside_mask=torch.where(graded, metrics.energy_inside(maps, prepared.masks), unknown),
        pointing=torch.where(graded, metrics.pointing_hit(maps, prepared.masks).float(), unknown),
        names=tuple(probes.names),
        prompts=tuple(probes.prompts),
        info=SnapshotInfo(
            digest=probes.digest,
            step=step,
            epoch=epoch,
            method=explanation.method,
            target=explanation.target,
            scales=explanation.scales,
            flip=explanation.flip,
            fuse=explanation.fuse,
            layers=explanation.layers,
            fingerprint=clip.fingerprint,
            dtype=str(clip.dtype).removeprefix("torch."),
            versions={package: _version(package) for package in PACKAGES},
        ),
    )


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise TypeError("names, prompts and layers are not lists of texts")
    return tuple(values)


def _info(fields: dict[str, Any]) -> SnapshotInfo:
    info = SnapshotInfo(
        **{
            **fields,
            "layers": _texts(fields["layers"]),
            "scales": tuple(fields["scales"]),
            "versions": dict(fields["versions"]),
        }
    )
    versions = info.versions
    texts = (info.digest, info.method, info.target, info.fingerprint, info.dtype, *versions, *versions.values())
    if not all(isinstance(text, str) for text in texts) or not type(info.step) is type(info.epoch) is int:
        raise TypeError("what is told of the maps is of another kind")
    return info


def _cut(joined: Tensor, sizes: Tensor) -> tuple[bytes, ...]:
    """Files that were laid end to end."""
    each: list[int] = sizes.tolist() if sizes.ndim == 1 and sizes.dtype == torch.int64 else [-1]
    if joined.ndim != 1 or joined.dtype != torch.uint8 or min(each, default=0) < 0 or sum(each) != len(joined):
        raise ValueError("the pictures have other sizes than they say")
    return tuple(part.numpy().tobytes() for part in joined.split(each))


def mean_of_known(values: Float[Tensor, "n"]) -> float | None:
    """Mean of the finite values; ``None`` if there are none."""
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else None
