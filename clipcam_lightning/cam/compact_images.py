"""Model input that is kept as bytes where that loses nothing."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from clipcam_lightning.cam.preprocessing import Normalisation, Preprocessing
from clipcam_lightning.cam.representation import short_repr

PART = 128 * 224**2  # pixels that are handled at once: 77 MB as floats


@dataclass(frozen=True, eq=False, repr=False)
class CompactImages:
    """Images of one size, stored as bytes and returned as model input.

    Bytes take a quarter of the memory. If the model input of one image does not follow from bytes to the last bit, as
    that of an augmented one, all are kept as floats.

    Attributes:
        values: bytes, or model input itself; on the CPU.
        normalisation: mean and standard deviation that the bytes, divided by 255, are normalised with; ``None`` if the
            values are model input.

    Example:
        >>> bytes_ = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
        >>> images = CompactImages.of([bytes_ / 255], 1, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
        >>> images.values.dtype, torch.equal(images[0], bytes_ / 255)
        (torch.uint8, True)
    """

    values: UInt8[Tensor, "n 3 y x"] | Float[Tensor, "n 3 y x"]
    normalisation: Normalisation | None = None

    __repr__ = short_repr

    @classmethod
    def of(cls, images: Iterable[Float[Tensor, "3 y x"]], count: int, normalisation: Normalisation) -> "CompactImages":
        """Keep images as bytes if these give the same model input.

        Args:
            images: at least one, all of one size.
            count: how many.
            normalisation: mean and standard deviation of the model.
        """
        values: Tensor | None = None
        kept: Normalisation | None = normalisation
        for i, image in enumerate(images):
            packed = image if kept is None else _to_bytes(image, kept)
            if packed is None:
                if values is not None and kept is not None:
                    floats = torch.empty((count, *image.shape), dtype=torch.float32, device="cpu")
                    floats[:i] = _normalise(values[:i], kept)
                    values = floats
                packed, kept = image, None
            if values is None:
                values = torch.empty((count, *image.shape), dtype=packed.dtype, device="cpu")
            values[i] = packed
        assert values is not None
        return cls(values, kept)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(
        self, rows: int | slice | Sequence[int] | Int[Tensor, "k"]
    ) -> Float[Tensor, "k 3 y x"] | Float[Tensor, "3 y x"]:
        """Return the model input of some images."""
        values = self.values[rows]
        return values if self.normalisation is None else _normalise(values, self.normalisation)

    @cached_property
    def keys(self) -> list[int]:
        """What tells the images apart: equal for equal images, and of no use in another process."""
        return [hash(image.numpy().tobytes()) for image in self.values]

    @property
    def shape(self) -> torch.Size:
        """Number, channels, height and width."""
        return self.values.shape

    def split(self, size: int) -> Iterator[Float[Tensor, "b 3 y x"]]:
        """Yield the model input of ``size`` images at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def select(self, rows: slice | Sequence[int]) -> "CompactImages":
        """Keep some of the images, by their numbers."""
        return CompactImages(self.values[rows], self.normalisation)

    def pixels(self, preprocessing: Preprocessing) -> UInt8[Tensor, "n 3 y x"]:
        """Return a copy of what the model sees, for display.

        Args:
            preprocessing: of the model.
        """
        if self.normalisation is not None:
            return self.values.clone()
        return torch.cat([preprocessing.pixels(self[part]) for part in parts(len(self), self.shape)])


def parts(count: int, shape: Sequence[int]) -> Iterator[slice]:
    """Divide images into parts that are handled at once, so that memory does not grow with their number.

    Args:
        count: of the images.
        shape: of the images; the last two values are height and width.
    """
    size = max(1, PART // (shape[-2] * shape[-1]))
    return (slice(start, start + size) for start in range(0, count, size))


def _to_bytes(image: Float[Tensor, "3 y x"], normalisation: Normalisation) -> UInt8[Tensor, "3 y x"] | None:
    """Return the bytes that an image follows from to the last bit; ``None`` if there are none."""
    mean, std = (torch.tensor(each, dtype=torch.float32, device="cpu").view(3, 1, 1) for each in normalisation)
    levels = ((image * std + mean) * 255).round()
    if image.dtype != torch.float32 or not ((levels >= 0) & (levels <= 255)).all():  # False where it is NaN
        return None
    packed = levels.to(torch.uint8)
    return packed if torch.equal(_normalise(packed, normalisation), image) else None


def _normalise(values: UInt8[Tensor, "*n 3 y x"], normalisation: Normalisation) -> Float[Tensor, "*n 3 y x"]:
    """Normalise bytes with the operations of torchvision's transforms, which give the same bits."""
    mean, std = (torch.tensor(each, dtype=torch.float32, device="cpu").view(3, 1, 1) for each in normalisation)
    return values.to(torch.float32).div_(255).sub_(mean).div_(std)
