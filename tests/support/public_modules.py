"""LightningModules that hold their CLIP in the ways that public code does, and the argument that each needs.

The classes are those of the guide: a whole CLIP with captions (A) or with labels (A'), a CLIP that is not what is
trained (B), two encoders (C), methods on the module (C'), and no text encoder (D).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTModel,
)

from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip, model_input
from clipcam_lightning.shapes_world.scenes import draw_scenes

SCENES = draw_scenes(12, seed=0)
PIXELS = model_input(torch.from_numpy(SCENES.images), 64)
CAPTIONS = list(SCENES.captions)
IDS = WordTokenizer()(CAPTIONS)
NAMES = sorted(set(CAPTIONS))
LABELS = torch.tensor([NAMES.index(caption) for caption in CAPTIONS])
WIDTH, WORDS = 32, 64
SMALL_VIT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": WIDTH,
    "image_size": 64,
    "patch_size": 8,
}


def small_cnn(width: int = WIDTH) -> nn.Sequential:
    """A convolutional network of no known kind that returns embeddings."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        nn.GELU(),
        nn.Conv2d(16, width, 3, 2, 1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class MeanOfWords(nn.Module):
    """A text encoder: the mean of the embeddings of the words."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.words(tokens).mean(1)


def small_bert() -> BertModel:
    """A BERT of transformers, whose texts are padded."""
    return BertModel(
        BertConfig(
            vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=WIDTH
        )
    )


def small_clip_vision() -> CLIPVisionModel:
    """The image tower of a CLIP of transformers, alone."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=WIDTH,
        image_size=64,
        patch_size=8,
    )
    return CLIPVisionModel(config)


def small_vit() -> ViTModel:
    """A ViT of transformers."""
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=WIDTH,
        image_size=64,
        patch_size=8,
    )
    return ViTModel(config)


class Fitted(pl.LightningModule, ABC):
    """A module with the same weights each time. A subclass builds its parts and has a training step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.build()

    @abstractmethod
    def build(self) -> None:
        """Build the parts."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The sanity check and each validation hand the callback a batch."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, 2e-3)


class Contrastive(Fitted):
    """Trains two embeddings of a batch contrastively."""

    @abstractmethod
    def images_of(self, batch: Any) -> Tensor:
        """Embed the images of a batch."""

    @abstractmethod
    def texts_of(self, batch: Any) -> Tensor:
        """Embed the texts of a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, texts = F.normalize(self.images_of(batch), dim=-1), F.normalize(self.texts_of(batch), dim=-1)
        return F.cross_entropy(20 * images @ texts.T, torch.arange(len(images)))


class WholeClip(Contrastive):
    """A: a CLIP and a batch of images with token ids or captions."""

    def build(self) -> None:
        self.net = build_clip("vit")
        self.tokenizer = WordTokenizer()

    def images_of(self, batch: Any) -> Tensor:
        return self.net.encode_image(find_pixels(batch))

    def texts_of(self, batch: Any) -> Tensor:
        return self.net.encode_text(find_ids(batch))


class WholeResNet(WholeClip):
    """A: the same with a ResNet."""

    def build(self) -> None:
        self.net = build_clip("resnet")
        self.tokenizer = WordTokenizer()

    def images_of(self, batch: Any) -> Tensor:
        return self.net.encode_image(F.interpolate(find_pixels(batch), size=160))


class LayoutOfMobileCLIP(nn.Module):
    """The parts of Apple's own package: two encoders and methods with ``norm``."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = small_cnn(), MeanOfWords()

    def encode_image(self, image: Tensor, norm: bool = False) -> Tensor:
        return F.normalize(self.image_encoder(image), dim=-1) if norm else self.image_encoder(image)

    def encode_text(self, text: Tensor, norm: bool = False) -> Tensor:
        return F.normalize(self.text_encoder(text), dim=-1) if norm else self.text_encoder(text)


class LayoutOfDinoTxt(nn.Module):
    """The parts of dino.txt: the class token beside the mean of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_model, self.text_model = small_vit(), MeanOfWords(2 * WIDTH)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        tokens = self.visual_model(image).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=-1)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        return self.text_model(tokens)


class LayoutOfPerceptionEncoder(nn.Module):
    """The parts of Meta's ``pe.CLIP``: a ViT of its own as ``visual``, pooled by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.words = PooledViT(), MeanOfWords()

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        return self.visual(image)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        return self.words(text)


class PooledViT(nn.Module):
    """A ViT with a class token and an attention pool."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.ln_pre, self.ln_post = nn.Conv2d(3, WIDTH, 8, 8), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.class_embedding = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(65, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.probe = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.attn_pool = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(images), -1, -1), patches], dim=1)
        tokens = self.ln_post(self.transformer(self.ln_pre(tokens + self.positional_embedding)))
        return self.attn_pool(self.probe.expand(len(images), -1, -1), tokens, tokens)[0][:, 0]


class OfLayout(WholeClip):
    """A: a CLIP of another package."""

    layout: type[nn.Module]

    def build(self) -> None:
        self.net = self.layout()
        self.tokenizer = WordTokenizer()


class MobileCLIP(OfLayout):
    layout = LayoutOfMobileCLIP


class DinoTxt(OfLayout):
    layout = LayoutOfDinoTxt


class PerceptionEncoder(OfLayout):
    layout = LayoutOfPerceptionEncoder


class WithTeacher(WholeClip):
    """A: beside the student a copy that follows it."""

    def build(self) -> None:
        super().build()
        self.ema_teacher = build_clip("vit").requires_grad_(False)


class Classes(WholeClip):
    """A': a CLIP and integer labels; the module knows the names."""

    def build(self) -> None:
        super().build()
        self.class_names = NAMES

    def texts_of(self, batch: Any) -> Tensor:
        return self.net.encode_text(self.tokenizer([NAMES[i] for i in batch[1]]))


class PromptsByNumber(Classes):
    """A': the same with prompts in a mapping."""

    def build(self) -> None:
        super().build()
        del self.class_names
        self.prompts = {i: f"a photo of {name}" for i, name in enumerate(NAMES)}


class NamelessClasses(Classes):
    """A': the same without the names."""

    def build(self) -> None:
        super().build()
        del self.class_names


class AdapterOnModule(WholeClip):
    """B: a frozen CLIP under a trained adapter, with methods on the module."""

    def build(self) -> None:
        super().build()
        self.net.requires_grad_(False)
        self.adapter = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64))

    def encode_image(self, images: Tensor) -> Tensor:
        features = self.net.encode_image(images)
        return features + self.adapter(features)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.net.encode_text(tokens)

    def images_of(self, batch: Any) -> Tensor:
        return self.encode_image(find_pixels(batch))


class AdapterWithoutEffectYet(AdapterOnModule):
    """B: the same, with an adapter that begins as the identity."""

    def build(self) -> None:
        super().build()
        nn.init.zeros_(self.adapter[2].weight)
        nn.init.zeros_(self.adapter[2].bias)


class Projected(nn.Module):
    """A CLIP with another width of its embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_clip("vit").requires_grad_(False)
        self.image_head, self.text_head = nn.Linear(64, 16), nn.Linear(64, 16)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.image_head(self.inner.encode_image(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text_head(self.inner.encode_text(tokens))


class HeadsInSubmodule(WholeClip):
    """B: a module between the LightningModule and the CLIP projects both embeddings."""

    def build(self) -> None:
        self.net = Projected()
        self.tokenizer = WordTokenizer()


class Comparison(WholeClip):
    """B: a stock CLIP kept for comparison, under a name that does not tell."""

    def build(self) -> None:
        super().build()
        self.stock = build_clip("vit").requires_grad_(False)


class TrainedHeadElsewhere(WholeClip):
    """B: a frozen CLIP under a head that only the training step knows."""

    def build(self) -> None:
        super().build()
        self.net.requires_grad_(False)
        self.head = nn.Linear(64, 64)

    def images_of(self, batch: Any) -> Tensor:
        return self.head(self.net.encode_image(find_pixels(batch)))


class ClipForTextOnly(WholeClip):
    """B: a frozen CLIP embeds the texts, and another network the images."""

    def build(self) -> None:
        super().build()
        self.net.requires_grad_(False)
        self.student = small_cnn(64)

    def images_of(self, batch: Any) -> Tensor:
        return self.student(find_pixels(batch))


class TwoEncoders(Contrastive):
    """C: two encoders with projections, under conventional names."""

    def build(self) -> None:
        self.image_encoder, self.text_encoder = small_cnn(), MeanOfWords()
        self.image_projection, self.text_projection = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)
        self.tokenizer = WordTokenizer()

    def images_of(self, batch: Any) -> Tensor:
        return self.image_projection(self.image_encoder(find_pixels(batch)))

    def texts_of(self, batch: Any) -> Tensor:
        return self.text_projection(self.text_encoder(find_ids(batch)))


class TwoEncodersOfTimm(TwoEncoders):
    """C: the same with a ResNet of timm."""

    def build(self) -> None:
        super().build()
        self.image_encoder = timm.create_model("resnet10t", num_classes=0)
        self.image_projection = nn.Linear(512, 16)


class TwoEncodersWithTimmViT(TwoEncoders):
    """C: the same with a ViT of timm."""

    def build(self) -> None:
        super().build()
        self.image_encoder = timm.create_model(
            "vit_tiny_patch16_224", img_size=64, patch_size=8, depth=2, num_classes=0
        )
        self.image_projection = nn.Linear(192, 16)


class TwoEncodersOfTorchvision(TwoEncoders):
    """C: the same with a network of torchvision whose classifier is cut off."""

    def build(self) -> None:
        super().build()
        self.image_encoder = torchvision.models.resnet18()
        self.image_encoder.fc = nn.Identity()
        self.image_projection = nn.Linear(512, 16)


class TwoEncodersOfTransformers(TwoEncoders):
    """C: models of transformers, which return objects; the text encoder needs its attention mask."""

    def build(self) -> None:
        self.vision_model, self.text_model = small_clip_vision(), small_bert()
        self.visual_projection, self.text_projection = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)

    def images_of(self, batch: Any) -> Tensor:
        return self.visual_projection(self.vision_model(batch["pixel_values"]).pooler_output)

    def texts_of(self, batch: Any) -> Tensor:
        tokens = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        return self.text_projection(self.text_model(**tokens).pooler_output)


class TwoEncodersOfUnknownKind(TwoEncodersOfTransformers):
    """C: the same with a ViT whose layers are not known."""

    def build(self) -> None:
        super().build()
        self.vision_model = small_vit()


class VisionWithProjection(TwoEncodersOfTransformers):
    """C: an image encoder of transformers that projects by itself."""

    def build(self) -> None:
        super().build()
        self.vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL_VIT, projection_dim=16))

    def images_of(self, batch: Any) -> Tensor:
        return self.vision(batch["pixel_values"]).image_embeds


class EncodersUnderOtherNames(TwoEncoders):
    """C: two encoders under names that nobody can guess."""

    def build(self) -> None:
        self.eye, self.ear = small_cnn(), MeanOfWords()
        self.tokenizer = WordTokenizer()

    def images_of(self, batch: Any) -> Tensor:
        return self.eye(find_pixels(batch))

    def texts_of(self, batch: Any) -> Tensor:
        return self.ear(find_ids(batch))

    def embed_images(self, images: Tensor) -> Tensor:
        return self.eye(images)

    def embed_texts(self, tokens: Tensor) -> Tensor:
        return self.ear(tokens)


class MethodsOnModule(EncodersUnderOtherNames):
    """C': methods on the module, over a known tower under another name."""

    def build(self) -> None:
        clip = build_clip("vit")
        self.backbone, self.words = clip.visual, MeanOfWords(64)
        self.tokenizer = WordTokenizer()

    def encode_image(self, images: Tensor) -> Tensor:
        return self.backbone(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.words(tokens)

    def images_of(self, batch: Any) -> Tensor:
        return self.encode_image(find_pixels(batch))

    def texts_of(self, batch: Any) -> Tensor:
        return self.encode_text(find_ids(batch))


class SharedTower(MethodsOnModule):
    """C': the same, with a second name for the tower."""

    def build(self) -> None:
        super().build()
        self.alias = self.backbone


class MethodsThatTokenize(MethodsOnModule):
    """C': the text method takes strings."""

    def build(self) -> None:
        super().build()
        del self.tokenizer

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        return self.words(WordTokenizer()(list(captions)))

    def texts_of(self, batch: Any) -> Tensor:
        return self.encode_text(batch[1])


class MethodsOfTransformers(TwoEncodersOfTransformers):
    """C': methods with the names of transformers, one of which takes several tensors."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.images_of({"pixel_values": pixel_values})

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.texts_of(
            {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        )


class LinearHead(Fitted):
    """D: an image encoder with a linear head over classes, and no text."""

    def build(self) -> None:
        self.encoder, self.head = small_cnn(), nn.Linear(WIDTH, len(NAMES), bias=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.head(self.encoder(images)), labels)


class ImageClassifier(LinearHead):
    """D: a classifier of transformers, which takes the mean of the patches."""

    def build(self) -> None:
        self.net = CLIPForImageClassification(CLIPConfig(vision_config=SMALL_VIT, num_labels=len(NAMES)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images).logits, labels)


class ClassEmbeddings(LinearHead):
    """D: learned embeddings of the classes, which the module names."""

    def build(self) -> None:
        super().build()
        self.classes = NAMES
        self.of_class = nn.Parameter(torch.randn(len(NAMES), WIDTH))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def encode_text(self, names: Sequence[str]) -> Tensor:
        return self.of_class[[self.classes.index(name) for name in names]]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.encoder(images) @ self.of_class.T, labels)


class CachedTexts(ClassEmbeddings):
    """D: features of the texts that were computed once."""

    def build(self) -> None:
        super().build()
        del self.of_class
        self.register_buffer("of_class", torch.randn(len(NAMES), WIDTH))


class ManualOptimization(WholeClip):
    """A: a module that steps the optimizer behind Lightning's back."""

    def build(self) -> None:
        super().build()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers().optimizer
        optimizer.zero_grad()
        super().training_step(batch, batch_idx).backward()
        optimizer.step()


def find_pixels(batch: Any) -> Tensor:
    """Take the images of a batch of any form below, as the model's input."""
    images = batch["pixel_values"] if isinstance(batch, Mapping) else batch[0]
    if isinstance(images, list):
        images = torch.stack([to_input(image) for image in images if image is not None])
    if images.dtype == torch.uint8:
        images = model_input(images.permute(0, 2, 3, 1), 64)
    if images.ndim == 5:
        images = images[:, 0]
    return F.interpolate(images, size=64, mode="bilinear") if images.shape[-1] != 64 else images


def to_input(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    return model_input(torch.from_numpy(np.array(image))[None], 64)[0]


def find_ids(batch: Any) -> Tensor:
    """Take the token ids of a batch of any form below."""
    texts = batch.get("input_ids", batch.get("caption")) if isinstance(batch, Mapping) else batch[1]
    return texts if isinstance(texts, Tensor) else WordTokenizer()(list(texts))


def captioned(i: int) -> Any:
    return PIXELS[i], CAPTIONS[i]


def tokenized(i: int) -> Any:
    return PIXELS[i], IDS[i]


def labelled(i: int) -> Any:
    return PIXELS[i], LABELS[i]


def of_transformers(i: int) -> Any:
    mask = (IDS[i] != 0).long()
    return {"pixel_values": PIXELS[i], "input_ids": IDS[i], "attention_mask": mask, "token_type_ids": 0 * mask}


def with_strings(i: int) -> Any:
    return {"pixel_values": PIXELS[i], "input_ids": IDS[i], "caption": CAPTIONS[i]}


def of_bytes(i: int) -> Any:
    return torch.from_numpy(SCENES.images[i]).permute(2, 0, 1), CAPTIONS[i]


def of_video(i: int) -> Any:
    return PIXELS[i].expand(5, -1, -1, -1), CAPTIONS[i]


def of_larger_images(i: int) -> Any:
    return F.interpolate(PIXELS[i : i + 1], size=(90, 130), mode="bilinear")[0], CAPTIONS[i]


def of_pictures(i: int) -> Any:
    return Image.fromarray(SCENES.images[i]), CAPTIONS[i]


def as_lists(samples: list[Any]) -> Any:
    """Collate without making tensors."""
    return [list(part) for part in zip(*samples, strict=True)]


@dataclass(frozen=True)
class Case:
    """A module, its data, and the arguments of the callback.

    Attributes:
        module: builds the module.
        item: makes a sample of a number.
        arguments: of the callback, beyond none.
        collate: of samples; by default torch's.
        validation_item: makes the samples of the validation; by default those of the training.
        warning: a pattern in the warning that says why nothing can change; empty if maps follow the training.
        note: a pattern in a warning that goes with true maps; empty for none.
        tower: name of the class of the tower.
        error: largest mean difference between an image in the event file and the scene, of 255. JPEG leaves 5 to 6;
            another normalisation 8 (ImageNet's) or 23 (none), another scene at least 23.
    """

    module: Callable[[], Fitted]
    item: Callable[[int], Any] = captioned
    arguments: Mapping[str, Any] = field(default_factory=dict)
    collate: Callable[[list[Any]], Any] | None = None
    validation_item: Callable[[int], Any] | None = None
    warning: str = ""
    note: str = ""
    tower: str = "OpenClipViT"
    error: float = 7.0


BY_FUNCTIONS = {
    "encode_image": lambda module, images: module.eye(images),
    "encode_text": lambda module, tokens: module.ear(tokens),
}
OF_HEAD = {
    "encode_image": lambda module, images: module.encoder(images),
    "encode_text": lambda module, names: module.head.weight[[NAMES.index(name) for name in names]],
    "prompts": NAMES,
}
CASES = {
    "A, captions": Case(WholeClip),
    "A, token ids": Case(WholeClip, tokenized),
    "A, strings beside ids": Case(WholeClip, with_strings),
    "A, a ResNet": Case(WholeResNet, tower="OpenClipResNet", note="for which the positions"),
    "A, the layout of MobileCLIP": Case(MobileCLIP, tower="TracedTower"),
    "A, the layout of dino.txt": Case(DinoTxt, tower="TracedTower"),
    "A, the layout of the Perception Encoder": Case(PerceptionEncoder, tower="TracedTower"),
    "A, with a teacher": Case(WithTeacher),
    "A, manual optimization": Case(ManualOptimization),
    "A, uint8 images": Case(WholeClip, of_bytes, note="not preprocessed"),
    "A, videos": Case(WholeClip, of_video),
    "A, larger images": Case(WholeClip, of_larger_images, note="resized", error=15.0),
    "A, PIL images": Case(WholeClip, of_pictures, collate=as_lists, note="not preprocessed"),
    "A, samples": Case(WholeClip, captioned, collate=as_lists),
    "A, labels in validation": Case(WholeClip, captioned, validation_item=labelled),
    "A', class names on the module": Case(Classes, labelled),
    "A', prompts by number": Case(PromptsByNumber, labelled),
    "A', prompts of the callback": Case(NamelessClasses, labelled, {"prompts": NAMES}),
    "B, an adapter": Case(AdapterOnModule),
    "B, an adapter without effect yet": Case(AdapterWithoutEffectYet),
    "B, heads in a submodule": Case(HeadsInSubmodule),
    "B, the outer module by name": Case(HeadsInSubmodule, arguments={"clip": "net"}),
    "B, a stock CLIP": Case(Comparison),
    "B, a head elsewhere": Case(TrainedHeadElsewhere, warning="no parameter of the CLIP 'net' is trained"),
    "B, a CLIP for text only": Case(ClipForTextOnly, warning="no parameter of the CLIP 'net' is trained"),
    "B, a head elsewhere, by function": Case(
        TrainedHeadElsewhere,
        arguments={
            "encode_image": lambda module, images: module.head(module.net.encode_image(images)),
            "encode_text": lambda module, tokens: module.net.encode_text(tokens),
        },
    ),
    "B, a CLIP for text only, by function": Case(
        ClipForTextOnly,
        arguments={
            "encode_image": lambda module, images: module.student(images),
            "encode_text": lambda module, tokens: module.net.encode_text(tokens),
        },
        tower="TracedTower",
    ),
    "C, conventional names": Case(TwoEncoders, tower="TracedTower"),
    "C, a ResNet of timm": Case(TwoEncodersOfTimm, tower="TimmStages"),
    "C, a ViT of timm": Case(TwoEncodersWithTimmViT, tower="TimmViT"),
    "C, a network of torchvision": Case(TwoEncodersOfTorchvision, tower="TracedTower"),
    "C, models of transformers": Case(TwoEncodersOfTransformers, of_transformers, tower="HuggingFaceViT"),
    "C, an unknown ViT": Case(TwoEncodersOfUnknownKind, of_transformers, tower="TracedTower"),
    "C, a vision model with projection": Case(
        VisionWithProjection,
        of_transformers,
        {
            "encode_image": lambda module, images: module.vision(images),
            "encode_text": lambda module, tokens: module.text_projection(module.text_model(**tokens).pooler_output),
        },
        tower="HuggingFaceViT",
    ),
    "C, functions": Case(EncodersUnderOtherNames, arguments=BY_FUNCTIONS, tower="TracedTower"),
    "C, names of methods": Case(
        EncodersUnderOtherNames,
        arguments={"encode_image": "embed_images", "encode_text": "embed_texts"},
        tower="TracedTower",
    ),
    "C', methods on the module": Case(MethodsOnModule),
    "C', a shared tower": Case(SharedTower),
    "C', strings": Case(MethodsThatTokenize),
    "C', methods of transformers": Case(MethodsOfTransformers, of_transformers, tower="HuggingFaceViT"),
    "D, a linear head": Case(LinearHead, labelled, OF_HEAD, tower="TracedTower"),
    "D, a classifier of transformers": Case(
        ImageClassifier,
        labelled,
        {
            "encode_image": lambda module, images: module.net.vision_model(images).last_hidden_state[:, 1:].mean(1),
            "encode_text": lambda module, names: module.net.classifier.weight[[NAMES.index(name) for name in names]],
            "prompts": NAMES,
        },
        tower="TracedTower",
    ),
    "D, class embeddings": Case(ClassEmbeddings, labelled, tower="TracedTower"),
    "D, cached texts": Case(CachedTexts, labelled, tower="TracedTower"),
}
