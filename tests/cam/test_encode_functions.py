"""Encode functions of the user: what they may return, and what is said if they return something else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning import ConfigError, ModelError, TowerError, explain, find_clip
from clipcam_lightning.cam import finding
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
from clipcam_lightning.shapes_world.models import build_clip


class Encoders(nn.Module):
    """Two encoders under names that nobody can guess."""

    def __init__(self) -> None:
        super().__init__()
        clip = trained_clip("vit")
        self.eye, self.ear = clip.visual, clip

    def see(self, images: Tensor) -> Tensor:
        features: Tensor = self.eye(images)
        return features

    def hear(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.ear.encode_text(tokens)
        return features


def see(module: Any, images: Tensor) -> Tensor:
    features: Tensor = module.eye(images)
    return features


def hear(module: Any, tokens: Tensor) -> Tensor:
    features: Tensor = module.ear.encode_text(tokens)
    return features


IMAGES = torch.rand(2, 3, 64, 64)
PROMPTS = ["a red circle", "a blue star"]


@pytest.mark.parametrize(("encode_image", "encode_text"), [(see, hear), ("see", "hear"), ("see", hear)])
def test_maps_equal_those_of_the_clip_itself(encode_image: Any, encode_text: Any) -> None:
    functions = {"encode_image": encode_image, "encode_text": encode_text, "tokenizer": WordTokenizer()}
    expected = explain(trained_clip("vit"), IMAGES, PROMPTS, method="hirescam", tokenizer=WordTokenizer())
    explanation = explain(Encoders(), IMAGES, PROMPTS, method="hirescam", **functions)
    torch.testing.assert_close(explanation.maps, expected.maps)
    torch.testing.assert_close(explanation.similarity, expected.similarity)


def see_otherwise(module: Any, images: Tensor) -> Tensor:
    return see(module, images).tanh()


def test_auto_stands_for_a_method_that_needs_no_projection_if_the_functions_add_something() -> None:
    clip = find_clip(Encoders(), tokenizer=WordTokenizer(), encode_image=see, encode_text=hear)
    assert explain(clip, IMAGES, PROMPTS).method == "decomposition"
    clip = find_clip(Encoders(), tokenizer=WordTokenizer(), encode_image=see_otherwise, encode_text=hear)
    assert explain(clip, IMAGES, PROMPTS).method == "hirescam"
    with pytest.raises(ConfigError, match=r"decomposition does not fit.*a class token that is a sum"):
        explain(clip, IMAGES, PROMPTS, method="decomposition")
    with pytest.raises(ConfigError, match=r"maskclip does not fit.*a known way from its tokens to the embedding"):
        explain(clip, IMAGES, PROMPTS, method="maskclip")


def test_images_of_another_size_are_embedded_by_the_functions() -> None:
    clip = find_clip(Encoders(), tokenizer=WordTokenizer(), encode_image=see, encode_text=hear)
    maps = explain(clip, torch.rand(1, 3, 96, 128), PROMPTS, method="hirescam").maps
    expected = explain(trained_clip("vit"), torch.rand(1, 3, 96, 128), PROMPTS, tokenizer=WordTokenizer()).maps
    assert maps.shape == expected.shape


def without_gradient(module: Any, images: Tensor) -> Tensor:
    return see(module, images).detach()


def raising(module: Any, inputs: Tensor) -> Tensor:
    raise RuntimeError("the disk is full")


WRONG_IMAGES: dict[str, tuple[Callable[..., Any], str]] = {
    "a grid": (lambda module, images: images, r"encode_image must return one embedding per input.*float32 \(2, 3,"),
    "one row": (
        lambda module, images: see(module, images)[:1],
        r"encode_image must return .*\[2, d\] \(got float32 \(1",
    ),
    "integers": (lambda module, images: see(module, images).long(), r"encode_image must return .*int64"),
    "nothing": (lambda module, images: None, "encode_image must return .*NoneType"),
}


@pytest.mark.parametrize(("encode_image", "message"), WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_what_is_no_embedding_of_the_images_is_refused(encode_image: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_clip(Encoders(), encode_image=encode_image, encode_text=hear)


def test_embeddings_without_gradient_are_refused_with_what_to_do() -> None:
    with pytest.raises(TowerError, match=r"no gradient.*requires_grad_\(False\)"):
        find_clip(Encoders(), encode_image=without_gradient, encode_text=hear)


def test_a_function_that_raises_is_named_with_its_error() -> None:
    with pytest.raises(TowerError, match=r"could not embed images of any usual size.*the disk is full"):
        find_clip(Encoders(), encode_image=raising, encode_text=hear)


@pytest.mark.parametrize(
    ("encode_text", "message"),
    [
        (lambda module, tokens: hear(module, tokens)[None], r"encode_text must return .*\(1, 2, 64\)"),
        (
            lambda module, tokens: hear(module, tokens)[:, :5],
            r"embeddings of one length \(got 64 and 5 numbers\)",
        ),
    ],
    ids=["three dimensions", "another width"],
)
def test_what_is_no_embedding_of_the_texts_is_refused(encode_text: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain(Encoders(), IMAGES, PROMPTS, tokenizer=WordTokenizer(), encode_image=see, encode_text=encode_text)


def test_names_that_are_no_methods_are_refused_with_the_nearest(unchecked: None) -> None:
    with pytest.raises(ConfigError, match=r"encode_image='sea' is no method of Encoders.*'see'"):
        find_clip(Encoders(), encode_image="sea", encode_text="hear")
    with pytest.raises(ConfigError, match="encode_text must be a function or the name of a method"):
        ModelSpec(encode_image=see, encode_text=3)  # type: ignore[arg-type]


def test_one_function_without_the_other_is_refused() -> None:
    with pytest.raises(ConfigError, match="encode_image is given, but encode_text is not, and Encoders has no such"):
        find_clip(Encoders(), encode_image=see)
    with pytest.raises(ConfigError, match="encode_text is given, but encode_image is not"):
        find_clip(Encoders(), encode_text=hear)


def test_the_functions_are_of_the_module_that_clip_names() -> None:
    model = nn.ModuleDict({"inner": Encoders()})
    clip = find_clip(model, clip="inner", tokenizer=WordTokenizer(), encode_image="see", encode_text="hear")
    assert F.cosine_similarity(clip.embed_images(IMAGES), clip.embed_images(IMAGES)).shape == (2,)
    with pytest.raises(ModelError, match=r"clip='innr' names no part of ModuleDict.*'inner'"):
        find_clip(model, clip="innr", encode_image="see", encode_text="hear")


def test_a_text_function_may_take_the_tensors_of_a_tokenizer_by_name() -> None:
    seen: dict[str, Tensor] = {}

    def by_name(module: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen.update(input_ids=input_ids, attention_mask=attention_mask)
        return hear(module, input_ids)

    def tokenizer(texts: list[str]) -> dict[str, Tensor]:
        ids = WordTokenizer()(texts)
        return {"input_ids": ids, "attention_mask": ids.ne(0).long(), "special": ids}

    clip = find_clip(Encoders(), tokenizer=tokenizer, encode_image=see, encode_text=by_name)
    assert clip.embed_texts(PROMPTS).shape == (2, 64)
    assert torch.equal(seen["attention_mask"], seen["input_ids"].ne(0).long())


def test_rows_of_a_head_stand_for_prompts() -> None:
    names, rows = ["cat", "dog"], torch.eye(64)[:2]
    clip = find_clip(
        Encoders(),
        encode_image=see,
        encode_text=lambda module, prompts: rows[[names.index(prompt) for prompt in prompts]],
    )
    assert torch.equal(clip.embed_texts(["dog", "cat", "dog"]), rows[[1, 0, 1]])


class OfTwo(nn.Module):
    """An encoder that returns a mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net(images)
        return features, 2 * features


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.words(tokens).mean(1)
        return features


class Pair(nn.Module):
    """Two encoders under conventional names."""

    def __init__(self, image_encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.image_encoder = image_encoder or OfTwo().net
        self.text_encoder = Words()


def test_a_tuple_of_two_embeddings_is_refused() -> None:
    with pytest.raises(ModelError, match=r"a tuple of 2 tensors that may be its embeddings; say which with "):
        find_clip(Pair(OfTwo()))


def test_of_two_pairs_the_one_that_follows_the_other_gives_way() -> None:
    assert find_clip(nn.ModuleDict({"ema": Pair(), "student": Pair()})).name == "student"
    assert find_clip(nn.ModuleDict({"one": Pair().requires_grad_(False), "two": Pair()})).name == "two"
    with pytest.raises(ModelError, match=r"2 pairs of encoders in ModuleDict: one \(Pair\), two \(Pair\)"):
        find_clip(nn.ModuleDict({"one": Pair(), "two": Pair()}))


def test_a_projection_may_be_a_parameter() -> None:
    pair = Pair()
    pair.image_projection, pair.text_projection = (nn.Parameter(torch.randn(8, 4)) for _ in range(2))
    clip = find_clip(pair)
    torch.testing.assert_close(clip.features(IMAGES), pair.image_encoder(IMAGES) @ pair.image_projection)
    assert (str(clip.module), clip.doubt) == (
        "image_projection(image_encoder) and text_projection(text_encoder) of Pair",
        "",
    )


def test_trained_parts_that_no_name_tells_of_are_a_doubt() -> None:
    pair = Pair()
    pair.image_mlp = nn.Linear(8, 8)
    assert find_clip(pair).doubt == (
        "image_encoder and text_encoder of Pair leave out parameters that are trained: image_mlp.weight, image_mlp.bias"
    )


def test_a_method_that_takes_more_than_images_is_a_doubt() -> None:
    class OfBatches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = trained_clip("vit")

        def encode_image(self, batch: dict[str, Tensor]) -> Tensor:
            features: Tensor = self.clip.encode_image(batch["image"])
            return features

        def encode_text(self, batch: dict[str, Tensor]) -> Tensor:
            features: Tensor = self.clip.encode_text(batch["text"])
            return features

    clip = find_clip(OfBatches())
    assert clip.name == "clip"
    assert "OfBatches has an encode_image of its own, which cannot be called with images alone" in clip.doubt


def test_ids_and_mask_go_to_a_method_under_other_names_of_the_ids() -> None:
    class Masked(Encoders):
        def hear(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            assert attention_mask is not None
            return super().hear(tokens)

    def tokenizer(texts: list[str]) -> dict[str, Tensor]:
        ids = WordTokenizer()(texts)
        return {"input_ids": ids, "attention_mask": ids.ne(0).long()}

    clip = find_clip(Masked(), tokenizer=tokenizer, encode_image="see", encode_text="hear")
    assert clip.embed_texts(PROMPTS).shape == (2, 64)


def test_an_error_of_the_text_encoder_is_not_hidden() -> None:
    def broken(module: Any, tokens: Any) -> Tensor:
        raise KeyError("special")

    clip = find_clip(Encoders(), tokenizer=WordTokenizer(), encode_image=see, encode_text=broken)
    ids = WordTokenizer()(PROMPTS)
    with pytest.raises(KeyError, match="special"):
        clip.embed_tokens({"input_ids": ids, "attention_mask": ids})


def test_random_generators_and_hidden_modules_are_left_as_they_were() -> None:
    class Noisy(Encoders):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator()
            self.hidden = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))]

        def see(self, images: Tensor) -> Tensor:
            noise = torch.randn(images.shape, generator=self.generator)
            return super().see(images + 0 * self.hidden[0](noise))

    model = Noisy()
    state, buffers = model.generator.get_state(), [each.clone() for each in model.hidden[0].buffers()]
    find_clip(model, encode_image="see", encode_text="hear")
    assert torch.equal(model.generator.get_state(), state)
    assert all(torch.equal(*each) for each in zip(model.hidden[0].buffers(), buffers, strict=True))
    assert model.hidden[0].training


class AroundTexts(nn.Module):
    """Embeds images as the CLIP in it, and texts with a layer more."""

    def __init__(self, takes_strings: bool = False) -> None:
        super().__init__()
        self.clip: Any = build_clip("vit")
        width = self.clip.text_projection.shape[1]
        self.adapter = nn.Linear(width, width)
        self.takes_strings = takes_strings

    def encode_image(self, images: Tensor) -> Tensor:
        features: Tensor = self.clip.encode_image(images)
        return self.adapter(features) if self.takes_strings else features

    def encode_text(self, texts: Any) -> Tensor:
        ids = WordTokenizer()([*texts]) if self.takes_strings else texts
        embeddings: Tensor = self.adapter(self.clip.encode_text(ids))
        return embeddings


def test_a_module_that_embeds_texts_alone_differently_is_the_outer_clip() -> None:
    module = AroundTexts().eval()
    found = find_clip(module, tokenizer=WordTokenizer())
    expected = F.normalize(module.encode_text(WordTokenizer()(["a red circle"])), dim=-1)
    assert_close(found.embed_texts(["a red circle"]), expected.detach())
    assert find_clip(AroundTexts().requires_grad_(False), tokenizer=WordTokenizer()).name == "", (
        "also if nothing is trained"
    )


def test_images_that_are_embedded_as_by_the_clip_keep_its_method() -> None:
    module = AroundTexts()
    images, embeddings = torch.rand(1, 3, 64, 64), torch.randn(2, module.adapter.out_features)
    explanation = explain(module, images, embeddings)
    assert explanation.method == "decomposition"
    assert_close(explanation.maps, explain(module.clip, images, embeddings).maps)


def test_an_outer_text_encoder_may_take_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not tokens of the tokenizer that the CLIP in it would have."""
    monkeypatch.setattr(finding, "make_default_tokenizer", lambda *_: WordTokenizer())
    module = AroundTexts(takes_strings=True).eval()
    embeddings = find_clip(module).embed_texts(["a red circle"])
    assert_close(embeddings, F.normalize(module.encode_text(["a red circle"]), dim=-1).detach())
