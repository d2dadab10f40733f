"""The CLIP is found by its methods, under any name and in any wrapper."""

import copy
from typing import Any

import open_clip
import pytest
import torch
import torchmetrics
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import CLIPImageProcessor, CLIPProcessor

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.errors import ClipCamWarning, ModelError
from clipcam_lightning.shapes_world.models import WordTokenizer
from tests.support.zoo import huggingface


class Holder(nn.Module):
    """Stands for a LightningModule: holds its children under the names they are passed by."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Delegating(Holder):
    """Delegates to its CLIP, as many LightningModules do."""

    def encode_image(self, images: Tensor) -> Tensor:
        return self.clip.encode_image(images)

    def encode_text(self, texts: Tensor) -> Tensor:
        return self.clip.encode_text(texts)


@pytest.fixture
def process_group(tmp_path: Any) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def lora(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(target_modules=["c_fc", "c_proj"], r=2, init_lora_weights=False))


WRAPPERS = {
    "itself": lambda clip: clip,
    "any name": lambda clip: Holder(backbone_17=clip),
    "two levels down": lambda clip: Holder(a=Holder(b=clip)),
    "beside other modules": lambda clip: Holder(head=nn.Linear(2, 2), net=clip),
    "delegating module": lambda clip: Delegating(clip=clip),
    "compiled": lambda clip: Holder(model=torch.compile(clip, backend="eager")),
    "held twice": lambda clip: Holder(model=clip, alias=clip),
    "lora": lambda clip: Holder(model=lora(clip)),
}


class DelegatingToTransformers(Holder):
    """Delegates to a model of transformers, under the method names of open_clip."""

    def encode_image(self, images: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=images).pooler_output

    def encode_text(self, texts: Tensor) -> Tensor:
        return self.clip.get_text_features(input_ids=texts).pooler_output


def lora_of_transformers(model: nn.Module) -> nn.Module:
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))


TRANSFORMERS_WRAPPERS = {
    **WRAPPERS,
    "delegating module": lambda clip: DelegatingToTransformers(clip=clip),
    "lora": lambda clip: Holder(model=lora_of_transformers(clip)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_clip_is_found_in(wrap: Any, untrained: open_clip.CLIP) -> None:
    assert find_clip(wrap(untrained)).module is untrained


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("wrap", TRANSFORMERS_WRAPPERS.values(), ids=TRANSFORMERS_WRAPPERS)
def test_a_clip_of_transformers_is_found_in(wrap: Any) -> None:
    model = huggingface.clip()

    assert find_clip(wrap(model)).module is model


def test_the_clip_is_found_in_ddp(untrained: open_clip.CLIP, process_group: None) -> None:
    wrapped = Holder(model=nn.parallel.DistributedDataParallel(untrained))

    assert find_clip(wrapped).module is untrained


def test_lora_weights_take_part_in_the_map(untrained: open_clip.CLIP) -> None:
    images, texts = torch.randn(2, 3, 64, 64), torch.randn(1, 64)
    plain = explain(untrained, images, texts).maps

    adapted = explain(lora(untrained), images, texts).maps

    assert not torch.allclose(plain, adapted)


class ClipScore(torchmetrics.Metric):
    """A metric that holds a CLIP of its own, as that of torchmetrics."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def update(self) -> None: ...

    def compute(self) -> None: ...


def test_the_clip_of_a_metric_is_not_what_is_trained(untrained: open_clip.CLIP) -> None:
    module = Holder(model=untrained, score=ClipScore(copy.deepcopy(untrained)))
    assert find_clip(module).module is untrained
    assert find_clip(Holder(score=ClipScore(untrained), model=untrained)).name == "model", "which both have"


@pytest.mark.parametrize("name", ["teacher", "ema_model", "clip_ema", "momentum_encoder"])
def test_a_copy_that_follows_the_trained_model_is_ignored(untrained: open_clip.CLIP, name: str) -> None:
    assert find_clip(Holder(**{name: copy.deepcopy(untrained), "model": untrained})).module is untrained
    assert find_clip(Holder(**{name: untrained})).module is untrained, "it is used if there is no other"


def test_several_clips_are_rejected_with_the_argument_that_selects_one(
    untrained: open_clip.CLIP,
) -> None:
    module = Holder(left=untrained, right=copy.deepcopy(untrained))

    with pytest.raises(ModelError, match=r"2 CLIPs in Holder: left \(CLIP\), right \(CLIP\).*clip='dotted\.name'"):
        find_clip(module)
    assert find_clip(module, "left").module is untrained


def test_a_module_without_a_clip_is_rejected_with_the_methods_of_a_clip() -> None:
    with pytest.raises(ModelError, match=r"no CLIP in Linear.*encode_image and encode_text.*get_image_features and"):
        find_clip(nn.Linear(2, 2))


def test_an_unknown_name_is_rejected_with_the_clips_in_the_module(untrained: open_clip.CLIP) -> None:
    with pytest.raises(ModelError, match=r"clip='modle' names no CLIP.*found: model \(CLIP\)"):
        find_clip(Holder(model=untrained), "modle")


def test_a_name_may_be_that_of_a_wrapper(untrained: open_clip.CLIP) -> None:
    module = Holder(a=Holder(clip=untrained), b=copy.deepcopy(untrained))

    assert find_clip(module, "a").name == "a.clip"


def test_the_tokenizer_of_the_nearest_module_is_used(untrained: open_clip.CLIP) -> None:
    near, far = WordTokenizer(), WordTokenizer()
    module = Holder(inner=Holder(clip=untrained))
    assert find_clip(module).tokenizer is None

    module.tokenizer = far
    assert find_clip(module).tokenizer is far
    module.inner.tokenizer = near
    assert find_clip(module).tokenizer is near


def test_a_model_with_the_vocabulary_of_clip_gets_the_tokenizer_of_clip() -> None:
    tokens = find_clip(clip_with_vocabulary(49408)).tokenize(["a cat"])

    assert torch.equal(tokens, open_clip.tokenize(["a cat"], context_length=20))


def clip_with_vocabulary(size: int) -> open_clip.CLIP:
    config = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    text = {"layers": 1, "width": 32, "heads": 2, "context_length": 20, "vocab_size": size}
    return open_clip.CLIP(embed_dim=16, vision_cfg=config, text_cfg=text)


class Adapted(Holder):
    """Embeds with an adapter behind its CLIP."""

    def encode_image(self, images: Tensor) -> Tensor:
        return self.head(self.clip.encode_image(images))

    def encode_text(self, texts: Tensor) -> Tensor:
        return self.clip.encode_text(texts)


class Rewritten(Adapted):
    """Embeds texts with a network of its own beside a CLIP."""

    def encode_text(self, texts: Any) -> Tensor:
        return self.words(texts).mean(dim=1)


def of_a_decoder(texts: list[str]) -> Tensor:
    return torch.tensor([[22, 36, 38, 1]] * len(texts))


def of_a_decoder_without_padding(texts: list[str], **_: Any) -> Tensor:
    raise ValueError("Asking to pad but the tokenizer does not have a padding token")


@pytest.mark.parametrize("other", [of_a_decoder, of_a_decoder_without_padding])
@pytest.mark.parametrize("around", [Holder, Adapted])
def test_the_tokenizer_of_another_network_is_not_used_for_the_vocabulary_of_clip(around: Any, other: Any) -> None:
    module = around(clip=clip_with_vocabulary(49408), head=nn.Linear(16, 16))
    module.tokenizer = other
    expected = open_clip.tokenize(["a cat"], context_length=20)
    with pytest.warns(ClipCamWarning, match=f"the tokenizer {other.__name__} beside the CLIP makes no token ids"):
        assert torch.equal(find_clip(module).tokenize(["a cat"]), expected)
    assert find_clip(module, tokenizer=other).tokenizer is other

    module.processor = own = open_clip.SimpleTokenizer(context_length=20)
    module.processor.tokenizer = own
    assert find_clip(module).tokenizer is own


def test_a_tokenizer_with_ids_outside_the_vocabulary_is_not_used() -> None:
    module = Holder(clip=clip_with_vocabulary(30))
    module.tokenizer = of_a_decoder
    assert find_clip(module).tokenizer is None
    module.clip = clip_with_vocabulary(60)
    assert find_clip(module).tokenizer is of_a_decoder


def test_the_tokenizer_of_a_text_encoder_beside_a_clip_is_used() -> None:
    module = Rewritten(clip=clip_with_vocabulary(49408), head=nn.Linear(16, 16), words=nn.Embedding(60, 16))
    module.tokenizer = of_a_decoder
    assert find_clip(module).tokenizer is of_a_decoder


def test_strings_without_a_tokenizer_are_rejected_with_a_remedy(untrained: open_clip.CLIP) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer.*tokenizer=\.\.\."):
        explain(untrained, torch.randn(1, 3, 64, 64), ["a red circle"])


def test_each_distinct_prompt_is_embedded_once(untrained: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, batch_sizes = find_clip(untrained, tokenizer=WordTokenizer()), []
    encode = untrained.encode_text
    monkeypatch.setattr(untrained, "encode_text", lambda tokens: (batch_sizes.append(len(tokens)), encode(tokens))[1])

    embedded = clip.embed_texts(["a red circle", "a blue star", "a red circle"])

    assert batch_sizes == [2]
    assert torch.equal(embedded[0], embedded[2])
    assert_close(embedded.norm(dim=1), torch.ones(3))


def test_the_fingerprint_depends_on_the_architecture_only(untrained: open_clip.CLIP) -> None:
    fingerprint = find_clip(untrained).fingerprint
    with torch.no_grad():
        untrained.logit_scale += 1
    assert find_clip(untrained).fingerprint == fingerprint

    untrained.visual.proj = nn.Parameter(torch.randn(128, 32))
    assert find_clip(untrained).fingerprint != fingerprint


PROMPTS = ["a red circle", "star"]  # of two lengths


@pytest.mark.parametrize("name", huggingface.MODELS)
def test_texts_are_embedded_as_by_transformers_with_its_own_tokenizer(name: str) -> None:
    model, tokenizer = huggingface.MODELS[name](), huggingface.tokenizer()
    siglip = "siglip" in name
    padding = {"padding": "max_length", "max_length": huggingface.LENGTH} if siglip else {"padding": True}
    own = tokenizer(PROMPTS, **padding, return_tensors="pt")

    embedded = find_clip(model, tokenizer=tokenizer).embed_texts(PROMPTS)

    assert_close(embedded, F.normalize(model.get_text_features(**own).pooler_output, dim=-1))
    assert own["input_ids"].shape[1] == (huggingface.LENGTH if siglip else 5)


@pytest.mark.parametrize("name", ["clip", "chinese clip", "alt clip"])
def test_the_padding_of_bare_token_ids_has_no_influence(name: str) -> None:
    clip = find_clip(huggingface.MODELS[name](), tokenizer=huggingface.tokenizer())
    (alone,) = clip.embed_texts(["star"])

    padded = clip.embed_tokens(clip.tokenize(PROMPTS)["input_ids"])

    assert_close(padded[1], alone)


@pytest.mark.parametrize("name", ["siglip", "siglip 2"])
def test_a_siglip_attends_to_the_padding_of_bare_token_ids_as_in_training(name: str) -> None:
    model = huggingface.MODELS[name]()
    ids = torch.tensor([[2, 8, 3] + [1] * 9])

    assert_close(
        find_clip(model).embed_tokens(ids), F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1)
    )


def test_clip_reads_the_token_that_its_configuration_calls_padding() -> None:
    """The default pad_token_id of CLIPTextConfig is that of a quotation mark in CLIP's vocabulary."""
    clip = find_clip(huggingface.clip())

    with_mark, without = clip.embed_tokens(torch.tensor([[2, 1, 8, 3], [2, 0, 8, 3]]))

    assert not torch.allclose(with_mark, without)
    expected = clip.module.get_text_features(input_ids=torch.tensor([[2, 1, 8, 3]])).pooler_output
    assert_close(with_mark, F.normalize(expected, dim=-1)[0])


@pytest.mark.parametrize("name", ["clip", "chinese clip", "alt clip", "siglip"])
def test_a_prompt_that_is_too_long_is_truncated_before_its_end_token(name: str) -> None:
    clip = find_clip(huggingface.MODELS[name](), tokenizer=huggingface.tokenizer())

    ids = clip.tokenize(["star " * 30])["input_ids"]

    assert clip.embed_tokens(ids).isfinite().all()
    assert ids.tolist() == [[2, *[8] * (huggingface.LENGTH - 2), 3]]


def test_a_tokenizer_may_be_a_processor_or_a_function_that_returns_a_mapping() -> None:
    model, tokenizer = huggingface.clip(), huggingface.tokenizer()
    expected = find_clip(model, tokenizer=tokenizer).embed_texts(PROMPTS)
    processor = CLIPProcessor(CLIPImageProcessor(), tokenizer)

    def tokenize_to_lists(prompts: list[str]) -> dict[str, list[list[int]]]:
        return dict(tokenizer(prompts, padding=True))

    for other in (processor, tokenize_to_lists):
        assert torch.equal(find_clip(model, tokenizer=other).embed_texts(PROMPTS), expected)


def test_tensors_that_the_text_tower_does_not_accept_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = huggingface.clip(), huggingface.tokenizer()
    expected = find_clip(model, tokenizer=tokenizer).embed_texts(PROMPTS)
    version_5 = model.get_text_features

    def version_4(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return version_5(input_ids, attention_mask).pooler_output

    monkeypatch.setattr(model, "get_text_features", version_4)
    with_types = huggingface.tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"])

    assert "token_type_ids" in with_types(PROMPTS)
    assert torch.equal(find_clip(model, tokenizer=with_types).embed_texts(PROMPTS), expected)


def test_the_tokenizer_of_the_nearest_processor_is_used() -> None:
    model, tokenizer = huggingface.clip(), huggingface.tokenizer()
    module = Holder(inner=Holder(clip=model))
    module.tokenizer = WordTokenizer()
    assert find_clip(module).tokenizer is module.tokenizer

    module.inner.processor = CLIPProcessor(CLIPImageProcessor(), tokenizer)
    assert find_clip(module).tokenizer is tokenizer


def test_an_open_clip_model_accepts_a_transformers_tokenizer(untrained: open_clip.CLIP) -> None:
    tokenizer = huggingface.tokenizer()
    ids = torch.tensor(tokenizer(PROMPTS, padding="max_length", max_length=untrained.context_length)["input_ids"])

    embedded = find_clip(untrained, tokenizer=tokenizer).embed_texts(PROMPTS)

    assert_close(embedded, F.normalize(untrained.encode_text(ids), dim=-1))


def test_a_transformers_model_with_the_vocabulary_of_clip_gets_the_tokenizer_of_clip() -> None:
    config = huggingface.clip().config
    config.text_config.vocab_size, config.text_config.eos_token_id = 49408, 49407
    model = type(huggingface.clip())(config).eval()

    ids = find_clip(model).tokenize(["a cat"])

    assert torch.equal(ids, open_clip.tokenize(["a cat"], context_length=huggingface.LENGTH))


@pytest.mark.parametrize("name", huggingface.MODELS)
def test_the_precision_is_that_of_the_image_tower(name: str) -> None:
    model = huggingface.MODELS[name]()
    model.vision_model.to(torch.bfloat16)

    assert find_clip(model).dtype == torch.bfloat16


def test_the_vocabulary_is_that_of_the_model_or_of_an_embedding_of_clip() -> None:
    assert find_clip(huggingface.clip()).vocabulary_size == huggingface.clip().config.text_config.vocab_size

    class Other(nn.Module):
        def __init__(self, vocabulary: int) -> None:
            super().__init__()
            self.visual = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.words = nn.Embedding(vocabulary, 4)

        def encode_image(self, images: Tensor) -> Tensor:
            return self.visual(images)

        def encode_text(self, tokens: Tensor) -> Tensor:
            return self.words(tokens).mean(1)

    assert find_clip(Other(49408)).vocabulary_size == 49408
    assert find_clip(Other(1000)).vocabulary_size is None, "a smaller embedding may be of something else"
