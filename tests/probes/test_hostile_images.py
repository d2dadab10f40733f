"""A picture in any form keeps its colours and stands upright, or is refused before it costs anything."""

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
from hypothesis import event, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from tests.support.hostile import accepted, as_users_run, example_folder, examples, made

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
DEEP = GREY.astype(np.uint16) * 257  # the same grey with 16 bits


def read(image: Any = PIXELS, **fields: Any) -> Probe:
    probe: Probe = ProbeSet([Probe(image, "a cat", **fields)])[0]
    return probe


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def grey_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def palette(colors: int = 16) -> Image.Image:
    return Image.fromarray(PIXELS).quantize(colors)


def looked_up(picture: Image.Image) -> np.ndarray:
    """A palette's colours, looked up by hand."""
    table = np.array(picture.getpalette(), np.uint8).reshape(-1, 3)
    return table[np.asarray(picture)]


def deep_rgb_png() -> bytes:
    """Sixteen bits a channel, which Pillow reads and does not write."""
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
FORMS: dict[str, tuple[bytes, np.ndarray]] = {
    "grey": (encoded(Image.fromarray(GREY), "PNG"), grey_rgb(GREY)),
    "16-bit grey": (encoded(Image.fromarray(DEEP), "PNG"), grey_rgb(GREY)),
    "16-bit grey TIFF": (encoded(Image.fromarray(DEEP), "TIFF"), grey_rgb(GREY)),
    "16-bit RGB": (deep_rgb_png(), PIXELS),
    "1-bit": (encoded(Image.fromarray(GREY > 127), "PNG"), grey_rgb((GREY > 127).astype(np.uint8) * 255)),
    "palette": (encoded(palette(), "PNG"), looked_up(palette())),
    "palette, transparent colour": (encoded(palette(), "PNG", transparency=3), looked_up(palette())),
    "palette, alpha": (encoded(palette(), "PNG", transparency=bytes(range(0, 256, 16))), looked_up(palette())),
    "grey and alpha": (encoded(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG"), grey_rgb(GREY)),
    "RGBA": (encoded(Image.fromarray(np.dstack([PIXELS, ALPHA])), "PNG"), PIXELS),
    "CMYK": (encoded(CMYK, "TIFF"), np.round(PIXELS * (204 / 255)).astype(np.uint8)),
    "animated GIF": (
        encoded(palette(), "GIF", save_all=True, append_images=[Image.fromarray(255 - PIXELS).quantize(16)]),
        looked_up(palette()),
    ),
    "animated WebP": (
        encoded(
            Image.fromarray(PIXELS), "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - PIXELS)]
        ),
        PIXELS,
    ),
    "BMP": (encoded(Image.fromarray(PIXELS), "BMP"), PIXELS),
}


@pytest.mark.parametrize(("content", "expected"), FORMS.values(), ids=FORMS)
def test_a_picture_of_any_form_keeps_its_colours(tmp_path: Path, content: bytes, expected: np.ndarray) -> None:
    (tmp_path / "a.png").write_bytes(content)  # whatever it is called
    with Image.open(tmp_path / "a.png") as opened:
        for given_as in (tmp_path / "a.png", opened):
            image = read(given_as).image
            assert image.shape == expected.shape
            assert np.abs(image.astype(int) - expected).max() <= 1


# As the EXIF standard says where the first stored row and column are seen, "top, right" and so on.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.transpose(1, 0, 2),
    6: lambda seen: seen[:, ::-1].transpose(1, 0, 2),
    7: lambda seen: seen[::-1, ::-1].transpose(1, 0, 2),
    8: lambda seen: seen[::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_photograph_stands_upright_and_so_does_its_mask(tmp_path: Path, orientation: int) -> None:
    """A box is drawn on what a viewer shows."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, seen in (("photo.png", PIXELS), ("mask.png", grey_rgb(GREY) // 128)):
        stored = np.ascontiguousarray(STORED[orientation](seen))
        Image.fromarray(stored).save(tmp_path / name, exif=exif)

    probe = read(tmp_path / "photo.png", mask=tmp_path / "mask.png")

    assert np.array_equal(probe.image, PIXELS)
    assert np.array_equal(probe.mask, GREY > 127)


@given(data=st.data())
@examples(60)
def test_a_picture_with_broken_exif_is_read_all_the_same(data: st.DataObject) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9000: b"0232"}
    content = bytearray(exif.tobytes())
    for place in data.draw(st.lists(st.integers(6, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(0, len(content)))
    with example_folder() as folder:
        (folder / "a.png").write_bytes(encoded(Image.fromarray(PIXELS), "PNG", exif=bytes(content[:kept])))
        probe = accepted(lambda: read(folder / "a.png"))
    assert probe is not None
    assert any(np.array_equal(probe.image, turned(PIXELS)) for turned in STORED.values())


KINDS = {
    kind: encoded(Image.fromarray(PIXELS), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "PPM")
}


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@examples(25)
def test_a_damaged_picture_is_refused_or_still_one(kind: str, field: str, data: st.DataObject) -> None:
    content = bytearray(KINDS[kind])
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), max_size=2)):
        content[place // 8] ^= 1 << place % 8
    content = content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    with example_folder() as folder:
        (folder / "a.png").write_bytes(content)
        probe = accepted(lambda: read(**{field: folder / "a.png"}))
    event("read" if probe else "refused")
    if probe is not None:
        assert probe.image.dtype == np.uint8
        assert probe.image.ndim == 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@given(data=st.data())
@examples(25)
def test_a_picture_cut_short_is_refused(kind: str, data: st.DataObject) -> None:
    """Its lower part would be grey or black."""
    content = KINDS[kind]
    with example_folder() as folder:
        (folder / "whole").write_bytes(content)
        (folder / "cut").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        probe = accepted(lambda: read(folder / "cut"))
        assert probe is None or np.array_equal(probe.image, read(folder / "whole").image)


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
def test_a_small_file_that_becomes_huge_is_refused_before_it_does(tmp_path: Path, content: bytes, field: str) -> None:
    (tmp_path / "bomb.png").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProbeError, match=r"bomb\.png cannot be read"):
        read(**{field: tmp_path / "bomb.png"})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("size", [(1, 1), (10_000, 10), (1, 5_000)], ids=str)
def test_a_picture_of_any_proportions_is_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "a.png")
    image = read(tmp_path / "a.png").image
    assert image.shape == (size[1], size[0], 3)
    assert (image == (9, 8, 7)).all()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10), "32-bit pixels is not known"),
        (DEEP.astype(np.int32) * 1000, "32-bit pixels is not known"),
    ],
    ids=["floats", "integers"],
)
def test_a_picture_whose_white_is_not_known_is_refused(tmp_path: Path, values: np.ndarray, words: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(ProbeError, match=words):
        read(tmp_path / "a.tiff")


@pytest.mark.parametrize(
    "picture",
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
def test_what_is_a_little_off_black_is_mask(picture: Image.Image) -> None:
    assert np.array_equal(read(mask=picture).mask, GREY > 127)


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
def test_an_array_is_read_as_it_is_or_refused(field: str, kind: str, shape: tuple[int, ...], form: str) -> None:
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
    probe = accepted(lambda: read(**{field: array}))
    usable = kind == "u1" and array.ndim == 3 and array.shape[2] == 3 and array.size > 0
    if field == "mask":
        usable = array.dtype.kind in "biuf" and array.shape == (6, 10)
    assert (probe is not None) == usable
    if probe is not None:
        found = getattr(probe, field)
        assert type(found) is np.ndarray
        assert np.array_equal(found, array)
        assert found.flags.writeable
        comes_back(probe)


def comes_back(probe: Probe) -> None:
    """A set of it can be kept."""
    with example_folder() as folder, as_users_run():
        probes = ProbeSet([probe])
        probes.save(folder / "f")
        assert ProbeSet.load(folder / "f").digest == probes.digest


def inference_copy(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


DTYPES = sorted({kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}, key=str)
LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda tensor: tensor,
    "turned": lambda tensor: tensor.mT.contiguous().mT,
    "expanded": lambda tensor: tensor[:1].expand(tensor.shape),
    "trained": lambda tensor: tensor.requires_grad_(),
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
def test_a_tensor_is_read_as_it_is_or_refused(
    field: str, dtype: torch.dtype, layout: str, shape: tuple[int, ...], value: float
) -> None:
    with as_users_run():
        tensor = made(lambda: LAYOUTS[layout](torch.full(shape, value).to(dtype)))
    probe = accepted(lambda: read(**{field: tensor}))
    event("read" if probe else "refused")
    floats = dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if layout in NO_VALUES or tensor.is_complex():
        assert probe is None
    elif field == "image":
        assert (probe is not None) == (floats and len(shape) == 3 and shape[0] == 3 and tensor.numel() > 0)
    elif probe is None:
        assert (dtype not in (torch.bool, torch.uint8, torch.int64) and not floats) or shape != (6, 10) or not value
    if probe is not None:
        found = getattr(probe, field)
        assert type(found) is (Tensor if field == "image" else np.ndarray)
        assert (torch.as_tensor(found) == value).all()
        comes_back(probe)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_pixels_and_masks_that_are_not_finite_are_refused(number: float) -> None:
    image, mask = torch.zeros(3, 6, 10), np.ones((6, 10))
    image[1, 2, 3] = mask[2, 3] = number
    for fields in ({"image": image}, {"image": image.double() * 10}, {"mask": mask}, {"mask": torch.from_numpy(mask)}):
        with pytest.raises(ProbeError, match="must be finite"):
            read(**fields)
    with pytest.raises(ProbeError, match="must be finite"):
        read(torch.full((3, 6, 10), 1e300, dtype=torch.float64))  # which float32 does not hold


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize(
    "value",
    [5, 0.5, b"a.png", ["a.png"], {"a": 1}, object(), True, PIXELS.tolist()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_picture_at_all_is_refused_by_its_type(field: str, value: Any) -> None:
    with as_users_run(), pytest.raises(ProbeError, match=f"must be a file.*got {type(value).__name__}"):
        read(**{field: value})


def test_no_image_is_refused() -> None:
    with as_users_run(), pytest.raises(ProbeError, match="got NoneType"):
        read(None)


@pytest.mark.parametrize(
    ("fields", "words"),
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
def test_fields_of_another_kind_are_refused(fields: dict[str, Any], words: str) -> None:
    with as_users_run(), pytest.raises(ProbeError, match=words):
        read(**fields)


@pytest.mark.parametrize(
    "box", [np.array([1, 2, 4, 5]), torch.tensor([1, 2, 4, 5]), [1, 2, 4, 5]], ids=lambda b: type(b).__name__
)
def test_a_box_may_be_any_four_integers(box: Any) -> None:
    with as_users_run():
        assert np.array_equal(read(box=box).mask, read(box=(1, 2, 4, 5)).mask)


@pytest.mark.parametrize(
    "probes", [["fox.jpg"], [(PIXELS, "a", "b")], [(PIXELS,)], [5], [None]], ids=lambda p: type(p[0]).__name__
)
def test_what_is_no_pair_is_refused(probes: Any) -> None:
    with as_users_run(), pytest.raises(ProbeError, match=r"probe 1: expected a Probe or a pair \(image, prompt\)"):
        ProbeSet(probes)


def test_a_picture_gives_no_warning(tmp_path: Path) -> None:
    for name, (content, _) in FORMS.items():
        (tmp_path / "a.png").write_bytes(content)
        with warnings.catch_warnings(record=True) as given_warnings:
            warnings.simplefilter("always")
            read(tmp_path / "a.png")
        assert not given_warnings, name
