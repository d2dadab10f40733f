"""Images kept as bytes are the model input that they were made of, to the last bit."""

from itertools import product

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from skimage import data
from torch import Tensor

from clipcam_lightning.cam.compact_images import PART, CompactImages, parts
from clipcam_lightning.cam.explain import explain_clip
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.preprocessing import USUAL_NORMALISATIONS, Preprocessing
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.shapes_world import WordTokenizer

MODES = ("shortest", "longest", "squash")
IDENTITY = USUAL_NORMALISATIONS[-1]


def photographs() -> list[np.ndarray]:
    return [data.astronaut(), data.chelsea(), data.coffee()]


@pytest.mark.parametrize(("normalisation", "mode"), [*product(USUAL_NORMALISATIONS, MODES)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_photographs_come_back_from_bytes_to_the_last_bit(
    normalisation: tuple[tuple[float, ...], tuple[float, ...]], mode: str, interpolation: str
) -> None:
    mean, std = normalisation
    preprocessing = Preprocessing(
        PreprocessCfg(size=(96, 128), mean=mean, std=std, resize_mode=mode, interpolation=interpolation)
    )
    images = [preprocessing.image(Image.fromarray(each)) for each in photographs()]

    compact = CompactImages.of(images, len(images), preprocessing.normalisation)

    assert compact.values.dtype == torch.uint8
    assert torch.equal(compact[:], torch.stack(images))
    assert torch.equal(compact.pixels(preprocessing), preprocessing.pixels(torch.stack(images)))


def test_bytes_take_a_quarter_of_the_memory() -> None:
    images = [torch.randint(256, (3, 32, 32)) / 255 for _ in range(4)]
    compact = CompactImages.of(images, 4, IDENTITY)
    assert 4 * compact.values.nbytes == torch.stack(images).nbytes


@pytest.mark.parametrize(
    "odd",
    [
        torch.rand(3, 8, 8),
        torch.full((3, 8, 8), torch.nan),
        torch.full((3, 8, 8), 2.0),
        torch.full((3, 8, 8), 0.5, dtype=torch.float64),
        torch.full((3, 8, 8), np.nextafter(np.float32(0.2), np.float32(1))),
    ],
    ids=["noise", "not finite", "out of range", "another type", "one bit off"],
)
def test_one_image_that_does_not_follow_from_bytes_keeps_all_as_they_are(odd: Tensor) -> None:
    plain = torch.randint(256, (3, 8, 8)) / 255

    compact = CompactImages.of(iter([plain, odd, plain]), 3, IDENTITY)

    assert compact.normalisation is None
    assert torch.equal(compact[0], plain)
    assert torch.equal(compact[2], plain)
    assert torch.equal(compact[1].nan_to_num(), odd.float().nan_to_num())


def test_rows_are_chosen_as_those_of_a_tensor() -> None:
    images = torch.randint(256, (5, 3, 8, 8)) / 255
    compact = CompactImages.of(images.unbind(), 5, IDENTITY)

    for rows in (slice(1, 4), [3, 0], torch.tensor([2, 2]), 4):
        assert torch.equal(compact[rows], images[rows])
    assert torch.equal(compact.select([4, 1])[:], images[[4, 1]])
    assert [len(part) for part in compact.split(2)] == [2, 2, 1]
    assert torch.equal(torch.cat([*compact.split(2)]), images)
    assert compact.shape == images.shape


def test_maps_of_bytes_are_those_of_the_tensor(shapes_vit: torch.nn.Module) -> None:
    clip = find_clip(shapes_vit, tokenizer=WordTokenizer())
    images = [clip.preprocessing.image(Image.fromarray(each)) for each in photographs()]
    compact = CompactImages.of(images, 3, clip.preprocessing.normalisation)

    settings = MapSettings(batch_size=2)
    of_bytes, of_tensor = (
        explain_clip(clip, each, "a red circle", settings) for each in (compact, torch.stack(images))
    )

    assert compact.normalisation is not None
    assert torch.equal(of_bytes.maps, of_tensor.maps)
    assert torch.equal(of_bytes.similarity, of_tensor.similarity)


def test_parts_cover_all_rows_once() -> None:
    rows, shape = torch.arange(1000), (1000, 3, 448, 224)
    assert torch.equal(torch.cat([rows[part] for part in parts(len(rows), shape)]), rows)
    assert max(len(rows[part]) for part in parts(len(rows), shape)) == PART // (448 * 224) == 64
    assert [*parts(2, (2, 3, 100_000, 100_000))] == [slice(0, 1), slice(1, 2)]
