"""Every entry point takes the same kinds of images and probes, and refuses what it cannot use with what to do."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import clipcam_lightning
from clipcam_lightning import ClipCamError, ClipCamWarning, Explanation, Probe, ProbeSet
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip

api: Any = clipcam_lightning  # untyped: wrong calls are made on purpose
PROMPT, OTHER = "a red circle", "a blue star"
PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return api.find_clip(build_clip("vit"), tokenizer=WordTokenizer())


@pytest.fixture(scope="module")
def model_input(model: ClipModel) -> Tensor:
    """The image as model input, by the transform that tests/cam/test_preprocessing.py compares with open_clip's own."""
    return model.preprocessing.image(PIXELS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    return tmp_path / "image.png"


# What a user may have in hand of one image: its file, and its model input.
ONE_IMAGE: dict[str, Callable[[Path, Tensor], Any]] = {
    "path": lambda file, _: file,
    "path as text": lambda file, _: str(file),
    "PIL image": lambda file, _: Image.open(file),
    "array": lambda *_: PIXELS,
    "model input": lambda _, tensor: tensor,
}
SEVERAL: dict[str, Callable[[Path, Tensor], Any]] = {
    "list of all kinds": lambda file, tensor: [make(file, tensor) for make in ONE_IMAGE.values()],
    "tuple": lambda file, _: (file, file),
    "generator": lambda file, _: (file for _ in range(2)),
    "batch of arrays": lambda *_: np.stack([PIXELS] * 2),
    "batch of model input": lambda _, tensor: torch.stack([tensor] * 2),
}
TAKE_IMAGES: dict[str, Callable[[ClipModel, Any], Tensor]] = {
    "explain": lambda clip, images: api.explain(clip, images, PROMPT, method="hirescam").maps,
    "embed_images": lambda clip, images: clip.embed_images(images),
    "batch": lambda clip, images: clip.preprocessing.batch(images),
    "pixels": lambda clip, images: clip.preprocessing.pixels(images).float(),
}
TAKE_ONE_IMAGE: dict[str, Callable[[ClipModel, Any], Tensor]] = {
    **TAKE_IMAGES,
    "image": lambda clip, image: clip.preprocessing.image(image),
    "sensitivity": lambda clip, image: api.sensitivity(clip, image, PROMPT, method="hirescam").maps,
    "Probe": lambda clip, image: api.evaluate(clip, [Probe(image, PROMPT)], method="hirescam").snapshot.maps,
    "pair": lambda clip, image: api.evaluate(clip, [(image, PROMPT)], method="hirescam").snapshot.maps,
}


@pytest.mark.parametrize("take", TAKE_ONE_IMAGE.values(), ids=TAKE_ONE_IMAGE)
@pytest.mark.parametrize("make", ONE_IMAGE.values(), ids=ONE_IMAGE)
def test_one_image_of_each_kind_counts_as_its_model_input(
    make: Callable[[Path, Tensor], Any],
    take: Callable[[ClipModel, Any], Tensor],
    model: ClipModel,
    model_input: Tensor,
    file: Path,
) -> None:
    assert_close(take(model, make(file, model_input)), take(model, model_input), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("take", TAKE_IMAGES.values(), ids=TAKE_IMAGES)
@pytest.mark.parametrize("make", SEVERAL.values(), ids=SEVERAL)
def test_several_images_of_each_kind_count_as_a_batch(
    make: Callable[[Path, Tensor], Any],
    take: Callable[[ClipModel, Any], Tensor],
    model: ClipModel,
    model_input: Tensor,
    file: Path,
    unchecked: None,
) -> None:
    one, several = take(model, model_input[None]), take(model, make(file, model_input))

    assert len(several) > 1
    assert_close(several, one.expand_as(several), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (Image.fromarray(GREY), np.dstack([GREY] * 3)),
        (Image.fromarray(np.dstack([PIXELS, GREY])), PIXELS),
        (Image.fromarray(GREY.astype(np.uint16) * 257), np.dstack([GREY] * 3)),
    ],
    ids=["grey", "alpha", "16-bit"],
)
def test_an_image_of_any_mode_is_explained_as_rgb(image: Image.Image, rgb: np.ndarray, model: ClipModel) -> None:
    assert_close(model.preprocessing.image(image), model.preprocessing.image(rgb))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    (tmp_path / "probes.csv").write_text(f"image,prompt\nimage.png,{PROMPT}\nimage.png,{OTHER}\n")
    ProbeSet(tmp_path).save(tmp_path / "saved.safetensors")
    return tmp_path


def list_probes() -> list[Probe]:
    return [Probe(PIXELS, PROMPT), Probe(PIXELS, OTHER)]


PROBES: dict[str, Callable[[Path], Any]] = {
    "folder": lambda folder: folder,
    "folder as text": str,
    "manifest": lambda folder: folder / "probes.csv",
    "saved": lambda folder: folder / "saved.safetensors",
    "set": lambda _: ProbeSet(list_probes()),
    "list": lambda _: list_probes(),
    "pairs": lambda _: [(PIXELS, PROMPT), (PIXELS, OTHER)],
}
CANDIDATES = ["a green square", PROMPT, OTHER]


@pytest.mark.parametrize("make", PROBES.values(), ids=PROBES)
def test_probes_of_each_kind_are_taken_everywhere(make: Callable[[Path], Any], model: ClipModel, folder: Path) -> None:
    expected = ProbeSet(list_probes())
    confused = api.confusions(model, expected, CANDIDATES, method="hirescam")

    assert ProbeSet(make(folder)) == expected
    assert api.evaluate(model, make(folder), method="hirescam").snapshot.info.digest == expected.digest
    assert api.rank_methods(model, make(folder), methods=["hirescam"], budget=3).probes == expected
    again = api.confusions(model, make(folder), CANDIDATES, method="hirescam")
    assert [(each.index, each.preferred) for each in again] == [(each.index, each.preferred) for each in confused]
    assert confused, "an untrained model confuses one of two prompts for the same image"


def test_the_manifest_is_chosen_if_its_folder_has_two(folder: Path) -> None:
    (folder / "probes.jsonl").write_text('{"image": "image.png", "prompt": "from JSON"}\n')

    assert ProbeSet(folder / "probes.jsonl").prompts == ["from JSON"]
    assert ProbeSet(folder / "probes.csv").prompts == [PROMPT, OTHER]


def test_a_model_that_was_found_is_found_again(model: ClipModel) -> None:
    tokenizer = WordTokenizer()

    assert api.find_clip(model) is model
    assert api.find_clip(model, tokenizer=tokenizer).tokenizer is tokenizer


def test_one_prompt_is_mapped_on_every_image(model: ClipModel, model_input: Tensor) -> None:
    images = torch.stack([model_input, -model_input])

    assert_close(api.explain(model, images, PROMPT).maps, api.explain(model, images, [PROMPT]).maps)


def test_float_pixels_that_were_not_normalised_are_warned_of(model: ClipModel) -> None:
    with pytest.warns(ClipCamWarning, match=r"reaches 255, so it was not normalised.*give files, PIL images or uint8"):
        api.explain(model, torch.full((1, 3, 64, 64), 255.0), PROMPT)


def calls() -> Iterator[tuple[str, Callable[[ClipModel, Tensor], Any], str]]:
    """Yield wrong calls, each with what its message must say: what was expected, what came, what to do."""

    def with_explain(name: str, message: str, **arguments: Any) -> tuple[str, Callable[[ClipModel, Tensor], Any], str]:
        return name, lambda clip, x: api.explain(clip, **{"images": x, "prompts": PROMPT, **arguments}), message

    yield with_explain("a method of another type", r"'auto', one of gradcam.*or a function \(got 3\)", method=3)
    yield with_explain("a layer between two", r"layers must be an index.*'visual.layer4'.*\(got 1.5\)", layers=1.5)
    yield with_explain(
        "a layer as module", r"layers must be .*a dotted name.*\(got Linear", layers=torch.nn.Linear(1, 1)
    )
    yield with_explain("a layer out of range", r"an index from -3 to 2.*\(got -99\)", layers=-99, method="gradcam")
    yield with_explain("no prompts", r"prompts must be a string, a list of strings.*\(got None\)", prompts=None)
    yield with_explain("a number as prompt", r"prompts must be a string, a list of strings.*\(got \[1\]\)", prompts=[1])
    yield with_explain("prompts without order", r"prompts must be .*a list.*\(got \{'a'\}\)", prompts={"a"})
    yield with_explain("a string among lists", r"one list of strings per image", prompts=[["a"], "b"])
    yield with_explain("an array of embeddings", r"float tensor of embeddings", prompts=np.ones(64, np.float32))
    yield with_explain("no target", r"target must be 'similarity'.*\(got None\)", target=None)
    yield with_explain("a target's class", r"Contrast\(negatives=...\).*\(got <class", target=api.Contrast)
    yield with_explain("scales as text", r"positive factors.*\(got '1.5'\); for example \(1.0, 1.5\)", scales="1.5")
    yield with_explain("flip as text", r"flip must be True or False \(got 'yes'\)", flip="yes")
    yield with_explain(
        "a batch size as text", r"batch_size must be a whole number, at least 1 \(got '8'\)", batch_size="8"
    )
    yield with_explain("half a batch", r"batch_size must be a whole number.*\(got 2.5\)", batch_size=2.5)
    yield with_explain("no image", r"at least one image, each a file.*\(got none in the list\)", images=[])
    yield with_explain("None as image", r"at least one image, each a file.*\(got NoneType\)", images=None)
    yield with_explain("None among images", r"the image must be a file.*\(got NoneType\)", images=[None])
    yield with_explain("an image that is missing", r"the image no\.png does not exist", images="no.png")
    yield with_explain(
        "uint8 with channels first",
        r"\(got torch.uint8 \(1, 3, 8, 8\)\).*uint8 arrays \[height, width, 3\]",
        images=torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    )
    yield with_explain("float arrays", r"uint8 \[y, x, 3\] \(got float64 \(90, 120, 3\)\)", images=PIXELS / 255)
    yield with_explain(
        "32 bits", r"cannot be read: the range of its 32-bit", images=Image.fromarray(np.ones((8, 8), "f"))
    )
    yield "a model's name", lambda *_: api.find_clip("ViT-B-32"), r"must be a torch module.*'ViT-B-32'.*create_model"
    yield "what open_clip returns", lambda clip, _: api.find_clip((clip.module, None)), r"must be a torch module"
    yield (
        "a tokenizer's name",
        lambda *_: api.ModelSpec(tokenizer="ViT-B-32"),
        r"tokenizer must be a function.*get_tokenizer",
    )
    yield "one tower", lambda clip, _: api.find_clip(clip.module, towers=api.Tower), r"towers must be a list of classes"
    yield (
        "negatives of no kind",
        lambda *_: api.Contrast(negatives=3),
        r"negatives must be a list of prompts.*\(got 3\)",
    )
    yield (
        "a temperature as text",
        lambda *_: api.LogSoftmax(temperature="hot"),
        r"must be positive and finite \(got 'hot'\)",
    )
    yield "one string to embed", lambda clip, _: clip.embed_texts("a fox"), r"a list of strings.*\(got 'a fox'\)"
    yield "templates of no kind", lambda clip, x: api.sensitivity(clip, x, "a", templates=None), r"templates must be"
    yield (
        "two images",
        lambda clip, x: api.sensitivity(clip, x[None], "a"),
        r"\[3, height, width\] \(got .*\(1, 3, 64, 64\)",
    )
    yield (
        "a limit as text",
        lambda clip, x: api.evaluate(clip, [(x, "a")], max_drift="0.5"),
        r"max_drift must lie.*'0.5'",
    )
    yield (
        "a number as probes",
        lambda clip, _: api.evaluate(clip, 3),
        r"a list of Probe or \(image, prompt\).*\(got 3\)",
    )
    yield "one probe", lambda clip, x: api.evaluate(clip, Probe(x, "a")), r"a list of Probe or"
    yield "a batch as probes", lambda clip, x: api.evaluate(clip, x[None]), r"a list of Probe or"
    yield (
        "a swapped pair",
        lambda clip, x: api.evaluate(clip, [("a", PIXELS)]),
        r"got ndarray.*image comes before the prompt",
    )
    yield "a name of another type", lambda *_: api.ClipCamCallback(name=3), r"letters, digits.*\(got 3\)"
    yield "files to compare", lambda *_: api.compare("a", "b"), r"snapshots are compared \(got str\); Snapshot.load"
    yield (
        "an evaluation as baseline",
        lambda clip, x: api.evaluate(clip, [(x, "a")], baseline=api.evaluate(clip, [(x, "a")])),
        r"a Snapshot or its file \(got Evaluation\); .* as \.snapshot",
    )
    yield (
        "a baseline misspelt",
        lambda clip, x: api.evaluate(clip, [(x, "a")], baseline="strat"),
        r"strat cannot be read as a snapshot: No such file\. Did you mean 'start'\?",
    )
    yield "settings with text", lambda *_: api.MapSettings(scales=["1.5"]), r"positive factors.*\(got \['1.5'\]\)"


CALLS = list(calls())


@pytest.mark.parametrize(("call", "message"), [each[1:] for each in CALLS], ids=[each[0] for each in CALLS])
def test_a_wrong_call_says_what_was_expected_what_came_and_what_to_do(
    call: Callable[[ClipModel, Tensor], Any], message: str, model: ClipModel, model_input: Tensor, unchecked: None
) -> None:
    with pytest.raises(ClipCamError, match=message):
        call(model, model_input)


DRAW: dict[str, Callable[[Any], object]] = {
    "probe_panel": lambda pixels: api.probe_panel(pixels, torch.ones(2, 2), torch.ones(2, 2), None, steps=(0, 0)),
    "confusion_panel": lambda pixels: api.confusion_panel(pixels, None),
    "sensitivity_panel": lambda pixels: api.sensitivity_panel(pixels, None),
    "contact_sheet": lambda pixels: api.contact_sheet(pixels, [], [], []),
    "overlay": lambda pixels: Explanation(torch.ones(1, 1, 2, 2), torch.ones(1, 1), (), "", "").overlay(pixels),
}


@pytest.mark.parametrize(
    "pixels", [PIXELS, Image.fromarray(PIXELS), torch.rand(1, 3, 8, 8)], ids=["array", "PIL", "float"]
)
@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_maps_are_drawn_over_what_the_model_saw_alone(
    draw: Callable[[Any], object], pixels: Any, unchecked: None
) -> None:
    """A whole photograph would be drawn with the map of its crop, in the wrong place."""
    with pytest.raises(ClipCamError, match=r"uint8 tensor \[.*3, y, x\].*\(got .*preprocessing\.pixels\(images\)"):
        draw(pixels)
