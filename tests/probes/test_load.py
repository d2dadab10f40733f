"""Every supported form of image, mask and box is loaded, and the message about any other says why."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.load import load_probe
from clipcam_lightning.probes.probe import LoadedProbe, Probe

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)  # not square, so that a swap shows
MASK = np.zeros((4, 6), dtype=bool)
MASK[1:3, 2:5] = True


def load(image: Any = PIXELS, prompt: str = "a cat", **fields: Any) -> LoadedProbe:
    return load_probe(Probe(image, prompt, **fields), "probe 3")


def save_png(folder: Path, pixels: np.ndarray, name: str = "cat.png") -> Path:
    Image.fromarray(pixels).save(folder / name)
    return folder / name


@pytest.mark.parametrize(
    "make_image",
    [
        lambda folder: PIXELS,
        lambda folder: PIXELS[::-1].copy()[::-1],  # a view with a negative stride
        lambda folder: Image.fromarray(PIXELS),
        lambda folder: save_png(folder, PIXELS),
        lambda folder: str(save_png(folder, PIXELS)),
        lambda folder: Image.open(save_png(folder, PIXELS)),
        lambda folder: Image.fromarray(np.dstack([PIXELS, np.full((4, 6), 9, np.uint8)])),  # with alpha
    ],
    ids=["array", "view", "PIL", "Path", "str", "opened", "RGBA"],
)
def test_every_form_of_image_is_loaded_with_its_exact_pixels(tmp_path: Path, make_image: Callable[[Path], Any]) -> None:
    image = load(make_image(tmp_path)).image
    assert isinstance(image, np.ndarray)
    assert np.array_equal(image, PIXELS)


def test_a_grey_image_is_loaded_as_rgb() -> None:
    image = load(Image.fromarray(PIXELS[..., 0])).image
    assert np.array_equal(image, np.repeat(PIXELS[..., :1], 3, axis=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_tensor_is_loaded_as_detached_float32(dtype: torch.dtype) -> None:
    pixels = torch.randn(3, 4, 6).to(dtype).requires_grad_()
    image = load(pixels).image
    assert torch.equal(image, pixels.detach().float())
    assert not image.requires_grad


def test_a_loaded_probe_shares_no_memory_with_the_given_one() -> None:
    array, tensor, mask, tokens = PIXELS.copy(), torch.ones(3, 4, 6), MASK.copy(), torch.ones(5, dtype=torch.long)
    probes = load(array, mask=mask), load(tensor, tokens=tokens)
    for original in (array, tensor, mask, tokens):
        original[:] = 0

    assert np.array_equal(probes[0].image, PIXELS)
    assert np.array_equal(probes[0].mask, MASK)
    assert probes[1].image.all()
    assert probes[1].tokens.all()


@pytest.mark.parametrize(
    "make_mask",
    [
        lambda folder: MASK,
        lambda folder: MASK.astype(np.int64) * 7,
        lambda folder: MASK.astype(np.float32) / 3,
        lambda folder: Image.fromarray(MASK),
        lambda folder: Image.fromarray(MASK.astype(np.uint8)),  # 1 is not black
        lambda folder: save_png(folder, MASK.astype(np.uint8) * 255, "mask.png"),
        lambda folder: str(save_png(folder, np.repeat(MASK[..., None] * np.uint8(200), 3, axis=2), "mask.png")),
    ],
    ids=["bool", "int", "float", "PIL 1", "PIL L", "Path", "RGB file"],
)
def test_every_form_of_mask_marks_the_pixels_that_are_not_black(
    tmp_path: Path, make_mask: Callable[[Path], Any]
) -> None:
    mask = load(mask=make_mask(tmp_path)).mask
    assert mask.dtype == bool
    assert np.array_equal(mask, MASK)


@pytest.mark.parametrize("image", [PIXELS, torch.zeros(3, 4, 6)], ids=["array", "tensor"])
def test_a_box_becomes_a_mask_without_its_right_and_bottom_edge(image: Any) -> None:
    assert np.array_equal(load(image, box=(2, 1, 5, 3)).mask, MASK)


def test_a_box_may_cover_the_whole_image() -> None:
    assert load(box=(0, 0, 6, 4)).mask.all()


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
def test_an_unusable_field_is_refused_with_place_and_reason(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=f"^probe 3: .*{message}"):
        load(**fields)


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.png", None, "missing.png does not exist"),
        ("text.png", b"This is a text", "text.png cannot be read"),
        ("empty.png", b"", "empty.png cannot be read"),
        ("cut.png", "cut", "cut.png cannot be read"),
        ("", None, "cannot be read"),  # the folder itself
        ("nul\0.png", None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_image_is_refused(
    tmp_path: Path, field: str, name: str, content: bytes | str | None, message: str
) -> None:
    if content == "cut":
        content = save_png(tmp_path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()[
            :3000
        ]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ProbeError, match=f"probe 3: the {field} .*{message}"):
        load(**{field: tmp_path / name})


def test_an_opened_image_that_is_truncated_is_refused(tmp_path: Path) -> None:
    complete = save_png(tmp_path, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(complete[:3000])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(ProbeError, match="probe 3"):
        load(image)


@pytest.mark.parametrize("image", [PIXELS[:0], torch.zeros(3, 0, 6)], ids=["array", "tensor"])
def test_an_image_without_pixels_is_refused(image: Any) -> None:
    with pytest.raises(ProbeError):
        load(image)
