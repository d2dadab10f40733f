"""One probe: every form of image, mask and box that is taken, and the words in which the others are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.probe import Probe, read_probe

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)  # not square, or a swap would hide
MASK = np.zeros((4, 6), dtype=bool)
MASK[1:3, 2:5] = True


def read(image: Any = PIXELS, prompt: str = "a cat", **fields: Any) -> Probe:
    return read_probe(Probe(image, prompt, **fields), "probe 3")


def png(folder: Path, pixels: np.ndarray, name: str = "cat.png") -> Path:
    Image.fromarray(pixels).save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    "given",
    [
        lambda folder: PIXELS,
        lambda folder: PIXELS[::-1].copy()[::-1],  # a view with a negative stride
        lambda folder: Image.fromarray(PIXELS),
        lambda folder: png(folder, PIXELS),
        lambda folder: str(png(folder, PIXELS)),
        lambda folder: Image.open(png(folder, PIXELS)),
        lambda folder: Image.fromarray(np.dstack([PIXELS, np.full((4, 6), 9, np.uint8)])),  # with alpha
    ],
    ids=["array", "view", "PIL", "Path", "str", "opened", "RGBA"],
)
def test_pixels_are_kept_as_they_were_given(tmp_path: Path, given: Callable[[Path], Any]) -> None:
    image = read(given(tmp_path)).image
    assert isinstance(image, np.ndarray)
    assert np.array_equal(image, PIXELS)


def test_a_grey_picture_is_read_as_rgb() -> None:
    image = read(Image.fromarray(PIXELS[..., 0])).image
    assert np.array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_is_kept_as_float32_and_without_its_graph(dtype: torch.dtype) -> None:
    given = torch.randn(3, 4, 6).to(dtype).requires_grad_()
    image = read(given).image
    assert torch.equal(image, given.detach().float())
    assert not image.requires_grad


def test_changing_what_was_given_changes_nothing() -> None:
    array, tensor, mask, tokens = PIXELS.copy(), torch.ones(3, 4, 6), MASK.copy(), torch.ones(5, dtype=torch.long)
    probes = read(array, mask=mask), read(tensor, tokens=tokens)
    for given in (array, tensor, mask, tokens):
        given[:] = 0

    assert np.array_equal(probes[0].image, PIXELS)
    assert np.array_equal(probes[0].mask, MASK)
    assert probes[1].image.all()
    assert probes[1].tokens.all()


@pytest.mark.parametrize(
    "mask",
    [
        lambda folder: MASK,
        lambda folder: MASK.astype(np.int64) * 7,
        lambda folder: MASK.astype(np.float32) / 3,
        lambda folder: Image.fromarray(MASK),
        lambda folder: Image.fromarray(MASK.astype(np.uint8)),  # 1 is not black
        lambda folder: png(folder, MASK.astype(np.uint8) * 255, "mask.png"),
        lambda folder: str(png(folder, np.repeat(MASK[..., None] * np.uint8(200), 3, axis=2), "mask.png")),
    ],
    ids=["bool", "int", "float", "PIL 1", "PIL L", "Path", "RGB file"],
)
def test_a_mask_is_what_is_not_black(tmp_path: Path, mask: Callable[[Path], Any]) -> None:
    read_back = read(mask=mask(tmp_path)).mask
    assert read_back.dtype == bool
    assert np.array_equal(read_back, MASK)


@pytest.mark.parametrize("image", [PIXELS, torch.zeros(3, 4, 6)], ids=["array", "tensor"])
def test_a_box_is_a_mask_without_its_right_and_bottom_edge(image: Any) -> None:
    probe = read(image, box=(2, 1, 5, 3))
    assert np.array_equal(probe.mask, MASK)
    assert probe.box is None


def test_a_box_may_be_the_whole_picture() -> None:
    assert read(box=(0, 0, 6, 4)).mask.all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n\t"}, "the prompt is empty"),
        ({"image": torch.zeros(4, 6, 3)}, r"float pixels \[3, y, x\] \(got torch.float32 \(4, 6, 3\)\)"),
        ({"image": torch.zeros(1, 3, 4, 6)}, r"\(1, 3, 4, 6\)"),
        ({"image": torch.zeros(3, 4, 6, dtype=torch.uint8)}, r"got torch.uint8 .* uint8 array \[y, x, 3\]"),
        ({"image": PIXELS / 255}, r"uint8 \[y, x, 3\] \(got float64 \(4, 6, 3\)\)"),
        ({"image": PIXELS[..., 0]}, r"\(4, 6\)"),
        ({"image": PIXELS[..., :2]}, r"\(4, 6, 2\)"),
        ({"mask": MASK.T}, "mask is 4x6 pixels, its image 6x4"),
        ({"mask": MASK[None]}, r"mask must be numbers \[y, x\] \(got bool \(1, 4, 6\)\)"),
        ({"mask": np.zeros((4, 6), dtype=bool)}, "the mask is empty"),
        ({"mask": MASK, "box": (0, 0, 1, 1)}, "a mask or a box, not both"),
        ({"box": (0, 0, 7, 4)}, "inside 6x4"),
        ({"box": (0, 0, 6, 5)}, "inside 6x4"),
        ({"box": (-1, 0, 6, 4)}, "inside 6x4"),
        ({"box": (0, -1, 6, 4)}, "inside 6x4"),
        ({"box": (3, 0, 3, 4)}, "left < right"),
        ({"box": (0, 3, 6, 2)}, "top < bottom"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_with_its_place_and_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=f"^probe 3: .*{message}"):
        read(**fields)


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "missing.png does not exist"),
        ("text.png", b"I am a text", "text.png cannot be read"),
        ("empty.png", b"", "empty.png cannot be read"),
        ("cut.png", "cut", "cut.png cannot be read"),
        ("", None, "cannot be read"),  # the folder itself
        ("nul\0.png", None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_picture_is_refused(
    tmp_path: Path, field: str, name: str, content: bytes | str | None, message: str
) -> None:
    if content == "cut":
        content = png(tmp_path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()[:3000]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ProbeError, match=f"probe 3: the {field} .*{message}"):
        read(**{field: tmp_path / name})


def test_an_opened_picture_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = png(tmp_path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:3000])
    with Image.open(tmp_path / "cut.png") as lazy, pytest.raises(ProbeError, match="probe 3"):
        read(lazy)


@pytest.mark.parametrize("image", [PIXELS[:0], torch.zeros(3, 0, 6)], ids=["array", "tensor"])
def test_a_picture_without_pixels_is_refused(image: Any) -> None:
    with pytest.raises(ProbeError):
        read(image)
