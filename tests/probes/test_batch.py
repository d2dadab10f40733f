"""Images and prompts are found in batches of every common structure."""

from collections import UserDict, namedtuple
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.batch import decode_prompt, find_images_and_prompts
from clipcam_lightning.probes.batch_images import SizeFilter
from clipcam_lightning.probes.batch_texts import TextInput
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.shapes_world.models import WordTokenizer

SIZE = (8, 12)  # not square, or a swap would hide
IMAGES = torch.rand(4, 3, *SIZE)
TOKENS = torch.tensor([[1, 5, 6, 2, 0], [1, 7, 2, 0, 0], [1, 8, 9, 10, 2], [1, 11, 2, 0, 0]])  # start, end, padding
TEXTS = ["a cat", "a dog", "a cow", ""]
MASK = torch.ones_like(TOKENS)
Pair = namedtuple("Pair", ["image", "text"])  # a form that torch's collate keeps

FILES = ["a.png", "b/c.jpeg", "d.jpg", "e.webp"]
BATCHES = {
    "pair": (IMAGES, TOKENS),
    "list": [IMAGES, TOKENS],
    "swapped": (TOKENS, IMAGES),
    "named tuple": Pair(IMAGES, TOKENS),
    "int32": (IMAGES, TOKENS.int()),
    "flat, mask first": {"pixel_values": IMAGES, "attention_mask": MASK, "input_ids": TOKENS},
    "UserDict": UserDict(pixel_values=IMAGES, input_ids=TOKENS, attention_mask=MASK),  # as transformers' encodings
    "nested": {"id": 3, "vision": {"x": {"pixels": IMAGES}}, "text": [{"attention_mask": MASK, "input_ids": TOKENS}]},
    "several views": (torch.stack([IMAGES, 0 * IMAGES], dim=1), TOKENS),
    "several captions": (IMAGES, torch.stack([TOKENS, 0 * TOKENS], dim=1)),
    "with labels and weights": (IMAGES, torch.arange(4), torch.rand(4), TOKENS),
    "with a thumbnail": (IMAGES[..., ::2, ::2], IMAGES, TOKENS),
    "strings and their ids": (IMAGES, TEXTS, TOKENS),
    "file names": {"file_name": TEXTS, "other": FILES, "image": IMAGES, "codes": TOKENS},
    "with depth and area": (IMAGES, IMAGES[:, :1], torch.rand(4), TOKENS),
}
TEXT_BATCHES = {
    "strings": (IMAGES, TEXTS),
    "tuple of strings": {"text": tuple(TEXTS), "image": IMAGES},
    "strings and file names": (FILES, IMAGES, TEXTS),
    "strings and boxes": {"image": IMAGES, "box": TOKENS[:, :4], "url": TEXTS[::-1], "caption": TEXTS},
    "caption before other ids": {"image": IMAGES, "objects": TOKENS, "caption": TEXTS},
}


def find(batch: Any, size: tuple[int, int], other_sizes: SizeFilter | None = None) -> tuple[Tensor, list[Any]]:
    """Find the images of a batch as one tensor, and its strings or token ids."""
    found = find_images_and_prompts(batch, size, other_sizes)
    ids = [prompt["input_ids"] if isinstance(prompt, dict) else prompt for prompt in found.prompts]
    return torch.stack(found.images), ids  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_images_and_token_ids_are_found(batch: Any) -> None:
    images, prompts = find(batch, SIZE)
    assert torch.equal(images, IMAGES)
    assert torch.equal(torch.stack(prompts), TOKENS)


@pytest.mark.parametrize("batch", TEXT_BATCHES.values(), ids=TEXT_BATCHES)
def test_images_and_strings_are_found(batch: Any) -> None:
    images, prompts = find(batch, SIZE)
    assert torch.equal(images, IMAGES)
    assert prompts == TEXTS


def test_token_types_are_not_taken_for_token_ids() -> None:
    batch = {"image": IMAGES, "token_type_ids": 0 * TOKENS, "input_ids": TOKENS}
    assert torch.equal(torch.stack(find(batch, SIZE)[1]), TOKENS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pixels_are_converted_to_float32_and_detached(dtype: torch.dtype) -> None:
    pixels = IMAGES.to(dtype).requires_grad_()
    images, _ = find((pixels, TOKENS), SIZE)
    assert torch.equal(images, pixels.detach().float())
    assert not images.requires_grad


def test_a_segmentation_is_not_taken_for_token_ids() -> None:
    _, prompts = find((IMAGES, torch.ones(4, *SIZE, dtype=torch.long), TOKENS), SIZE)
    assert torch.equal(torch.stack(prompts), TOKENS)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.rand(4, *SIZE, 3), TOKENS), r"it has float32 \(4, 8, 12, 3\)"),
        ([], "it has nothing"),
        (None, "it has NoneType"),
        ("text", "it has str"),
        (IMAGES, "neither 4 strings nor 4 rows of the model's token ids"),
        ((IMAGES, torch.arange(4)), r"neither 4 strings .*int64 \(4,\)"),
        ((IMAGES, TOKENS[:, :1]), r"int64 \(4, 1\)"),  # labels in a column
        ((IMAGES, TOKENS[:3]), r"int64 \(3, 5\)"),
        ((IMAGES, TEXTS[:3]), "neither 4 strings"),
        ((IMAGES, TOKENS.float()), r"float32 \(4, 5\)"),
        ({"image": IMAGES, "attention_mask": MASK}, "neither 4 strings"),
    ],
)
def test_a_batch_without_images_or_prompts_is_refused_with_a_list_of_what_it_holds(batch: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=f"{message}.*ive probes="):
        find(batch, SIZE)


def test_images_of_another_size_are_taken_only_if_there_are_none_of_the_first_and_the_model_takes_them() -> None:
    batch = {"thumbnail": IMAGES[..., ::2, ::2], "image": IMAGES, "caption": TEXTS}

    def is_wide(size: tuple[int, int]) -> bool:
        return size[1] > 6

    assert find(batch, SIZE, is_wide)[0].shape[2:] == SIZE
    assert find(batch, (4, 6), is_wide)[0].shape[2:] == (4, 6)
    assert find(batch, (16, 16), is_wide)[0].shape[2:] == SIZE


def test_images_of_a_size_that_the_model_does_not_take_are_resized() -> None:
    batch = {"image": IMAGES, "caption": TEXTS}
    found = find_images_and_prompts(batch, (16, 16), lambda size: False)
    assert found.is_resized
    assert [tuple(image.shape) for image in found.images] == [(3, 16, 16)] * 4  # type: ignore[union-attr]
    assert not find_images_and_prompts(batch, SIZE).is_resized


BYTES = (IMAGES * 255).to(torch.uint8)
PIL_IMAGES = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in BYTES]
RAW_BATCHES = {
    "bytes": (BYTES, TEXTS),
    "bytes, channels last": (BYTES.permute(0, 2, 3, 1), TEXTS),
    "PIL images": {"image": PIL_IMAGES, "caption": TEXTS},
    "arrays": {"image": [np.array(image) for image in PIL_IMAGES], "caption": TEXTS},
    "one array": (BYTES.numpy(), TEXTS),
    "samples with arrays": [(np.array(image), text) for image, text in zip(PIL_IMAGES, TEXTS, strict=True)],
    "an array of strings": (BYTES, np.array(TEXTS)),
    "an array of objects": (BYTES, np.array(TEXTS, dtype=object)),
    "samples": list(zip(PIL_IMAGES, TEXTS, strict=True)),
    "samples by name": [{"image": image, "caption": text} for image, text in zip(PIL_IMAGES, TEXTS, strict=True)],
}


@pytest.mark.parametrize("batch", RAW_BATCHES.values(), ids=RAW_BATCHES)
def test_images_that_are_not_preprocessed_are_found_as_they_are(batch: Any) -> None:
    found = find_images_and_prompts(batch, (16, 16))
    assert [np.array(image).tolist() for image in found.images] == BYTES.permute(0, 2, 3, 1).tolist()
    assert found.prompts == TEXTS


def test_samples_without_an_image_are_left_out_with_their_prompts() -> None:
    batch = {"image": [IMAGES[0], None, IMAGES[2], None], "caption": TEXTS}
    found = find_images_and_prompts(batch, SIZE)
    assert torch.equal(torch.stack(found.images), IMAGES[::2])  # type: ignore[arg-type]
    assert found.prompts == TEXTS[::2]


def test_samples_that_are_none_are_left_out() -> None:
    batch = [(IMAGES[0], "a cat"), None, (IMAGES[1], "a dog")]
    assert find_images_and_prompts(batch, SIZE).prompts == ["a cat", "a dog"]


@pytest.mark.parametrize("frames", [IMAGES[:, None].expand(4, 7, 3, *SIZE), IMAGES[:, :, None].expand(4, 3, 7, *SIZE)])
def test_of_a_video_the_first_frame_is_taken(frames: Tensor) -> None:
    images, _ = find((frames, TEXTS), SIZE)
    assert torch.equal(images, IMAGES)


def test_a_video_of_three_frames_is_refused_because_its_colours_may_be_its_frames() -> None:
    frames = IMAGES[:, :, None].expand(4, 3, 3, *SIZE)
    with pytest.raises(ProbeError, match=r"float32 \(4, 3, 3, 8, 12\).*3 images or 3 frames.*ive probes="):
        find((frames, TEXTS), SIZE)
    assert torch.equal(find((frames, IMAGES, TEXTS), SIZE)[0], IMAGES)


def test_the_message_counts_equal_parts() -> None:
    batch = {"image": [np.zeros((9, 9)) for _ in range(3)], "caption": TEXTS, "x": None}
    with pytest.raises(
        ProbeError, match=r"it has image: float64 array \(9, 9\) \(3 times\), caption: list, x: NoneType"
    ):
        find(batch, SIZE)


@pytest.mark.parametrize("dtype", [torch.long, torch.float, torch.bool])
def test_several_labels_per_image_are_refused_with_what_to_do(dtype: torch.dtype) -> None:
    labels = torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).to(dtype)
    with pytest.raises(ProbeError, match=r"'labels' marks the classes of each image with 1.*one of them"):
        find_images_and_prompts({"image": IMAGES, "labels": labels}, SIZE, names=["a", "b", "c", "d", "e"])
    with pytest.raises(ProbeError, match="part 2 marks the classes"):
        find((IMAGES, labels), SIZE)


def test_of_crops_in_several_sizes_those_of_the_model_are_taken() -> None:
    images, _ = find(([torch.rand(4, 3, 4, 4), IMAGES, torch.rand(4, 3, 4, 4)], TEXTS), SIZE)
    assert torch.equal(images, IMAGES)


def test_token_ids_keep_what_else_the_tokenizer_returned() -> None:
    batch = {"pixel_values": IMAGES, "input_ids": TOKENS, "token_type_ids": 0 * TOKENS, "attention_mask": MASK}
    first = find_images_and_prompts(batch, SIZE).prompts[0]
    assert isinstance(first, dict)
    assert {name: row.tolist() for name, row in first.items()} == {
        "input_ids": TOKENS[0].tolist(),
        "token_type_ids": [0] * 5,
        "attention_mask": [1] * 5,
    }


def test_strings_beside_token_ids_are_shown_and_the_ids_embedded() -> None:
    texts = ["a cat", "a dog", "a cow", "an owl"]
    probes = ProbeSet.from_batch({"image": IMAGES, "input_ids": TOKENS, "caption": texts}, size=SIZE)
    assert probes.prompts == texts
    assert [probe.tokens.tolist() for probe in probes] == TOKENS.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("names", [["cat", "dog", "owl"], {0: "cat", 1: "dog", 2: "owl"}])
@pytest.mark.parametrize("labels", [torch.tensor([2, 0, 1, 2]), [2, 0, 1, 2]])
def test_labels_are_named(names: Any, labels: Any) -> None:
    probes = ProbeSet.from_batch((IMAGES, labels), size=SIZE, names=names)
    assert probes.prompts == ["owl", "cat", "dog", "owl"]


def test_fewer_class_names_than_labels_are_refused() -> None:
    with pytest.raises(ProbeError, match="prompts has 2 class names, but the batch has the label 2"):
        ProbeSet.from_batch((IMAGES, torch.tensor([0, 2, 1, 0])), size=SIZE, names=["cat", "dog"])


def test_labels_without_names_are_refused_with_how_to_name_them() -> None:
    with pytest.raises(ProbeError, match=r"name the classes with prompts=\[...\]"):
        ProbeSet.from_batch((IMAGES, torch.arange(4)), size=SIZE)


def test_the_set_does_not_change_when_the_batch_does() -> None:
    images, tokens = IMAGES.clone(), TOKENS.clone()
    copies, prompts = find((images, tokens), SIZE)
    probes = ProbeSet.from_batch((images, tokens), size=SIZE)
    digest = probes.digest

    images.zero_()
    tokens.zero_()

    assert torch.equal(copies, IMAGES)
    assert torch.equal(torch.stack(prompts), TOKENS)
    assert all(torch.equal(probe.image, image) for probe, image in zip(probes, IMAGES, strict=True))
    assert ProbeSet(Probe(probe.image, probe.prompt, tokens=probe.tokens) for probe in probes).digest == digest


def tensors_of(probes: ProbeSet) -> list[Tensor]:
    return [tensor for probe in probes for tensor in (probe.image, probe.tokens)]


def test_inference_tensors_are_converted_to_normal_ones() -> None:
    with torch.inference_mode():
        batch = IMAGES.clone(), TOKENS.clone()
    assert batch[0].is_inference()

    tensors = tensors_of(ProbeSet.from_batch(batch, size=SIZE))

    assert not any(tensor.is_inference() for tensor in tensors)
    (tensors[0].requires_grad_() * 2).sum().backward()  # fails for an inference tensor


def test_tensors_are_normal_also_when_copied_in_inference_mode() -> None:
    with torch.inference_mode():  # as in Trainer.validate
        probes = ProbeSet.from_batch((IMAGES.clone(), TOKENS.clone()), size=SIZE)
    assert not any(tensor.is_inference() for tensor in tensors_of(probes))


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_set_takes_the_first_images_of_a_batch(count: int) -> None:
    probes = ProbeSet.from_batch((IMAGES, TOKENS), size=SIZE, count=count)

    assert len(probes) == min(count, 4)
    for i, probe in enumerate(probes):
        assert torch.equal(probe.image, IMAGES[i])
        assert torch.equal(probe.tokens, TOKENS[i])


def test_strings_of_a_batch_become_prompts_without_token_ids() -> None:
    probes = ProbeSet.from_batch((IMAGES, TEXTS), size=SIZE)
    assert probes.prompts == [*TEXTS[:3], "(empty prompt)"]
    assert all(probe.tokens is None for probe in probes)


class FailingTokenizer:
    """A tokenizer that fails to decode."""

    def __call__(self, texts: list[str]) -> Tensor:
        return torch.ones(len(texts), 5, dtype=torch.long)

    def decode(self, ids: list[int]) -> str:
        raise KeyError(ids[0])


class WrappedTokenizer(FailingTokenizer):
    """Like open_clip's wrapper of a Hugging Face tokenizer: ``decode`` is one level down."""

    decode = None
    tokenizer = WordTokenizer()


@pytest.mark.parametrize(
    ("tokenizer", "ids", "text"),
    [
        (open_clip.SimpleTokenizer(context_length=16), None, "a red circle , twice !"),
        (WordTokenizer(), WordTokenizer()(["A red circle"])[0], "a red circle"),
        (WrappedTokenizer(), WordTokenizer()(["A red circle"])[0], "a red circle"),
        (FailingTokenizer(), torch.tensor([7, 8, 0]), "tokens 7 8"),
        (WordTokenizer(), torch.tensor([7, 99999]), "tokens 7 99999"),
        (WordTokenizer(), torch.tensor([1, 0, 0]), "tokens 1"),
        (None, torch.arange(1, 20), "tokens 1 2 3 4 5 6 7 8"),
        (lambda texts: texts, torch.tensor([7, 8]), "tokens 7 8"),
    ],
    ids=["open_clip", "words", "wrapped", "failing", "unknown id", "only special", "none", "a function"],
)
def test_token_ids_are_decoded_where_the_tokenizer_can(tokenizer: Any, ids: Tensor | None, text: str) -> None:
    if ids is None:
        ids = tokenizer(["A red circle, twice!"])[0]
    assert decode_prompt(ids, tokenizer) == text


def test_probes_with_token_ids_are_named_after_the_decoded_text() -> None:
    tokenizer = WordTokenizer()
    batch = IMAGES[:2], tokenizer(["a red circle", "a blue star"])
    probes = ProbeSet.from_batch(batch, size=SIZE, tokenizer=tokenizer)
    assert (probes.prompts, probes.names) == (["a red circle", "a blue star"], ["a-red-circle", "a-blue-star"])


def test_images_go_with_the_prompts_of_their_own_part_of_a_combined_batch() -> None:
    batch = {"unlabeled": IMAGES.flip(0), "labeled": (IMAGES, TEXTS)}
    images, prompts = find(batch, SIZE)
    assert torch.equal(images, IMAGES)
    assert prompts == TEXTS


def test_two_views_in_parts_of_their_own_share_the_prompts_above_them() -> None:
    images, prompts = find({"image": {"x": IMAGES}, "augmented": {"x": IMAGES.flip(0)}, "caption": TEXTS}, SIZE)
    assert torch.equal(images, IMAGES)
    assert prompts == TEXTS


LABELS = torch.tensor([2, 0, 1, 2])
LABELLED = {
    "a domain beside it": {"image": IMAGES, "domain_label": LABELS.flip(0), "label": LABELS},
    "names of a domain": {"image": IMAGES, "label": LABELS, "domain": ["photo", "sketch", "photo", "photo"]},
    "indices out of range": (IMAGES, torch.arange(1000, 1004), LABELS),
    "a segmentation": (IMAGES, torch.ones(4, 16, 12, dtype=torch.long), LABELS),
    "two loaders": {"unlabeled": (IMAGES, IMAGES), "labeled": (IMAGES, LABELS)},
}


@pytest.mark.parametrize("batch", LABELLED.values(), ids=LABELLED)
@pytest.mark.parametrize("given", [True, False])
def test_labels_are_not_mistaken(batch: Any, given: bool) -> None:
    found = find_images_and_prompts(batch, SIZE, names=["cat", "dog", "owl"], are_names_given=given)
    assert found.prompts == ["owl", "cat", "dog", "owl"]


def test_several_parts_that_could_be_labels_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"2 parts of the batch could be labels.*'label'"):
        find_images_and_prompts((IMAGES, LABELS, LABELS.flip(0)), SIZE, names=["cat", "dog", "owl"])


def test_names_that_are_given_take_precedence_over_strings() -> None:
    batch = {"image": IMAGES, "label": LABELS, "text": TEXTS}
    names = ["cat", "dog", "owl"]
    assert find_images_and_prompts(batch, SIZE, names=names).prompts == ["owl", "cat", "dog", "owl"]
    assert find_images_and_prompts(batch, SIZE, names=names, are_names_given=False).prompts == TEXTS


@pytest.mark.parametrize("key", ["image_tokens", "neg_caption"])
def test_codes_of_images_and_negatives_are_not_taken_for_prompts(key: str) -> None:
    other = TOKENS if "tokens" in key else TEXTS[::-1]
    assert find({"image": IMAGES, key: other, "caption": TEXTS}, SIZE)[1] == TEXTS


def test_samples_by_name_without_an_image_are_left_out() -> None:
    batch = [{"image": IMAGES[0], "text": "a cat"}, {"image": None, "text": "a dog"}]
    assert find_images_and_prompts(batch, SIZE).prompts == ["a cat"]


ONE_HOT = torch.eye(6, dtype=torch.long)[:4]
NO_TOKEN_IDS = {
    "one-hot labels": ONE_HOT,
    "several labels": torch.tensor([[0, 1, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]),
    "an attention mask": (TOKENS != 0).long(),
    "landmarks": torch.tensor([[9, 3, 40, 8, 21], [30, 2, 8, 55, 3], [4, 4, 61, 9, 30], [17, 60, 2, 2, 9]]),
    "negative numbers": TOKENS - 2,
    "metadata": torch.tensor(
        [[14, 9, 23, 0, 13, 1], [11, 26, 6, 9, 28, 1], [26, 29, 1, 14, 14, 1], [1, 12, 3, 0, 5, 1]]
    ),
}


@pytest.mark.parametrize("numbers", NO_TOKEN_IDS.values(), ids=NO_TOKEN_IDS)
def test_integers_that_do_not_look_like_token_ids_are_not_taken_for_them(numbers: Tensor) -> None:
    assert torch.equal(torch.stack(find((IMAGES, numbers, TOKENS), SIZE)[1]), TOKENS)
    with pytest.raises(ProbeError, match=r"no prompts to go with them.*name the classes with prompts="):
        find((IMAGES, numbers), SIZE)


IDS = {
    "CLIP, padded with 0": [[49406, 320, 49407, 0, 0], [49406, 320, 1929, 2368, 49407]],
    "CLIP of transformers, padded with the end": [[49406, 320, 49407, 49407, 49407], [49406, 320, 1929, 2368, 49407]],
    "SigLIP, padded with the end and no start": [[262, 266, 1, 1, 1], [262, 1304, 267, 1, 1]],
    "BERT": [[101, 1037, 102, 0, 0], [101, 1037, 2829, 4937, 102]],
    "BERT, equally long texts": [[101, 1037, 2829, 4937, 102], [101, 1037, 2829, 3899, 102]],
    "T5, padded to the longest": [[3, 9, 1, 0, 0], [3, 9, 4216, 1712, 1]],
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_token_ids_of_usual_tokenizers_are_recognized_without_a_key(ids: list[list[int]]) -> None:
    labels = torch.arange(2)
    prompts = find((IMAGES[:2], labels, torch.tensor(ids)), SIZE)[1]
    assert torch.stack(prompts).tolist() == ids


def test_a_key_names_token_ids_of_any_form() -> None:
    ids = torch.arange(20).view(4, 5) + 1
    assert torch.equal(torch.stack(find({"image": IMAGES, "clip_tokens": ids}, SIZE)[1]), ids)


CLIP_IDS = torch.tensor(IDS["CLIP, padded with 0"])


@pytest.mark.parametrize("other", [[[101, 1037, 102, 0, 0]] * 2, [[49406, 320, 320, 0, 0]] * 2, [[50000] * 5] * 2])
def test_ids_of_another_vocabulary_than_the_models_are_not_taken(other: list[list[int]]) -> None:
    batch = {"image": IMAGES[:2], "input_ids": torch.tensor(other), "clip_ids": CLIP_IDS}
    found = find_images_and_prompts(batch, SIZE, text_input=TextInput(vocabulary_size=49408))
    assert [row.tolist() for row in found.prompts] == CLIP_IDS.tolist()  # type: ignore[union-attr]
    with pytest.raises(ProbeError, match="input_ids: int64"):
        find_images_and_prompts({"image": IMAGES[:2], "input_ids": CLIP_IDS}, SIZE, text_input=TextInput(32000))


def test_strings_take_precedence_over_token_ids_if_there_is_a_tokenizer() -> None:
    for batch in ({"image": IMAGES, "tokens": TOKENS, "caption": TEXTS}, (IMAGES, TOKENS, TEXTS)):
        assert find_images_and_prompts(batch, SIZE, text_input=TextInput(has_tokenizer=True)).prompts == TEXTS
        assert isinstance(find_images_and_prompts(batch, SIZE).prompts[0], Tensor)


METADATA = {
    "file stems": (IMAGES, [f"ILSVRC2012_val_0000029{i}" for i in range(4)]),
    "paths with spaces": (IMAGES, [f"/data/my images/the cat {i}.jpg" for i in range(4)]),
    "addresses": (IMAGES, [f"https://example.org/a cat {i}" for i in range(4)]),
    "times": (IMAGES, ["2020-01-01 10:00:00"] * 4),
    "views": {"image": IMAGES, "view": ["PA", "AP", "PA", "AP supine"], "sex": ["F", "M", "F", "F"]},
    "sources": {"image": IMAGES, "source": ["MS COCO", "Open Images", "MS COCO", "MS COCO"]},
    "a key that contains the letters of text": {"image": IMAGES, "context": ["EN", "DE", "EN", "FR"]},
    "patients": {"image": IMAGES, "patientName": ["Doe, Jane", "Roe, John", "Doe, Max", "Roe, Eva"]},
}


@pytest.mark.parametrize("batch", METADATA.values(), ids=METADATA)
def test_strings_that_do_not_look_like_text_are_not_taken_for_prompts(batch: Any) -> None:
    with pytest.raises(ProbeError, match="neither 4 strings"):
        find(batch, SIZE)


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, ["a cat", "dog", "a cow. An owl", ""]),
        (IMAGES, ["一只猫", "一只狗", "牛", "猫头鹰"]),
        {"image": IMAGES, "report": ["no effusion", "effusion", "no finding", "clear lungs"]},
        {"image": IMAGES, "rawCaption": ["cat", "dog", "cow", "owl"]},
        {"image": IMAGES, "txt": ["cat", "dog", "cow", "owl"]},
    ],
)
def test_strings_that_look_like_text_or_that_a_key_names_are_prompts(batch: Any) -> None:
    texts = batch[1] if isinstance(batch, tuple) else list(batch.values())[1]
    assert find(batch, SIZE)[1] == texts


def test_labels_with_names_take_precedence_over_strings_that_no_key_names() -> None:
    names = ["cat", "dog", "owl"]
    for batch in ((IMAGES, LABELS, TEXTS), {"image": IMAGES, "label": LABELS, "comment": TEXTS}):
        found = find_images_and_prompts(batch, SIZE, names=names, are_names_given=False)
        assert found.prompts == ["owl", "cat", "dog", "owl"]


def test_labels_may_be_a_tuple() -> None:
    assert find_images_and_prompts((IMAGES, (2, 0, 1, 2)), SIZE, names=["cat", "dog", "owl"]).prompts[0] == "owl"


def captions(images: int, each: int) -> list[list[str]]:
    return [[f"image {i} caption {k}" for k in range(each)] for i in range(images)]


FIRST = [f"image {i} caption 0" for i in range(4)]


@pytest.mark.parametrize("each", [1, 3, 5])
def test_of_several_captions_the_first_of_each_image_is_taken(each: int) -> None:
    per_image = captions(4, each)
    per_caption = [tuple(row) for row in zip(*per_image, strict=True)]
    for several in (per_image, tuple(per_image), per_caption):
        assert find((IMAGES, several), SIZE)[1] == FIRST
        assert find({"image": IMAGES, "captions": several}, SIZE)[1] == FIRST
    samples = list(zip(PIL_IMAGES, per_image, strict=True))
    assert find_images_and_prompts(samples, SIZE).prompts == FIRST


def test_images_may_have_unequally_many_captions() -> None:
    several = [row[:count] for row, count in zip(captions(4, 4), (4, 2, 1, 3), strict=True)]
    assert find({"image": IMAGES, "captions": several}, SIZE)[1] == FIRST


def test_as_many_captions_as_images_are_in_the_order_of_the_default_collate() -> None:
    samples = [{"image": image, "captions": own} for image, own in zip(IMAGES, captions(4, 4), strict=True)]
    assert find(torch.utils.data.default_collate(samples), SIZE)[1] == FIRST
    assert find_images_and_prompts(samples, SIZE).prompts == FIRST


@pytest.mark.parametrize("several", [captions(4, 4), tuple(map(tuple, captions(4, 4)))], ids=["lists", "tuples"])
def test_as_many_captions_as_images_are_refused_if_nothing_shows_their_order(several: Any) -> None:
    batch = {"image": IMAGES, "captions": several}
    with pytest.raises(ProbeError, match=r"4 lists of 4 strings for 4 images \(captions\).*Use another batch size"):
        find(batch, SIZE)
    found = find_images_and_prompts({**batch, "label": LABELS}, SIZE, names=["cat", "dog", "owl"])
    assert found.prompts == ["owl", "cat", "dog", "owl"]


OTHERS = IMAGES.flip(0)


@pytest.mark.parametrize(
    "key", ["neg_image", "negative", "hardNegative", "depth", "image_mask", "edge", "distractor2", "conditioning_image"]
)
def test_images_of_negatives_and_depth_are_not_explained(key: str) -> None:
    assert torch.equal(find({key: OTHERS, "pos_image": IMAGES, "text": TEXTS}, SIZE)[0], IMAGES)
    with pytest.raises(ProbeError, match=rf"{key}: float32 .*Keys such as 'depth' or 'negative' do not count"):
        find({key: OTHERS, "text": TEXTS}, SIZE)


def test_parts_of_a_negative_sample_are_not_taken() -> None:
    batch = {"negative": {"image": OTHERS, "text": TEXTS[::-1]}, "anchor": {"image": IMAGES, "text": TEXTS}}
    images, prompts = find(batch, SIZE)
    assert torch.equal(images, IMAGES)
    assert prompts == TEXTS


@pytest.mark.parametrize(
    "key", ["text_hard", "foil_caption", "falseCaption", "caption_neg", "wrong_text", "swapped_text"]
)
def test_texts_that_are_false_of_their_images_are_not_taken(key: str) -> None:
    assert find({"image": IMAGES, key: TEXTS[::-1], "caption": TEXTS}, SIZE)[1] == TEXTS
    with pytest.raises(ProbeError, match="neither 4 strings"):
        find({"image": IMAGES, key: TEXTS}, SIZE)


SAME = ["Describe this image in one sentence."] * 4
BESIDE_TEXTS = {
    "an instruction": {"prompt": SAME, "image": IMAGES, "caption": TEXTS},
    "an instruction, texts without a key that names them": {"prompt": SAME, "image": IMAGES, "response": TEXTS},
    "an instruction without a key": (IMAGES, SAME, TEXTS),
    "a template": {"text_template": ["a photo of a {}"] * 4, "image": IMAGES, "caption": TEXTS},
    "templates that differ": {"prompt": ["a {}", "one {c}", "a {}", "the {0}"], "image": IMAGES, "caption": TEXTS},
    "a source": {"caption_source": ["alt text", "alt text", "human", "human"], "image": IMAGES, "caption": TEXTS},
    "a model": {"captionModel": ["BLIP 2", "Co CA", "BLIP 2", "BLIP 2"], "image": IMAGES, "caption": TEXTS},
    "the caption of a source": {"image": IMAGES, "source_caption": TEXTS},
}


@pytest.mark.parametrize("batch", BESIDE_TEXTS.values(), ids=BESIDE_TEXTS)
def test_what_is_said_of_all_images_or_of_their_texts_is_not_taken_for_the_texts(batch: Any) -> None:
    assert find(batch, SIZE)[1] == TEXTS
    assert find_images_and_prompts(batch, SIZE, text_input=TextInput(has_tokenizer=True)).prompts == TEXTS


def test_a_text_of_all_images_is_neither_taken_nor_shown_beside_token_ids_that_differ() -> None:
    batch = {"prompt": SAME, "image": IMAGES, "input_ids": TOKENS}
    for has_tokenizer in (True, False):
        found = find_images_and_prompts(batch, SIZE, text_input=TextInput(has_tokenizer=has_tokenizer))
        assert torch.equal(torch.stack(found.prompts), TOKENS)  # type: ignore[arg-type]
        assert found.texts == []


def test_labels_take_precedence_over_a_text_of_all_images() -> None:
    batch = {"image": IMAGES, "text": SAME, "label": LABELS}
    found = find_images_and_prompts(batch, SIZE, names=["cat", "dog", "owl"], are_names_given=False)
    assert found.prompts == ["owl", "cat", "dog", "owl"]


def test_images_may_have_one_caption_if_there_is_nothing_else() -> None:
    same = ["a photo of a tench"] * 4
    for batch in ({"image": IMAGES, "caption": same}, {"image": IMAGES, "prompt": SAME, "caption": same}):
        assert find(batch, SIZE)[1] == same
    ids = TOKENS[:1].repeat(4, 1)
    found = find_images_and_prompts({"image": IMAGES, "caption": same, "input_ids": ids}, SIZE)
    assert (found.texts, found.prompts[3].tolist()) == (same, TOKENS[0].tolist())  # type: ignore[union-attr]


def test_of_one_image_the_caption_is_taken_rather_than_an_instruction() -> None:
    assert find({"prompt": SAME[:1], "image": IMAGES[:1], "caption": TEXTS[:1]}, SIZE)[1] == TEXTS[:1]


PAIRS = {
    "a view of it": {"image": IMAGES, "image_aug": OTHERS, "caption": TEXTS},
    "a numbered view of it": {"image": IMAGES, "image2": OTHERS, "caption": TEXTS},
    "views": {"view_1": IMAGES, "view_2": OTHERS, "caption": TEXTS},
    "a weak and a strong view": {"weak": IMAGES, "strong": OTHERS, "caption": TEXTS},
    "a list of views": ([IMAGES, OTHERS], TEXTS),
    "views after the text": (IMAGES, TEXTS, OTHERS, OTHERS),
    "numbers": {"image_0": OTHERS, "image_1": IMAGES, "caption_1": TEXTS},
    "numbers of two pairs": {"image_1": IMAGES, "image_0": OTHERS, "caption_0": TEXTS[::-1], "caption_1": TEXTS},
    "numbers above": {"pair_2": {"x": OTHERS}, "pair_1": {"x": IMAGES}, "texts": {"caption_1": TEXTS}},
    "a common word": {"left_image": OTHERS, "right_image": IMAGES, "caption_right": TEXTS},
    "an image before the transform": {"image": IMAGES, "raw_image": OTHERS, "caption": TEXTS},
    "an original": {"image": IMAGES, "image_original": OTHERS, "caption": TEXTS},
    "an image of which a part is masked": {"image": IMAGES, "masked_image": OTHERS, "caption": TEXTS},
    "images of two sizes": (IMAGES, OTHERS[..., :6, :10], TEXTS),
    "a word that names texts": {"image": IMAGES, "image_text_aug": OTHERS, "text": TEXTS},
}


@pytest.mark.parametrize("batch", PAIRS.values(), ids=PAIRS)
def test_of_several_images_those_that_the_text_goes_with_are_taken(batch: Any) -> None:
    images, prompts = find(batch, (16, 16), lambda size: True)
    assert torch.equal(images, IMAGES)
    assert prompts == TEXTS


RIVALS = {
    "composed retrieval": {"reference_image": IMAGES, "target_image": OTHERS, "relative_caption": TEXTS},
    "change captioning": {"image_before": IMAGES, "image_after": OTHERS, "change_caption": TEXTS},
    "numbers of the images only": {"image_1": IMAGES, "image_2": OTHERS, "caption": TEXTS},
    "editing": {"original_image": IMAGES, "edited_image": OTHERS, "edit_prompt": TEXTS},
    "token ids": {"left": IMAGES, "right": OTHERS, "input_ids": TOKENS},
    "an image of another kind": {"image": IMAGES, "reference": OTHERS, "caption": TEXTS},
}


@pytest.mark.parametrize("batch", RIVALS.values(), ids=RIVALS)
def test_several_images_of_one_text_are_refused_if_keys_do_not_decide(batch: Any) -> None:
    first, second, text = batch
    with pytest.raises(ProbeError, match=rf"'{text}' .* images of '{first}' or '{second}'.*or give probes="):
        find(batch, SIZE)


def test_two_images_before_a_text_are_refused_without_keys() -> None:
    with pytest.raises(ProbeError, match=r"part 3 .* images of part 1 or part 2"):
        find((IMAGES, OTHERS, TEXTS), SIZE)
    found = find_images_and_prompts((IMAGES, OTHERS, LABELS), SIZE, names=["cat", "dog", "owl"])
    assert torch.equal(torch.stack(found.images), IMAGES)  # type: ignore[arg-type]


def test_captions_of_one_image_give_way_to_other_images() -> None:
    rows = [image for image in IMAGES for _ in range(3)]
    texts = [f"a photo of number {i}" for i in range(len(rows))]
    found = find_images_and_prompts({"image": torch.stack(rows), "caption": texts}, SIZE)
    assert [probe.prompt for probe in found.list_probes(4)] == texts[::3]
    assert [probe.prompt for probe in found.list_probes(6)] == [*texts[:3], *texts[3::3]], "the first have two more"


@pytest.mark.parametrize("key", ["caption", "text"])
def test_a_caption_of_all_images_comes_before_what_describes_them(key: str) -> None:
    one = ["an x-ray of pneumonia"] * 4
    batch = {"image": IMAGES, key: one, "history": ["67 years old", "chest pain", "no fever", "a dry cough"]}
    assert find(batch, SIZE)[1] == one
