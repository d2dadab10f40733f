"""Towers of timm, compared with the models themselves."""

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.attention import Attention, intercepted_attention
from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.timm import TimmStages, TimmViT
from clipcam_lightning.errors import ClipCamWarning, ConfigError, TowerError
from tests.support.tolerances import assert_equal_up_to_rounding
from tests.support.zoo.timm import MODELS, STAGES, VITS, WIDTH, clip, eva02, pe_core, plain, siglip, vit

ONE_SIZE = ["relative positions", "swin"]
RESIDUAL = ["plain", "relative positions", "eva", "mobileclip-b"]
CORNERS = [(0, 1), (1, 0)]  # a transposed or mirrored grid moves at least one of them
each_model = pytest.mark.parametrize("name", MODELS)
each_vit = pytest.mark.parametrize("name", VITS)


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *find_tower(model).input_size)


def encode_with_hook(model: nn.Module, images: Tensor, module: nn.Module, hook: Callable[..., Any]) -> Tensor:
    """Embed images with a forward hook on ``module``."""
    handle = module.register_forward_hook(hook)
    try:
        return model.encode_image(images).detach()
    finally:
        handle.remove()


def record_input_and_output(model: nn.Module, images: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    recorded: list[Tensor] = []
    encode_with_hook(model, images, module, lambda _module, inputs, output: recorded.extend((inputs[0], output)))
    return recorded[0].detach(), recorded[1].detach()


def record_attention(model: nn.Module, images: Tensor, block: int) -> Attention:
    recorded: list[Attention] = []

    def record(_i: int, attention: Attention) -> Tensor:
        recorded.append(attention.detach())
        return attention.output()

    tower = find_tower(model)
    with tower.native(), intercepted_attention([tower.attentions[block]], record):
        model.encode_image(images)
    return recorded[0]


def record_state(model: nn.Module) -> list[tuple[int, str, Any]]:
    """Copy every attribute, parameter, buffer and submodule of every module, tensors with their values."""
    return [
        (id(module), f"{kind}{name}", (id(value), value.detach().clone().tolist()) if torch.is_tensor(value) else value)
        for module in model.visual.modules()
        for kind in ("", "_parameters", "_buffers", "_modules")
        for name, value in (vars(module)[kind] if kind else vars(module)).items()
        if kind or not isinstance(value, dict)
    ]  # fmt: skip


@pytest.mark.parametrize(("build", "prefix"), [(siglip, 0), (plain, 1), (pe_core, 1)])
def test_patch_tokens_land_row_by_row(build: Callable[[], nn.Module], prefix: int) -> None:
    features = torch.randn(3, prefix + 4 * 6, 32)

    grid = find_tower(build()).to_grid(features, (64, 96))

    for row, column in product(range(4), range(6)):
        assert torch.equal(grid[:, :, row, column], features[:, prefix + 6 * row + column])


@torch.no_grad()
def test_pool_tokens_leaves_out_the_prefix_if_the_pool_ignores_it() -> None:
    tower, tokens = find_tower(siglip(reg_tokens=1)), []
    assert isinstance(tower, TimmViT)
    handle = tower.blocks[-1].register_forward_hook(lambda _block, _inputs, output: tokens.append(output))
    embedding = tower.encode(torch.randn(2, 3, *tower.input_size))
    handle.remove()

    assert_equal_up_to_rounding(tower.pool_tokens(tokens[0]), embedding)


def test_channels_that_come_last_are_moved_to_the_front() -> None:
    features = torch.randn(2, 4, 6, 32)

    grid = find_tower(MODELS["swin"]()).to_grid(features, (64, 96))

    for row, column in product(range(4), range(6)):
        assert torch.equal(grid[:, :, row, column], features[:, row, column])


@each_model
def test_maps_of_the_default_layer_equal_those_of_the_complete_graph(name: str) -> None:
    model = MODELS[name]()
    images, texts, outputs = images_for(model), torch.randn(2, WIDTH), []
    layer = model.get_submodule(find_tower(model).default_layer)
    handle = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    cosines = F.cosine_similarity(model.encode_image(images), texts)
    handle.remove()
    (gradient,) = torch.autograd.grad(cosines.sum(), outputs)
    cells = (gradient * outputs[0]).sum(1 if name in STAGES and name != "swin" else -1).flatten(1)

    explanation = explain(model, images, texts[:, None], method="hirescam")

    expected = cells[:, -explanation.maps[0].numel() :].relu()  # the prefix comes first
    assert_equal_up_to_rounding(explanation.maps.flatten(1), expected)
    assert_close(explanation.similarity[:, 0], cosines)
    assert expected.amax(1).min() > 1e-4


# In the other models a norm, or pooling before it, gives an empty patch the same length as any other.
@pytest.mark.parametrize("name", ["siglip", "average", "relative positions", "eva", "eva02", "mobileclip-b"])
@pytest.mark.parametrize("corner", CORNERS)
def test_the_map_is_largest_at_the_only_patch_that_matters(name: str, corner: tuple[int, int]) -> None:
    """The image is grey except for one corner, and the prompt is what this corner adds to the embedding."""
    model, (row, column) = VITS[name](depth=1), corner
    grey = torch.zeros(32, 3, 64, 96)
    images = grey.clone()
    images[:, :, row * 48 : row * 48 + 16, column * 80 : column * 80 + 16] = 4 * torch.randn(32, 3, 16, 16)
    with torch.no_grad():
        texts = model.encode_image(images, normalize=True) - model.encode_image(grey, normalize=True)

    map_ = explain(model, images, texts[:, None], method="hirescam").maps[:, 0].mean(0)

    assert divmod(int(map_.argmax()), 6) == (row * 3, column * 5)


@each_vit
def test_attention_weights_times_values_equal_the_output_of_the_heads(name: str) -> None:
    model = VITS[name]()
    attention = record_attention(model, images_for(model), 0)

    assert_equal_up_to_rounding(attention.weights() @ attention.value, attention.output())


@pytest.mark.parametrize("name", ["projected by an MLP", *(name for name in VITS if name not in RESIDUAL)])
def test_a_class_token_that_is_not_a_sum_of_affine_parts_is_not_decomposed(name: str) -> None:
    model = VITS[name]() if name in VITS else vit("vit_large_patch14_clip_224", "token", "mlp", patch_size=16)
    with pytest.raises(ConfigError, match="a class token that is a sum over the blocks"):
        explain(model, images_for(model), torch.randn(1, WIDTH), method="decomposition")


def test_a_final_norm_after_the_pooling_is_found() -> None:
    """timm puts it there in a trunk built for mean pooling, also if open_clip then selects the class token."""
    model = vit("eva_giant_patch14_224", "token", "linear", patch_size=16)

    assert find_tower(model).final_norm is model.visual.trunk.fc_norm


def test_the_default_layer_of_post_norm_blocks_is_where_patches_still_count() -> None:
    model = MODELS["eva02 post-norm"]()
    images, texts = images_for(model), torch.randn(1, WIDTH)

    with pytest.warns(ClipCamWarning, match="no patch of layer visual.trunk.blocks.1 reaches the embedding"):
        last = explain(model, images, texts, method="gradcam", layers=-1)
    chosen = explain(model, images, texts, method="gradcam")

    assert not last.maps.any()
    assert chosen.layers == explain(model, images, texts).layers == ("visual.trunk.blocks.0",)
    assert chosen.maps.any()


@pytest.mark.parametrize(("name", "layer"), [("siglip", "norm"), ("swin", "norm"), ("vitamin", "blocks.1")])
def test_the_default_layer_comes_after_the_norm_before_the_pooling(name: str, layer: str) -> None:
    """Before the norm, the gradient is orthogonal to the tokens, and HiResCAM, their product, is 0."""
    model = MODELS[name]()

    def parallel_share(capture: Capture) -> Tensor:
        evidence = capture.gradients * capture.activations[:, None]
        return evidence.sum(dim=2).abs() / evidence.abs().sum(dim=2)

    explanation = explain(model, images_for(model), torch.randn(1, WIDTH), method=parallel_share)

    assert explanation.layers == (f"visual.trunk.{layer}",)
    assert explanation.maps.min() > 1e-5


@pytest.mark.parametrize("name", STAGES)
def test_stages_offer_no_attention_even_if_they_contain_some(name: str) -> None:
    model = STAGES[name]()
    with pytest.raises(ConfigError, match=r"gae does not fit TimmStages.*Fitting: gradcam, "):
        explain(model, images_for(model), torch.randn(1, WIDTH), method="gae")


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ONE_SIZE])
def test_another_size_is_embedded_as_by_a_model_set_to_that_size(name: str) -> None:
    model, images = MODELS[name](), torch.randn(2, 3, 128, 96)
    resized = deepcopy(model)
    if name in VITS:
        resized.visual.trunk.set_input_size(img_size=(128, 96))

    with torch.no_grad():
        assert_equal_up_to_rounding(find_tower(model).encode(images), resized.encode_image(images))


@pytest.mark.parametrize(("name", "size"), [("siglip", (80, 128)), ("vitamin", (80, 128)), ("convnext", (96, 128))])
def test_a_scaled_size_is_rounded_to_whole_cells(name: str, size: tuple[int, int]) -> None:
    assert find_tower(MODELS[name]()).scaled_size((64, 96), 1.3) == size  # 83.2 x 124.8 pixels, cells of 16 or 32


@each_model
def test_scales_do_not_change_the_model(name: str) -> None:
    model = MODELS[name]()
    before = record_state(model)
    if name in ONE_SIZE:
        with pytest.raises(ConfigError, match=r"takes images of 64x96 only: resize them and leave scales at \(1\.0,\)"):
            explain(model, images_for(model), torch.randn(1, WIDTH), scales=(1.0, 2.0))
    else:
        maps = explain(model, images_for(model), torch.randn(1, WIDTH), scales=(1.0, 2.0)).maps
        assert maps.shape[-2:] == ((8, 12) if name in VITS else (4, 6))

    assert record_state(model) == before


def test_attributes_changed_for_a_pass_are_restored_after_an_exception() -> None:
    model = eva02()
    model.visual.trunk.blocks[0].attn.fused_attn = False
    before = record_state(model)
    during_pass: list[bool] = []

    def fail(_capture: object) -> Tensor:
        during_pass.append(model.visual.trunk.blocks[0].attn.fused_attn)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        explain(model, images_for(model), torch.randn(1, WIDTH), method=fail, scales=(2.0,))
    assert during_pass == [True]
    assert record_state(model) == before


@each_vit
def test_the_plain_attention_of_timm_gives_the_same_maps_as_the_fused_one(name: str) -> None:
    model = VITS[name]()
    images, texts = images_for(model), torch.randn(2, WIDTH)
    fused = explain(model, images, texts, method="gae")

    for module in model.visual.trunk.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False

    assert_close(explain(model, images, texts, method="gae").maps, fused.maps)


class CustomViT(VisionTransformer):
    """A user's subclass, which may pool in its own way."""


@pytest.mark.parametrize("kind", ["attention", "gate", "pooling", "class"])
def test_a_vit_of_an_unknown_kind_offers_only_its_grid(kind: str) -> None:
    model = {
        "attention": lambda: plain(attn_layer="diff"),
        "gate": plain,
        "pooling": lambda: vit("vit_medium_patch16_gap_256", "max"),
        "class": plain,
    }[kind]()
    if kind == "gate":
        model.visual.trunk.blocks[0].attn.gate = nn.Linear(32, 32)
    if kind == "class":
        model.visual.trunk.__class__ = CustomViT
    images, texts = images_for(model), torch.randn(1, WIDTH)

    assert isinstance(find_tower(model), TimmViT)
    assert explain(model, images, texts, method="gradcam").maps.shape == (2, 1, 4, 6)
    with pytest.raises(ConfigError, match="gae does not fit TimmViT"):
        explain(model, images, texts, method="gae")


@pytest.mark.parametrize("name", ["siglip", "convnext"])
@pytest.mark.parametrize("wrap", ["compiled", "compiled trunk", "lora"])
def test_a_wrapped_tower_gives_the_same_maps(name: str, wrap: str) -> None:
    model = MODELS[name]()
    images, texts = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, texts, scales=(1.0, 2.0)).maps
    if wrap == "lora":
        lora = LoraConfig(target_modules=["fc1"], r=2)  # has no effect yet
        model.visual.trunk = get_peft_model(model.visual.trunk, lora)
    elif wrap == "compiled":
        model.visual = torch.compile(model.visual, backend="eager")
    else:
        model.visual.trunk = torch.compile(model.visual.trunk, backend="eager")

    explanation = explain(model, images, texts, scales=(1.0, 2.0))

    assert_close(explanation.maps, expected)
    assert dict(model.named_modules()).keys() >= set(explanation.layers)


@each_model
def test_the_input_of_each_block_is_the_output_of_the_one_before(name: str) -> None:
    model = MODELS[name]()
    images, blocks = images_for(model), find_tower(model).blocks

    calls = [record_input_and_output(model, images, block) for block in blocks]

    assert calls or name == "resnet"  # which has pooling between the stages
    assert all(torch.equal(output, following) for (_, output), (following, _) in pairwise(calls))


@each_model
def test_recomputed_blocks_give_the_same_map(name: str) -> None:
    model = MODELS[name]()
    images, texts = images_for(model), torch.randn(2, WIDTH)
    expected = explain(model, images, texts, layers=0, method="hirescam")

    recomputed = explain(model, images, texts, layers=0, method="hirescam", checkpointing=True)

    assert_close(recomputed.maps, expected.maps)


@pytest.mark.parametrize(
    ("name", "layer"), [("convnext", "stages.3.blocks.0.norm"), ("swin", "layers.0.blocks.0.attn"), ("fastvit", "head")]
)
def test_a_layer_without_a_grid_is_rejected_with_the_stages(name: str, layer: str) -> None:
    model = MODELS[name]()
    with pytest.raises(TowerError, match=r"expected \[batch, .*choose one of visual\.trunk\.\w+\.0, "):
        explain(model, images_for(model), torch.randn(1, WIDTH), layers=f"visual.trunk.{layer}")


def test_a_network_without_a_grid_fits_no_tower() -> None:
    model = clip("mixer_s32_224", img_size=(64, 96))

    assert not TimmViT.fits(model)
    assert not TimmStages.fits(model)


def test_a_layer_whose_output_is_not_of_each_image_is_refused_with_those_that_are() -> None:
    model = VITS["relative positions"]()
    layer = "visual.trunk.blocks.0.attn.rel_pos.bias_act"  # of each head, over tokens and tokens

    for method in ("eigencam", "ablationcam"):
        with pytest.raises(
            TowerError, match=r"patches of 1 images from the layer, got \(2, 24, 24\); choose one of visual"
        ):
            explain(model, images_for(model, 1), torch.randn(1, WIDTH), method=method, layers=layer)


@pytest.mark.parametrize("name", ["siglip", "vitamin", "convnext"])
def test_a_tower_counts_the_channels_that_it_takes(name: str) -> None:
    assert find_tower(MODELS[name]()).input_channels == 3
    with pytest.raises(TowerError, match=r"CustomTextCLIP takes images of 4 channels \(expected 3, RGB\)"):
        find_tower(MODELS[name](in_chans=4))


def test_a_tower_of_ones_own_may_convert_rgb_images() -> None:
    class RgbTower(TimmViT):
        input_channels = 3

    model = siglip(in_chans=4)
    encode = model.encode_image
    model.encode_image = lambda images: encode(torch.cat([images, images[:, :1]], dim=1))

    explanation = explain(model, torch.randn(1, 3, 64, 96), torch.randn(1, WIDTH), towers=[RgbTower])

    assert explanation.maps.any()
