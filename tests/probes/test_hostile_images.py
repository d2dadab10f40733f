"""An image in any format keeps its colours and orientation, or is refused before it takes much memory."""

import io
import re
import resource
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, strategies as st
from PIL import Image
from torch import Tensor

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.probe import LoadedProbe, Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from tests.support.hostile import attempt, example_folder, examples, make_or_reject, without_test_checks

pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
DEEP = GREY.astype(np.uint16) * 257  # the same grey with 16 bits


def read(image: Any = PIXELS, **fields: Any) -> LoadedProbe:
    return ProbeSet([Probe(image, "a cat", **fields)])[0]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


PALETTE = Image.fromarray(PIXELS).quantize(16)


# The colours of PALETTE, looked up without Pillow's conversion.
PALETTE_PIXELS = np.array(PALETTE.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(PALETTE)]


def deep_rgb_png() -> bytes:
    """Encode with 16 bits per channel, which Pillow reads but does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS.astype(np.uint16) * 257)
    return png(chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 6, 16, 2, 0, 0, 0)), chunk(b"IDAT", zlib.compress(rows)))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


INK = 255 - PIXELS.astype(int)
KEY = np.full((6, 10, 1), 51, np.uint8)
CMYK = Image.fromarray(np.concatenate([INK.astype(np.uint8), KEY], axis=2), "CMYK")
ALPHA = np.arange(60, dtype=np.uint8).reshape(6, 10) * 4
FORMATS: dict[str, tuple[bytes, np.ndarray]] = {
    "grey": (encode(Image.fromarray(GREY), "PNG"), grey_rgb(GREY)),
    "16-bit grey": (encode(Image.fromarray(DEEP), "PNG"), grey_rgb(GREY)),
    "16-bit grey TIFF": (encode(Image.fromarray(DEEP), "TIFF"), grey_rgb(GREY)),
    "16-bit RGB": (deep_rgb_png(), PIXELS),
    "1-bit": (encode(Image.fromarray(GREY > 127), "PNG"), grey_rgb((GREY > 127).astype(np.uint8) * 255)),
    "palette": (encode(PALETTE, "PNG"), PALETTE_PIXELS),
    "palette, transparent colour": (encode(PALETTE, "PNG", transparency=3), PALETTE_PIXELS),
    "palette, alpha": (encode(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))), PALETTE_PIXELS),
    "grey and alpha": (encode(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG"), grey_rgb(GREY)),
    "RGBA": (encode(Image.fromarray(np.dstack([PIXELS, ALPHA])), "PNG"), PIXELS),
    "CMYK": (encode(CMYK, "TIFF"), np.round(PIXELS * (204 / 255)).astype(np.uint8)),
    "animated GIF": (
        encode(PALETTE, "GIF", save_all=True, append_images=[Image.fromarray(255 - PIXELS).quantize(16)]),
        PALETTE_PIXELS,
    ),
    "animated WebP": (
        encode(
            Image.fromarray(PIXELS), "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - PIXELS)]
        ),
        PIXELS,
    ),
    "BMP": (encode(Image.fromarray(PIXELS), "BMP"), PIXELS),
}


@pytest.mark.parametrize(("content", "expected"), FORMATS.values(), ids=FORMATS)
def test_an_image_in_any_format_keeps_its_colours(tmp_path: Path, content: bytes, expected: np.ndarray) -> None:
    (tmp_path / "a.png").write_bytes(content)  # the format does not depend on the file's name
    with Image.open(tmp_path / "a.png") as opened:
        for source in (tmp_path / "a.png", opened):
            image = read(source).image
            assert image.shape == expected.shape
            assert np.abs(image.astype(int) - expected).max() <= 1


# By EXIF orientation: what is stored of an upright image, from the standard's positions of the first row and column.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright[:, ::-1].transpose(1, 0, 2),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: upright[::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied_to_an_image_and_its_mask(tmp_path: Path, orientation: int) -> None:
    """Boxes are drawn on what an image viewer shows."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, upright in (("photo.png", PIXELS), ("mask.png", grey_rgb(GREY) // 128)):
        stored = np.ascontiguousarray(STORED[orientation](upright))
        Image.fromarray(stored).save(tmp_path / name, exif=exif)

    probe = read(tmp_path / "photo.png", mask=tmp_path / "mask.png")

    assert np.array_equal(probe.image, PIXELS)
    assert np.array_equal(probe.mask, GREY > 127)


@given(data=st.data())
@examples(60)
def test_an_image_with_damaged_exif_is_read_in_some_orientation(data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9000: b"0232"}
    content = bytearray(exif.tobytes())
    for place in data.draw(st.lists(st.integers(6, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(0, len(content)))
    with example_folder() as folder:
        (folder / "a.png").write_bytes(encode(Image.fromarray(PIXELS), "PNG", exif=bytes(content[:kept])))
        probe = attempt(lambda: read(folder / "a.png"))
    assert probe is not None
    assert any(np.array_equal(probe.image, transform(PIXELS)) for transform in STORED.values())


KINDS = {
    kind: encode(Image.fromarray(PIXELS), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM")
}


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@examples(25)
def test_a_damaged_image_is_read_or_refused(kind: str, field: str, data: st.DataObject) -> None:
    content = bytearray(KINDS[kind])
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), max_size=2)):
        content[place // 8] ^= 1 << place % 8
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    with example_folder() as folder:
        (folder / "a.png").write_bytes(content)
        probe = attempt(lambda: read(**{field: folder / "a.png"}))
    event("read" if probe else "refused")
    if probe is not None:
        assert probe.image.dtype == np.uint8
        assert probe.image.ndim == 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@given(data=st.data())
@examples(25)
def test_a_truncated_image_is_refused_or_complete(kind: str, data: st.DataObject) -> None:
    """Otherwise its lower part would be grey or black."""
    content = KINDS[kind]
    with example_folder() as folder:
        (folder / "complete").write_bytes(content)
        (folder / "cut").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        probe = attempt(lambda: read(folder / "cut"))
        assert probe is None or np.array_equal(probe.image, read(folder / "complete").image)


HUGE = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
BOMBS = {
    "a huge size": png(chunk(b"IHDR", HUGE), chunk(b"IDAT", zlib.compress(bytes(1000)))),
    "a huge text": png(
        chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(500_000_000), 1)),
        chunk(b"IDAT", zlib.compress(bytes(4))),
    ),
    "a huge GIF": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + KINDS["GIF"][13:],
    "a huge BMP": KINDS["BMP"][:18] + struct.pack("<ii", 60_000, 60_000) + KINDS["BMP"][26:],
}


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_a_decompression_bomb_is_refused_before_it_takes_memory(tmp_path: Path, content: bytes, field: str) -> None:
    (tmp_path / "bomb.png").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProbeError, match=r"bomb\.png cannot be read"):
        read(**{field: tmp_path / "bomb.png"})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("size", [(1, 1), (10_000, 10), (1, 5_000)], ids=str)
def test_an_image_of_any_proportions_is_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "a.png")
    image = read(tmp_path / "a.png").image
    assert image.shape == (size[1], size[0], 3)
    assert (image == (9, 8, 7)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10), "32-bit pixels is unknown"),
        (DEEP.astype(np.int32) * 1000, "32-bit pixels is unknown"),
    ],
    ids=["floats", "integers"],
)
def test_an_image_with_an_unknown_range_of_values_is_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(ProbeError, match=message):
        read(tmp_path / "a.tiff")


def test_the_message_of_an_image_without_a_file_has_no_gap_for_its_name() -> None:
    with pytest.raises(ProbeError, match=r"^probe 1: the image cannot be read: the range of its 32-bit pixels"):
        ProbeSet([(Image.new("F", (8, 8)), "a cat")])


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray((GREY > 127).astype(np.uint16)),
        Image.fromarray((GREY > 127).astype(np.uint16) * 256),
        Image.fromarray((GREY > 127).astype(np.int32)),
        Image.fromarray((GREY > 127).astype(np.float32) / 1000),
        Image.fromarray(np.dstack([0 * GREY, 0 * GREY, GREY > 127]).astype(np.uint8)),
        Image.fromarray(GREY > 127).convert("P"),
        Image.fromarray(np.dstack([GREY > 127, 0 * GREY]).astype(np.uint8)),
    ],
    ids=["16-bit 1", "16-bit 256", "32-bit", "float", "faint blue", "palette", "grey and alpha"],
)
def test_pixels_that_are_almost_black_belong_to_the_mask(mask: Image.Image) -> None:
    assert np.array_equal(read(mask=mask).mask, GREY > 127)


ARRAY_KINDS = ["u1", "i1", ">u2", "i8", "f2", "f4", ">f8", "?", "c8", "O", "U3", "S2", "M8[s]", "V4", "u1,u1"]
SHAPES = st.one_of(
    st.sampled_from([(6, 10, 3), (3, 6, 10), (6, 10)]),
    st.sampled_from([(1, 1, 3), (0, 10, 3), (3, 0, 10), (6, 10, 4)]),
    st.lists(st.integers(0, 4), max_size=5).map(tuple),
)


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("kind", ARRAY_KINDS)
@given(shape=SHAPES, form=st.sampled_from(["C", "F", "view", "read-only", "masked"]))
@examples(15)
def test_an_array_of_any_kind_is_copied_or_refused(field: str, kind: str, shape: tuple[int, ...], form: str) -> None:
    array = (
        np.zeros(shape, kind)
        if kind[0] in "OUMVS" or "," in kind
        else (np.arange(np.prod(shape)) % 2).astype(kind).reshape(shape)
    )
    if form == "F":
        array = np.asfortranarray(array)
    elif form == "view":
        array = array[::-1] if array.ndim else array
    elif form == "read-only":
        array.flags.writeable = False
    elif form == "masked":
        array = np.ma.masked_array(array)
    probe = attempt(lambda: read(**{field: array}))
    usable = kind == "u1" and array.ndim == 3 and array.shape[2] == 3 and array.size > 0
    if field == "mask":
        usable = array.dtype.kind in "biuf" and array.shape == (6, 10)
    assert (probe is not None) == usable
    if probe is not None:
        copy = getattr(probe, field)
        assert type(copy) is np.ndarray
        assert np.array_equal(copy, array)
        assert copy.flags.writeable
        check_file(probe)


def check_file(probe: LoadedProbe) -> None:
    """Check that a set of the probe comes back from its file."""
    with example_folder() as folder, without_test_checks():
        probes = ProbeSet([probe])
        probes.save(folder / "f")
        assert ProbeSet(folder / "f") == probes


def inference_copy(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


DTYPES = sorted({kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}, key=str)
LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.mT.contiguous().mT,
    "expanded": lambda tensor: tensor[:1].expand(tensor.shape),
    "requires grad": lambda tensor: tensor.requires_grad_(),
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    "subclass": lambda tensor: tensor.as_subclass(type("Own", (Tensor,), {})),
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse rows": lambda tensor: tensor.to_sparse_csr(),
    "meta": lambda tensor: tensor.to("meta"),
    "nested": lambda tensor: torch.nested.nested_tensor(list(tensor)),
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "negated": lambda tensor: torch.complex(tensor, -tensor).conj().imag,
    "conjugate": lambda tensor: torch.complex(tensor, tensor).conj(),
    "inference": inference_copy,
}
NO_VALUES = {"sparse", "sparse rows", "meta", "nested", "quantized"}


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    dtype=st.sampled_from([torch.float32, torch.bool]) | st.sampled_from(DTYPES),
    shape=st.sampled_from([(3, 6, 10), (6, 10)]) | SHAPES,
    value=st.sampled_from([0.0, 1.0]),
)
@examples(20)
def test_a_tensor_of_any_kind_is_copied_or_refused(
    field: str, dtype: torch.dtype, layout: str, shape: tuple[int, ...], value: float
) -> None:
    with without_test_checks():
        tensor = make_or_reject(lambda: LAYOUTS[layout](torch.full(shape, value).to(dtype)))
    probe = attempt(lambda: read(**{field: tensor}))
    event("read" if probe else "refused")
    floats = dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if layout in NO_VALUES or tensor.is_complex():
        assert probe is None
    elif field == "image":
        assert (probe is not None) == (floats and len(shape) == 3 and shape[0] == 3 and tensor.numel() > 0)
    elif probe is None:
        assert (dtype not in (torch.bool, torch.uint8, torch.int64) and not floats) or shape != (6, 10) or not value
    if probe is not None:
        copy = getattr(probe, field)
        assert type(copy) is (Tensor if field == "image" else np.ndarray)
        assert (torch.as_tensor(copy) == value).all()
        check_file(probe)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_pixels_and_masks_that_are_not_finite_are_refused(number: float) -> None:
    image, mask = torch.zeros(3, 6, 10), np.ones((6, 10))
    image[1, 2, 3] = mask[2, 3] = number
    for fields in ({"image": image}, {"image": image.double() * 10}, {"mask": mask}, {"mask": torch.from_numpy(mask)}):
        with pytest.raises(ProbeError, match="must be finite"):
            read(**fields)
    with pytest.raises(ProbeError, match="must be finite"):
        read(torch.full((3, 6, 10), 1e300, dtype=torch.float64))  # too large for float32


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize(
    "value",
    [5, 0.5, b"a.png", ["a.png"], {"a": 1}, object(), True, PIXELS.tolist()],
    ids=lambda value: type(value).__name__,
)
def test_a_value_that_is_no_image_is_refused_with_its_type(field: str, value: Any) -> None:
    with without_test_checks(), pytest.raises(ProbeError, match=f"must be a file.*got {type(value).__name__}"):
        read(**{field: value})


def test_an_image_of_none_is_refused() -> None:
    with without_test_checks(), pytest.raises(ProbeError, match="got NoneType"):
        read(None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"box": (0, 0, 1.5, 2)}, "four whole numbers"),
        ({"box": (0, 0, 1)}, "four whole numbers"),
        ({"box": (0, 0, 1, 1, 1)}, "four whole numbers"),
        ({"box": (0, np.nan, 1, 1)}, "four whole numbers"),
        ({"box": "0 0 1 1"}, "four whole numbers"),
        ({"box": 4}, "four whole numbers"),
        ({"box": torch.zeros(4)}, "four whole numbers"),
        ({"box": (5, 1, 2, 3)}, "left < right"),
        ({"tokens": [1, 2]}, r"must be a tensor .* list"),
        ({"tokens": torch.tensor(3)}, r"integers \[l\]"),
        ({"tokens": torch.ones(1, 5, dtype=torch.long)}, r"integers \[l\]"),
        ({"tokens": torch.ones(5)}, r"integers \[l\] \(got torch.float32"),
        ({"tokens": torch.ones(0, dtype=torch.long)}, r"integers \[l\]"),
        ({"tokens": torch.ones(5, dtype=torch.long, device="meta")}, "dense"),
        ({"name": 5}, "name must be text"),
        ({"name": ["a"]}, "name must be text"),
        ({"image": Image.new("RGB", (0, 5))}, "no pixels"),
        ({"image": Image.new("L", (5, 0))}, "no pixels"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),  # the same in every process
)
def test_fields_of_another_type_are_refused(fields: dict[str, Any], message: str) -> None:
    with without_test_checks(), pytest.raises(ProbeError, match=message):
        read(**fields)


@pytest.mark.parametrize(
    "box", [np.array([1, 2, 4, 5]), torch.tensor([1, 2, 4, 5]), [1, 2, 4, 5]], ids=lambda b: type(b).__name__
)
def test_a_box_may_be_any_four_integers(box: Any) -> None:
    with without_test_checks():
        assert np.array_equal(read(box=box).mask, read(box=(1, 2, 4, 5)).mask)


@pytest.mark.parametrize(
    "probes", [["fox.jpg"], [(PIXELS, "a", "b")], [(PIXELS,)], [5], [None]], ids=lambda p: type(p[0]).__name__
)
def test_an_item_that_is_neither_probe_nor_pair_is_refused(probes: Any) -> None:
    with (
        without_test_checks(),
        pytest.raises(ProbeError, match=r"probe 1: expected a Probe or a pair \(image, prompt\)"),
    ):
        ProbeSet(probes)


def test_reading_an_image_gives_no_warning(tmp_path: Path) -> None:
    for name, (content, _) in FORMATS.items():
        (tmp_path / "a.png").write_bytes(content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(tmp_path / "a.png")
        assert not caught, name
