"""Modules as public code writes them are watched truly, with no argument or with the one that a message names."""

import io
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from clipcam_lightning import ClipCamCallback, ClipCamWarning, explain
from clipcam_lightning.cam.finding import ModelSpec
from tests.support.modules import events
from tests.support.public_modules import CASES, LABELS, NAMES, PIXELS, SCENES, Case, LinearHead

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the background:clipcam_lightning.ClipCamWarning"),
    pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning"),
    pytest.mark.filterwarnings("ignore:the model hardly distinguishes:clipcam_lightning.ClipCamWarning"),
    pytest.mark.filterwarnings("ignore:.*no valid baseline:clipcam_lightning.ClipCamWarning"),
]


def loader(case: Case, *, validation: bool = False) -> DataLoader[Any]:
    item = case.validation_item if validation and case.validation_item else case.item
    return DataLoader([item(i) for i in range(12)], batch_size=4, collate_fn=case.collate)  # type: ignore[arg-type]


def fit(case: Case, folder: Path, *callbacks: pl.Callback) -> pl.LightningModule:
    module = case.module()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        logger=TensorBoardLogger(folder, name="", version="run"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, loader(case), loader(case, validation=True))
    return module


def images_in(folder: Path) -> list[np.ndarray]:
    """The images of the probes in the event file, in their order."""
    tensors = events(folder)
    tags = [tag for tag in tensors.Tags()["tensors"] if "/image/" in tag]
    return [np.array(Image.open(io.BytesIO(tensors.Tensors(tag)[0].tensor_proto.string_val[0]))) for tag in tags]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_public_module_is_watched_truly_or_the_warning_says_what_to_do(case: Case, tmp_path: Path) -> None:
    callback = ClipCamCallback(num_probes=4, **case.arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = fit(case, tmp_path, callback)
    ours = [str(each.message) for each in caught if issubclass(each.category, ClipCamWarning)]
    told = [each for each in ours if not each.startswith(("the background", "attention", "the model hardly"))]

    assert callback.snapshot is not None, told
    assert [entry.step for entry in callback.history] == [0, 3], told
    if case.warning:
        assert any(case.warning in each and "encode_image=" in each for each in told)
    else:
        assert not any("trained" in each for each in told)
        assert max(callback.history[-1].drift) > 0, "maps follow the training"
    assert any(case.note in each for each in told) if case.note else not [each for each in told if "fail" in each]
    assert_images_are_those_of_the_batch(tmp_path, case.error)
    assert_maps_depend_on_the_prompt(case, module, callback)

    plain = fit(case, tmp_path / "plain")
    for (name, value), expected in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def assert_images_are_those_of_the_batch(folder: Path, error: float) -> None:
    images = images_in(folder)
    assert len(images) == 4
    for image, scene in zip(images, SCENES.images, strict=False):
        height, width = image.shape[:2]
        seen = np.array(Image.fromarray(scene).resize((width, height), Image.Resampling.BILINEAR))
        assert np.abs(image.astype(float) - seen).mean() < error


def assert_maps_depend_on_the_prompt(case: Case, module: pl.LightningModule, callback: ClipCamCallback) -> None:
    names = ("clip", "tokenizer", "towers", "encode_image", "encode_text")
    found = ModelSpec(**{name: value for name, value in case.arguments.items() if name in names}).find(module)
    assert type(found.tower).__name__ == case.tower
    assert callback.monitor is not None
    prepared = callback.monitor.probes.prepare(found)
    with torch.no_grad():
        texts = prepared.embed_texts(found)[:, 0]
    other = next(i for i in range(1, 4) if not torch.allclose(texts[i], texts[0]))
    maps = explain(found, prepared.images[:1], texts[[0, other]]).maps[0]
    assert not torch.allclose(maps[0], maps[1], rtol=1e-3, atol=1e-3 * float(maps.abs().max()))


def test_a_head_without_functions_is_refused_with_what_to_write(tmp_path: Path) -> None:
    case = Case(LinearHead, CASES["D, a linear head"].item)
    with pytest.warns(ClipCamWarning, match=r"no CLIP in LinearHead.*encode_image=lambda.*Its parts are encoder, head"):
        fit(case, tmp_path, ClipCamCallback())


def test_images_of_any_usual_normalisation_look_like_photographs() -> None:
    pixels = torch.from_numpy(SCENES.images[:4]).permute(0, 3, 1, 2)
    preprocessing = ModelSpec().find(CASES["A, captions"].module()).preprocessing
    for mean, std in (
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.5,) * 3, (0.5,) * 3),
        ((0.0,) * 3, (1.0,) * 3),
    ):
        normalised = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        assert torch.equal(preprocessing.pixels(normalised), pixels)


def test_the_cases_hold_what_their_data_say() -> None:
    assert len(CASES) >= 30
    assert isinstance(PIXELS, Tensor)
    assert int(LABELS.max()) < len(NAMES)
