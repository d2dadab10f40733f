"""Towers of open_clip: their grids, their layers, and the work that a pass skips."""

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from open_clip.model import resize_pos_embed
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.attention import Attention, intercepted_attention
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.open_clip import OpenClipViT
from clipcam_lightning.cam.towers.openai import OpenAiViT
from clipcam_lightning.cam.towers.tower import HEAD, AttentionTower
from clipcam_lightning.errors import ClipCamWarning, ConfigError, TowerError
from tests.support.tolerances import assert_equal_up_to_rounding
from tests.support.zoo.open_clip import MODELS, coca, resnet, vit


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *find_tower(model).input_size)


def test_patch_tokens_land_row_by_row() -> None:
    tower = OpenClipViT(vit())
    features = torch.randn(3, 1 + 2 * 4, 32)  # CLS + a 2x4 grid, not square, so that swapped sides show

    grid = tower.to_grid(features, (16, 32))

    for row, column in product(range(2), range(4)):
        assert torch.equal(grid[:, :, row, column], features[:, 1 + 4 * row + column])


@pytest.mark.parametrize("corner", list(product((0, 1), (0, 1))))
def test_the_map_is_largest_at_the_only_patch_that_matters(corner: tuple[int, int]) -> None:
    """The image is grey except for one corner, and the prompt is what this corner adds to the embedding."""
    model, (row, column) = vit(layers=1), corner
    grey = torch.zeros(1, 3, 16, 32)
    image = grey.clone()
    y, x = row * 8, column * 24
    image[:, :, y : y + 8, x : x + 8] = 4 * torch.randn(3, 8, 8)
    with torch.no_grad():
        text = model.encode_image(image, normalize=True) - model.encode_image(grey, normalize=True)

    map_ = explain(model, image, text, method="hirescam").maps[0, 0]

    assert divmod(int(map_.argmax()), 4) == (row, column * 3)


def test_every_tower_gives_finite_maps_that_are_not_all_zero(model: nn.Module) -> None:
    maps = explain(model, images_for(model), torch.randn(3, 16), method="hirescam").maps

    assert maps.isfinite().all()
    assert maps.amax((2, 3)).max() > 0


@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method)
        for name, build in MODELS.items()
        for method in ("gradcam", "gae", "grad_eclip", "decomposition", "maskclip")
        if not METHODS[method].missing(find_tower(build()))
    ],
)
def test_skipping_unused_work_changes_no_map(name: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]()
    images, texts = images_for(model), torch.randn(3, 16)
    shortened = explain(model, images, texts, method=method)

    monkeypatch.delattr(OpenAiViT, "skipping_unused")  # the base class skips nothing
    complete = explain(model, images, texts, method=method)

    assert_equal_up_to_rounding(shortened.maps, complete.maps)
    assert_close(shortened.similarity, complete.similarity)


def find_verified(model: nn.Module) -> ClipModel:
    """Find a CLIP whose head is verified, which takes a forward."""
    clip = find_clip(model)
    assert HEAD in clip.tower.offers
    return clip


@pytest.mark.parametrize("vision", [{}, {"final_ln_after_pool": True}, {"ls_init_value": 0.1}], ids=str)
def test_the_last_block_of_a_cls_tower_computes_a_single_token(
    vision: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = vit(**vision), []
    layer = model.visual.transformer.resblocks[-1].mlp.c_fc
    clip, plain = find_verified(model), layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: (rows.append(x.shape[1]), plain(x))[1])

    explain(clip, images_for(model), torch.randn(1, 16))

    assert rows == [1]


def test_nothing_is_skipped_if_there_are_other_hooks() -> None:
    model, shapes = vit(), []
    clip, attention = find_verified(model), model.visual.transformer.resblocks[-1].attn
    attention.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output[0].shape)))

    explain(clip, images_for(model), torch.randn(1, 16))

    assert shapes == [(2, 9, 32)]


def test_a_hook_on_the_transformer_still_gets_all_tokens() -> None:
    model, outputs = vit(), []
    clip, images = find_verified(model), images_for(model)
    model.visual.transformer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.detach()))
    with torch.no_grad():
        model.encode_image(images)

    explain(clip, images, torch.randn(1, 16))

    assert_close(outputs[1], outputs[0])


@pytest.mark.parametrize("wrap", ["compiled", "lora"])
def test_a_wrapped_tower_inside_a_plain_clip_gives_the_same_maps(wrap: str) -> None:
    model = vit()
    images, texts = images_for(model), torch.randn(1, 16)
    expected = explain(model, images, texts, scales=(1.0, 2.0)).maps
    if wrap == "compiled":
        model.visual = torch.compile(model.visual, backend="eager")
    else:
        model.visual = get_peft_model(model.visual, LoraConfig(target_modules=["c_fc"], r=2))  # has no effect yet

    explanation = explain(model, images, texts, scales=(1.0, 2.0))

    assert_close(explanation.maps, expected)
    assert explanation.layers[0].startswith("visual.")


def test_a_layer_with_several_output_tensors_is_rejected() -> None:
    model = coca()
    with pytest.raises(TowerError, match="VisionTransformer returns a tuple"):
        explain(model, images_for(model), torch.randn(1, 16), layers="visual")


@pytest.mark.parametrize("name", ["cls", "average", "resnet"])
def test_maps_of_a_batch_equal_those_of_single_images(name: str) -> None:
    model = MODELS[name]()
    images, texts = images_for(model, 5), torch.randn(2, 16)

    together = explain(model, images, texts, batch_size=2)

    alone = torch.cat([explain(model, image[None], texts).maps for image in images])
    assert_equal_up_to_rounding(together.maps, alone)


def test_a_larger_scale_interpolates_positions_without_changing_the_model() -> None:
    model = vit()
    before = model.visual.positional_embedding.clone()
    images, texts = images_for(model), torch.randn(1, 16)

    maps = explain(model, images, texts, scales=(1.0, 2.0)).maps

    assert maps.shape == (2, 1, 4, 8)  # the finer grid
    assert torch.equal(model.visual.positional_embedding, before)
    assert model.visual.positional_embedding is dict(model.named_parameters())["visual.positional_embedding"]


def test_positions_are_interpolated_as_by_open_clip() -> None:
    model, target, images = vit(image_size=16), vit(image_size=32), torch.randn(2, 3, 32, 32)
    state = model.state_dict()
    resize_pos_embed(state, target)
    target.load_state_dict(state)

    with torch.no_grad():
        assert_close(find_tower(model).encode(images), target.encode_image(images))


def test_positions_of_a_resnet_are_interpolated_in_its_attention_pool() -> None:
    model, target, images = resnet(64), resnet(96), torch.randn(2, 3, 96, 96)
    state = model.state_dict()
    own = state["visual.attnpool.positional_embedding"]
    grid = own[1:].unflatten(0, (2, 2)).movedim(2, 0)[None]
    larger = F.interpolate(grid, size=(3, 3), mode="bicubic", antialias=True)[0].movedim(0, 2).flatten(0, 1)
    state["visual.attnpool.positional_embedding"] = torch.cat([own[:1], larger])
    target.load_state_dict(state)

    with torch.no_grad():
        assert_close(find_tower(model).encode(images), target.encode_image(images))


@pytest.mark.parametrize("name", MODELS)
def test_frozen_and_checkpointed_models_give_the_same_maps(name: str) -> None:
    model = MODELS[name]()
    images, texts = images_for(model), torch.randn(2, 16)
    trainable = explain(model, images, texts, layers=0, method="hirescam").maps

    checkpointed = explain(model, images, texts, layers=0, method="hirescam", checkpointing=True).maps
    frozen = explain(model.requires_grad_(False), images, texts, layers=0, method="hirescam").maps

    assert_close(checkpointed, trainable)
    assert_equal_up_to_rounding(frozen, trainable)


def test_an_embedded_token_is_the_image_embedding_when_all_tokens_are_that_token(model: nn.Module) -> None:
    """The mean of equal tokens, attention over equal keys and a class token equal to the patches all agree."""
    tower, tokens_of_last_block = find_tower(model), []
    assert isinstance(tower, AttentionTower)
    for name, parameter in model.named_parameters():
        if name.endswith("attnpool.positional_embedding"):
            nn.init.zeros_(parameter)

    def equalize(_block: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        tokens = tower.to_tokens(output)[:, :1]
        tokens_of_last_block.append(tokens)
        return output[:, :, :1, :1].expand_as(output) if output.ndim == 4 else tokens.expand_as(output)

    tower.blocks[-1].register_forward_hook(equalize)
    with torch.no_grad():
        embedding = tower.encode(images_for(model))

        alone = tower.embed_tokens(tokens_of_last_block[0])[:, 0]

    assert_close(F.normalize(alone, dim=-1), F.normalize(embedding, dim=-1))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet"])
def test_project_returns_what_the_attention_adds_to_its_tokens(name: str) -> None:
    model = MODELS[name]()
    for parameter in model.parameters():  # layer scales and factors are initialised to 1, norms to the identity
        parameter.data += 0.1 * torch.randn_like(parameter)
    tower, heads, added = find_tower(model), [], []
    assert isinstance(tower, AttentionTower)

    def record(_i: int, attention: Attention) -> Tensor:
        heads.append(attention.output())
        return heads[-1]

    for block in tower.blocks:
        block.register_forward_pre_hook(lambda _block, inputs: added.append(inputs[0]))
        block.ln_2.register_forward_pre_hook(lambda _norm, inputs: added.append(inputs[0] - added.pop()))
    with torch.no_grad(), intercepted_attention(tower.attentions, record):
        tower.encode(images_for(model))

        for i in range(len(tower.blocks)):
            assert_close(tower.project(i, heads[i].transpose(1, 2).flatten(2)), added[i])


def test_the_head_maps_the_normalised_class_token_to_the_embedding(model: nn.Module) -> None:
    tower, outputs = find_tower(model), []
    assert isinstance(tower, AttentionTower)
    tower.blocks[-1].register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    with torch.no_grad():
        embedding = tower.encode(images_for(model))

        if tower.final_norm is not None:
            assert_close(tower.head(tower.final_norm(tower.to_tokens(outputs[0])[:, :1]))[:, 0], embedding)


@pytest.mark.parametrize("name", ["average", "attention pool", "own blocks", "own attention", "resnet"])
def test_a_tower_whose_class_token_is_not_a_sum_over_the_blocks_is_not_decomposed(name: str) -> None:
    model = MODELS[name]()
    with pytest.raises(ConfigError, match="a class token that is a sum over the blocks"):
        explain(model, images_for(model), torch.randn(1, 16), method="decomposition")


def test_layers_are_selected_by_index_or_name_and_rejected_with_the_valid_ones() -> None:
    tower = find_tower(vit())

    assert tower.resolve(-1) == tower.resolve("visual.transformer.resblocks.2.ln_1") == tower.default_layer
    for wrong in (3, "visual.transformer.resblocks.9.ln_1", ""):
        with pytest.raises(ConfigError, match=r"resblocks\.0\.ln_1, .*resblocks\.1\.ln_1"):
            tower.resolve(wrong)


@pytest.mark.parametrize(
    "layer", ["visual.ln_post", "visual.transformer.resblocks.1.mlp.c_fc", "visual.conv1", "visual"]
)
def test_a_layer_is_mapped_only_if_it_has_a_grid(layer: str) -> None:
    model = vit()
    images, texts = images_for(model), torch.randn(1, 16)
    if layer == "visual":
        with pytest.raises(TowerError, match=r"expected \[batch, 1 \+ 2x4 tokens, channels\].*\(2, 16\)"):
            explain(model, images, texts, method="gradcam", layers=layer)
        return
    reads_class_token = layer == "visual.ln_post"
    warns = pytest.warns(ClipCamWarning, match="no patch of layer") if reads_class_token else nullcontext()
    with warns:
        explanation = explain(model, images, texts, method="gradcam", layers=layer)
    assert explanation.maps.shape == (2, 1, 2, 4)


def test_a_layer_of_the_text_tower_is_rejected() -> None:
    model = vit()
    with pytest.raises(ConfigError, match="does not run when images are embedded"):
        explain(
            model,
            images_for(model),
            torch.randn(1, 16),
            method="gradcam",
            layers=["visual.transformer.resblocks.1", "ln_final"],
        )


def test_a_method_that_reads_blocks_rejects_other_layers_with_a_remedy() -> None:
    model = vit()
    with pytest.raises(
        ConfigError, match=r"decomposition reads .*got layer visual\.conv1.*any layer, such as hirescam"
    ):
        explain(model, images_for(model), torch.randn(1, 16), layers="visual.conv1")


@pytest.mark.parametrize("fuse", ["mean", "max", "product"])
def test_raw_maps_of_several_layers_are_fused(fuse: str) -> None:
    model = resnet(128)
    images, texts = images_for(model), torch.randn(1, 16)
    coarse, fine = (explain(model, images, texts, layers=i, method="hirescam").maps[:, 0] for i in (3, 2))

    both = explain(model, images, texts, layers=(2, 3), method="hirescam", fuse=fuse).maps[:, 0]

    enlarged = F.interpolate(coarse[:, None], size=fine.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    combine = {"mean": lambda a, b: (a + b) / 2, "max": torch.maximum, "product": torch.mul}[fuse]
    assert_equal_up_to_rounding(both, combine(enlarged, fine))


def test_an_unknown_tower_is_rejected_with_the_supported_ones_and_how_to_add_one() -> None:
    model = vit()
    model.visual = nn.Linear(3, 3)
    with pytest.raises(TowerError, match=r"no tower fits CLIP with a Linear.*OpenClipViT, OpenClipResNet") as rejected:
        find_clip(model)
    for word in ("fits, input_size, to_grid, scaled_size", "towers=[YourTower]", "examples/add_a_tower.py"):
        assert word in str(rejected.value)


def test_a_model_for_images_of_four_channels_is_refused_with_what_to_do() -> None:
    model = vit()
    model.visual.conv1 = nn.Conv2d(4, 32, kernel_size=8, stride=8, bias=False)

    with pytest.raises(
        TowerError, match=r"4 channels \(expected 3, RGB\)\. Build its image encoder for 3.*OpenClipViT"
    ):
        find_tower(model)
