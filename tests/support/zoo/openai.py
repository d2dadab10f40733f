"""Small models in the layout of the original ``clip`` package, with the same parts, names and order of dimensions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16  # of the embedding


class LayerNorm(nn.LayerNorm):
    """Computes in single precision, whatever the precision of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).type(x.dtype)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, attn_mask: Tensor | None = None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = LayerNorm(width)
        self.attn_mask = attn_mask

    def attention(self, x: Tensor) -> Tensor:
        mask = None if self.attn_mask is None else self.attn_mask.to(dtype=x.dtype, device=x.device)
        output: Tensor = self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]
        return output

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, attn_mask: Tensor | None = None) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, heads, attn_mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:  # [tokens, batch, width]
        output: Tensor = self.resblocks(x)
        return output


class VisionTransformer(nn.Module):
    """A ViT. As in some forks, ``input_resolution`` may also be height and width."""

    def __init__(
        self, input_resolution: int | tuple[int, int], patch_size: int, width: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = WIDTH
        height, width_ = (input_resolution,) * 2 if isinstance(input_resolution, int) else input_resolution
        patches = (height // patch_size) * (width_ // patch_size)
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_post(x[:, 0, :])
        return x @ self.proj


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inplanes != planes * self.expansion:
            self.downsample = nn.Sequential()
            self.downsample.add_module("-1", nn.AvgPool2d(stride))
            self.downsample.add_module("0", nn.Conv2d(inplanes, planes * self.expansion, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(planes * self.expansion))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        out += x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu3(out)
        return output


class AttentionPool2d(nn.Module):
    """Attention pooling with the mean of the cells as the only query."""

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(spacial_dim**2 + 1, embed_dim) / embed_dim**0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.c_proj = nn.Linear(embed_dim, WIDTH)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(start_dim=2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)
        x = x + self.positional_embedding[:, None, :].to(x.dtype)
        x, _ = F.multi_head_attention_forward(
            query=x[:1],
            key=x,
            value=x,
            embed_dim_to_check=x.shape[-1],
            num_heads=self.num_heads,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            use_separate_proj_weight=True,
            training=self.training,
            need_weights=False,
        )
        return x.squeeze(0)


class ModifiedResNet(nn.Module):
    def __init__(self, layers: tuple[int, int, int, int], heads: int, input_resolution: int, width: int) -> None:
        super().__init__()
        self.output_dim = WIDTH
        self.input_resolution = input_resolution
        self.conv1 = nn.Conv2d(3, width // 2, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width // 2, width // 2, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width // 2, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        self._inplanes = width
        self.layer1 = self._make_layer(width, layers[0])
        self.layer2 = self._make_layer(width * 2, layers[1], stride=2)
        self.layer3 = self._make_layer(width * 4, layers[2], stride=2)
        self.layer4 = self._make_layer(width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool2d(input_resolution // 32, width * 32, heads)

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        bottlenecks = [Bottleneck(self._inplanes, planes, stride)]
        self._inplanes = planes * Bottleneck.expansion
        bottlenecks += [Bottleneck(self._inplanes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*bottlenecks)

    def forward(self, x: Tensor) -> Tensor:
        x = x.type(self.conv1.weight.dtype)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.avgpool(x)))))
        output: Tensor = self.attnpool(x)
        return output


class CLIP(nn.Module):
    def __init__(self, visual: nn.Module, context_length: int = 8, vocab_size: int = 16, width: int = 32) -> None:
        super().__init__()
        self.context_length = context_length
        self.visual = visual
        mask = torch.full((context_length, context_length), float("-inf")).triu(1)
        self.transformer = Transformer(width, layers=1, heads=2, attn_mask=mask)
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, WIDTH))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.visual.conv1.weight.dtype  # type: ignore[union-attr, assignment]
        return dtype

    def encode_image(self, image: Tensor) -> Tensor:
        features: Tensor = self.visual(image.type(self.dtype))
        return features

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.token_embedding(text).type(self.dtype) + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype)
        # The end-of-text token has the highest id.
        return x[torch.arange(len(x)), text.argmax(dim=-1)] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images = F.normalize(self.encode_image(image), dim=1)
        texts = F.normalize(self.encode_text(text), dim=1)
        logits = self.logit_scale.exp() * images @ texts.t()
        return logits, logits.t()


def convert_weights(model: CLIP) -> CLIP:
    """Convert to half precision like ``clip.load`` on a GPU: all but norms, embeddings and positions."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.half()
        elif isinstance(module, nn.MultiheadAttention):
            module.in_proj_weight.data, module.in_proj_bias.data = (
                module.in_proj_weight.half(),
                module.in_proj_bias.half(),
            )
    model.text_projection.data = model.text_projection.half()
    if hasattr(model.visual, "proj"):
        model.visual.proj.data = model.visual.proj.half()
    return model


def vit(input_resolution: int | tuple[int, int] = 24, layers: int = 3) -> CLIP:
    return CLIP(VisionTransformer(input_resolution, patch_size=8, width=32, layers=layers, heads=2)).eval()


def resnet(input_resolution: int = 64) -> CLIP:
    return CLIP(ModifiedResNet((1, 1, 1, 1), heads=8, input_resolution=input_resolution, width=8)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "openai vit": vit,
    "openai vit, not square": lambda: vit((16, 32)),
    "openai resnet": resnet,
}
