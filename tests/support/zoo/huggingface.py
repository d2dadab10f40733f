"""Small CLIPs of transformers, and a tokenizer that needs no download."""

from collections.abc import Callable
from functools import partial

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    AutoConfig,
    BertConfig,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPConfig,
    CLIPModel,
    OwlViTConfig,
    OwlViTModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

WIDTH = 16  # of the embedding
PATCH = 8
WORDS = ("<unk>", "<pad>", "<bos>", "<eos>", "a", "red", "blue", "circle", "star")
LENGTH = 12  # of texts

TEXT = {
    "vocab_size": 32, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": LENGTH, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip
VISION = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": PATCH,
}  # fmt: skip


def clip(**vision: object) -> CLIPModel:
    return _randomize(CLIPModel(CLIPConfig(text_config=TEXT, vision_config={**VISION, **vision}, projection_dim=WIDTH)))


def chinese_clip(**vision: object) -> ChineseCLIPModel:
    config = ChineseCLIPConfig(text_config=TEXT, vision_config={**VISION, **vision}, projection_dim=WIDTH)
    return _randomize(ChineseCLIPModel(config))


def alt_clip(**vision: object) -> AltCLIPModel:
    text = {**TEXT, "project_dim": WIDTH, "max_position_embeddings": LENGTH + 2}  # two of them are for padding
    config = AltCLIPConfig(text_config=text, vision_config={**VISION, **vision}, projection_dim=WIDTH)
    return _randomize(AltCLIPModel(config))


def siglip(**vision: object) -> SiglipModel:
    return _randomize(SiglipModel(SiglipConfig(text_config=TEXT, vision_config={**VISION, **vision})))


def siglip2(**vision: object) -> Siglip2Model:
    positions = {**VISION, "num_patches": 16}
    del positions["image_size"]
    return _randomize(Siglip2Model(Siglip2Config(text_config=TEXT, vision_config={**positions, **vision})))


def owlvit(**vision: object) -> OwlViTModel:
    config = OwlViTConfig(text_config=TEXT, vision_config={**VISION, **vision}, projection_dim=WIDTH)
    return _randomize(OwlViTModel(config))


def dual_encoder(vision: str = "siglip_vision_model", **options: object) -> VisionTextDualEncoderModel:
    """A text encoder beside the image tower of another model; the projection changes the width."""
    text = BertConfig(**{name: value for name, value in TEXT.items() if name != "bos_token_id"})
    tower = AutoConfig.for_model(vision, **{**VISION, "hidden_size": 2 * WIDTH, **options})
    config = VisionTextDualEncoderConfig.from_vision_text_configs(tower, text, projection_dim=WIDTH)
    return _randomize(VisionTextDualEncoderModel(config))


def tokenizer(**options: object) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", WORDS.index("<bos>")), ("<eos>", WORDS.index("<eos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", **options
    )


def _randomize(model: nn.Module) -> nn.Module:
    """Perturb all parameters: biases start at 0 and positions close to 0, so errors in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


MODELS: dict[str, Callable[..., nn.Module]] = {
    "clip": clip,
    "chinese clip": chinese_clip,
    "alt clip": alt_clip,
    "siglip": siglip,
    "siglip 2": siglip2,
    "owlvit": owlvit,
    "dual encoder, siglip": dual_encoder,
    "dual encoder, clip": partial(dual_encoder, "clip_vision_model"),
}
