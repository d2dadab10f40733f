"""Towers: where the grid is, and what may be left out of a pass."""

from itertools import product

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.model import find_clip
from clipcam_lightning.cam.towers import tower_of
from clipcam_lightning.cam.towers.open_clip import OpenClipViT
from clipcam_lightning.errors import ConfigError, TowerError

TEXT = CLIPTextCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1)


def vit(**vision: object) -> open_clip.CLIP:
    cfg = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": (16, 32), **vision}
    return open_clip.CLIP(embed_dim=16, vision_cfg=CLIPVisionCfg(**cfg), text_cfg=TEXT).eval()


def resnet(image_size: int = 64) -> open_clip.CLIP:
    cfg = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=32, image_size=image_size)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=cfg, text_cfg=TEXT).eval()
    for stage in (model.visual.layer1, model.visual.layer2, model.visual.layer3, model.visual.layer4):
        nn.init.ones_(stage[0].bn3.weight)  # zero at the start: the blocks would add nothing
    return model


def coca() -> open_clip.CoCa:
    vision = CLIPVisionCfg(
        layers=2, width=32, head_width=16, patch_size=8, image_size=16, attentional_pool=True, attn_pooler_queries=3,
        attn_pooler_heads=2, output_tokens=True,
    )  # fmt: skip
    text = CLIPTextCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1, embed_cls=True, output_tokens=True)
    from open_clip.coca_model import MultimodalCfg

    decoder = MultimodalCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1)
    return open_clip.CoCa(embed_dim=16, multimodal_cfg=decoder, text_cfg=text, vision_cfg=vision).eval()


def custom_text() -> open_clip.CustomTextCLIP:
    cfg = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=16)
    return open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=cfg, text_cfg=TEXT).eval()


MODELS = {
    "cls": vit,
    "average": lambda: vit(pool_type="avg", final_ln_after_pool=True),
    "attention pool": lambda: vit(attentional_pool=True, attn_pooler_queries=1, attn_pooler_heads=2, pool_type="tok"),
    "norm after pool": lambda: vit(final_ln_after_pool=True),
    "layer scale": lambda: vit(ls_init_value=0.1),
    "own blocks": lambda: vit(scale_attn=True),
    "resnet": resnet,
    "coca": coca,
    "custom text": custom_text,
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *tower_of(model).input_size)


def test_patch_tokens_land_row_by_row() -> None:
    tower = OpenClipViT(vit())
    features = torch.randn(3, 1 + 2 * 4, 32)  # CLS + a 2x4 grid: not square, or a swap would hide

    grid = tower.to_grid(features, (16, 32))

    for row, column in product(range(2), range(4)):
        assert torch.equal(grid[:, :, row, column], features[:, 1 + 4 * row + column])


@pytest.mark.parametrize("corner", list(product((0, 1), (0, 1))))
def test_a_patch_that_alone_matters_lights_up_where_it_is(corner: tuple[int, int]) -> None:
    """Only one corner differs from a grey image, and the prompt is what that corner adds to the embedding."""
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


def test_leaving_out_unused_work_changes_no_map(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = images_for(model), torch.randn(3, 16)
    shortened = explain(model, images, texts)

    monkeypatch.delattr(OpenClipViT, "skipping_unused")  # the base class leaves nothing out
    whole = explain(model, images, texts)

    assert_close(shortened.maps, whole.maps, atol=1e-7, rtol=1e-4)
    assert_close(shortened.similarity, whole.similarity)


def test_the_last_block_of_a_cls_tower_computes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = vit(), []
    layer = model.visual.transformer.resblocks[-1].mlp.c_fc
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: (rows.append(x.shape[1]), plain(x))[1])

    explain(model, images_for(model), torch.randn(1, 16))

    assert rows == [1]


def test_nothing_is_left_out_while_somebody_else_listens() -> None:
    model, shapes = vit(), []
    attention = model.visual.transformer.resblocks[-1].attn
    attention.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output[0].shape)))

    explain(model, images_for(model), torch.randn(1, 16))

    assert shapes == [(2, 9, 32)]


def test_a_feature_extractor_on_the_transformer_sees_the_right_tokens() -> None:
    model, seen = vit(), []
    images = images_for(model)
    model.visual.transformer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
    with torch.no_grad():
        model.encode_image(images)

    explain(model, images, torch.randn(1, 16))

    assert_close(seen[1], seen[0])


@pytest.mark.parametrize("wrap", ["compiled", "lora"])
def test_a_wrapped_tower_inside_a_plain_clip_is_seen_through(wrap: str) -> None:
    model = vit()
    images, texts = images_for(model), torch.randn(1, 16)
    expected = explain(model, images, texts, scales=(1.0, 2.0)).maps
    if wrap == "compiled":
        model.visual = torch.compile(model.visual, backend="eager")
    else:
        model.visual = get_peft_model(model.visual, LoraConfig(target_modules=["c_fc"], r=2))  # adds nothing yet

    found = explain(model, images, texts, scales=(1.0, 2.0))

    assert_close(found.maps, expected)
    assert found.layers[0].startswith("visual.")


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    model = vit()
    with pytest.raises(TowerError, match="MultiheadAttention gives a tuple"):
        explain(model, images_for(model), torch.randn(1, 16), layers="visual.transformer.resblocks.1.attn")


@pytest.mark.parametrize("name", ["cls", "average", "resnet"])
def test_batches_scales_and_layers_agree_with_single_calls(name: str) -> None:
    model = MODELS[name]()
    images, texts = images_for(model, 5), torch.randn(2, 16)

    together = explain(model, images, texts, batch_size=2)

    alone = torch.cat([explain(model, image[None], texts).maps for image in images])
    assert_close(together.maps, alone, atol=1e-7, rtol=1e-4)


def test_a_larger_scale_interpolates_positions_and_leaves_the_model_alone() -> None:
    model = vit()
    before = model.visual.positional_embedding.clone()
    images, texts = images_for(model), torch.randn(1, 16)

    maps = explain(model, images, texts, scales=(1.0, 2.0)).maps

    assert maps.shape == (2, 1, 4, 8)  # the finer grid
    assert torch.equal(model.visual.positional_embedding, before)
    assert model.visual.positional_embedding is dict(model.named_parameters())["visual.positional_embedding"]


def test_positions_interpolate_to_what_open_clip_makes_of_them() -> None:
    model = vit(image_size=16)
    state = {"visual.positional_embedding": model.visual.positional_embedding.detach()}
    target = vit(image_size=32)
    open_clip.model.resize_pos_embed(state, target)

    ours = tower_of(model).position_embeddings((32, 32))["visual.positional_embedding"]

    assert_close(ours, state["visual.positional_embedding"])


@pytest.mark.parametrize("name", MODELS)
def test_frozen_equals_trainable_and_checkpointed_equals_plain(name: str) -> None:
    model = MODELS[name]()
    images, texts = images_for(model), torch.randn(2, 16)
    trainable = explain(model, images, texts, layers=0, method="hirescam").maps

    checkpointed = explain(model, images, texts, layers=0, method="hirescam", checkpointing=True).maps
    frozen = explain(model.requires_grad_(False), images, texts, layers=0, method="hirescam").maps

    assert_close(checkpointed, trainable)
    assert_close(frozen, trainable, atol=1e-7, rtol=1e-4)


def test_layers_are_chosen_by_index_or_name_and_refused_with_the_choices() -> None:
    tower = tower_of(vit())

    assert tower.resolve(-1) == tower.resolve("visual.transformer.resblocks.2.ln_1") == tower.default_layer
    for wrong in (3, "visual.transformer.resblocks.9.ln_1", ""):
        with pytest.raises(ConfigError, match=r"resblocks\.0\.ln_1, .*resblocks\.1\.ln_1"):
            tower.resolve(wrong)


@pytest.mark.parametrize("layer", ["visual.ln_post", "visual.transformer.resblocks.1.mlp.c_fc", "visual.conv1"])
def test_layers_fuse_only_where_they_have_a_grid(layer: str) -> None:
    model = vit()
    images, texts = images_for(model), torch.randn(1, 16)
    if layer == "visual.conv1":
        with pytest.raises(TowerError, match=r"expected \[batch, 1 \+ 2x4 tokens, channels\].*\(2, 32, 2, 4\)"):
            explain(model, images, texts, layers=layer)
    else:
        assert explain(model, images, texts, layers=layer).maps.shape == (2, 1, 2, 4)


def test_a_layer_of_the_text_tower_is_refused() -> None:
    model = vit()
    with pytest.raises(ConfigError, match="does not run when images are embedded"):
        explain(model, images_for(model), torch.randn(1, 16), layers=["visual.transformer.resblocks.1", "ln_final"])


@pytest.mark.parametrize("fuse", ["mean", "max", "product"])
def test_several_layers_fuse_raw_maps(fuse: str) -> None:
    model = resnet(128)
    images, texts = images_for(model), torch.randn(1, 16)
    coarse, fine = (explain(model, images, texts, layers=i, method="hirescam").maps[:, 0] for i in (3, 2))

    both = explain(model, images, texts, layers=(2, 3), method="hirescam", fuse=fuse).maps[:, 0]

    enlarged = F.interpolate(coarse[:, None], size=fine.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    combine = {"mean": lambda a, b: (a + b) / 2, "max": torch.maximum, "product": torch.mul}[fuse]
    assert_close(both, combine(enlarged, fine), atol=1e-7, rtol=1e-4)


def test_an_unknown_tower_gets_an_error_that_names_the_known_ones() -> None:
    model = vit()
    model.visual = nn.Linear(3, 3)
    with pytest.raises(TowerError, match=r"no tower fits CLIP with a Linear.*OpenClipViT, OpenClipResNet"):
        find_clip(model)
