"""Towers of transformers, held against what the models themselves do."""

import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from itertools import product
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import Siglip2ImageProcessor, SiglipImageProcessor
from transformers.models.siglip2.image_processing_siglip2 import convert_image_to_patches

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.model import find_clip
from clipcam_lightning.cam.towers import tower_of
from clipcam_lightning.cam.towers.huggingface import HuggingFaceNaFlexViT, HuggingFaceViT, patched, unpadded
from clipcam_lightning.errors import ConfigError, TowerError
from tests.support.zoo.huggingface import MODELS, PATCH, WIDTH, clip, siglip, siglip2, tokenizer

# PEFT 0.21 still calls it what transformers 4 did, and so does a test.
pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")

CLASS_TOKEN = ["clip", "chinese clip", "alt clip"]
each_model = pytest.mark.parametrize("name", MODELS)
one_of_each_pooling = pytest.mark.parametrize("name", ["clip", "siglip 2"])
close = {"atol": 1e-6, "rtol": 1e-4}


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *tower_of(model).input_size)


def fed(model: nn.Module, images: Tensor) -> Tensor:
    """Embeddings from the model itself, fed as its own processor would."""
    if "siglip2" not in type(model).__name__.lower():
        return model.get_image_features(pixel_values=images).pooler_output
    patches = torch.stack([convert_image_to_patches(image, PATCH) for image in images])
    shape = [images.shape[-2] // PATCH, images.shape[-1] // PATCH]
    return model.get_image_features(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(patches.shape[:2]),
        spatial_shapes=torch.tensor([shape] * len(images)),
    ).pooler_output


def during(model: nn.Module, images: Tensor, hook: Callable[..., Any], module: nn.Module) -> Tensor:
    """Embeddings with a forward hook on ``module``."""
    handle = module.register_forward_hook(hook)
    try:
        return fed(model, images)
    finally:
        handle.remove()


def recorded(model: nn.Module, images: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    """What ``module`` is given and what it gives."""
    kept: list[Tensor] = []
    during(model, images, lambda _module, inputs, output: kept.extend((inputs[0], output)), module)
    return kept[0].detach(), kept[1].detach()


@each_model
def test_images_are_embedded_as_the_model_itself_embeds_them(name: str) -> None:
    model = MODELS[name]()
    images = images_for(model)

    assert_close(tower_of(model).encode(images), fed(model, images))


@each_model
def test_patch_tokens_land_row_by_row(name: str) -> None:
    tower = tower_of(MODELS[name]())
    prefix = 1 if name in CLASS_TOKEN else 0
    features = torch.randn(3, prefix + 2 * 4, WIDTH)  # not square, or a swap would hide

    grid = tower.to_grid(features, (2 * PATCH, 4 * PATCH))

    assert grid.shape == (3, WIDTH, 2, 4)
    for row, column in product(range(2), range(4)):
        assert torch.equal(grid[:, :, row, column], features[:, prefix + 4 * row + column])


@each_model
def test_tokens_of_another_grid_are_refused_with_the_layers_that_fit(name: str) -> None:
    with pytest.raises(TowerError, match=r"2x4 tokens.*vision_model\.encoder\.layers\.0"):
        tower_of(MODELS[name]()).to_grid(torch.randn(1, 12, WIDTH), (2 * PATCH, 4 * PATCH))


@each_model
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_the_default_layer_s_map_is_that_of_the_whole_graph(name: str, method: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    layer, kept = model.get_submodule(tower_of(model).default_layer), []
    embeddings = during(model, images, lambda _layer, _inputs, output: kept.append(output), layer)
    (gradient,) = torch.autograd.grad(F.cosine_similarity(embeddings, text).sum(), kept[0])

    found = explain(model, images, text, method=method)

    activations, gradient = (x[:, -16:].detach() for x in (kept[0], gradient))
    weights = gradient.mean(dim=1, keepdim=True) if method == "gradcam" else gradient
    expected = (weights * activations).sum(dim=-1).relu().reshape(2, 1, 4, 4)
    assert expected.max() > 1e-4, "more than rounding errors"
    assert_close(found.maps, expected, **close)
    assert_close(found.similarity[:, 0], F.cosine_similarity(embeddings, text).detach())


@each_model
def test_the_gradient_at_the_default_layer_reaches_every_patch(name: str) -> None:
    model = MODELS[name]()
    maps = explain(
        model, images_for(model), torch.randn(1, WIDTH), method=lambda capture: capture.gradients.norm(dim=2)
    )
    assert maps.maps.min() > 0


@pytest.mark.parametrize("name", ["siglip", "siglip 2"])
def test_the_default_layer_comes_after_the_norm_that_makes_hirescam_of_the_last_block_zero(name: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    last_block = tower_of(model).layers[len(tower_of(model).blocks) - 1]

    before, after = (explain(model, images, text, method=signed, layers=layer).maps for layer in (last_block, None))

    assert before.abs().max() < 1e-4 * after.abs().max()


def signed(capture: Capture) -> Tensor:
    """HiResCAM without its relu."""
    return torch.einsum("bpchw,bchw->bphw", capture.gradients, capture.activations)


@each_model
def test_project_is_what_the_attention_of_a_block_adds(name: str) -> None:
    model = MODELS[name]()
    tower, images = tower_of(model), images_for(model)
    for i, block in enumerate(tower.blocks):
        before, _ = recorded(model, images, block.layer_norm1)
        after, _ = recorded(model, images, block.layer_norm2)
        heads, _ = recorded(model, images, block.self_attn.out_proj)

        assert_close(tower.project(i, heads), after - before, **close)


@each_model
def test_embed_tokens_pools_each_token_as_if_it_were_alone(name: str) -> None:
    model = MODELS[name]()
    tower, images = tower_of(model), images_for(model)
    tokens = recorded(model, images, tower.blocks[-1])[1]

    embedded = tower.embed_tokens(tokens)

    for t in range(tokens.shape[1]):
        if name == "siglip 2":  # its own mask is of the whole length
            alone = model.vision_model.head(model.vision_model.post_layernorm(tokens[:, t : t + 1]))
        else:
            alone = during(model, images, lambda _block, _inputs, output, t=t: output[:, t : t + 1], tower.blocks[-1])
        assert_close(embedded[:, t], alone, **close)


@pytest.mark.parametrize("name", CLASS_TOKEN)
def test_final_norm_and_head_turn_the_class_token_into_the_embedding(name: str) -> None:
    model = MODELS[name]()
    tower, images = tower_of(model), images_for(model)
    class_token = recorded(model, images, tower.blocks[-1])[1][:, :1]

    assert_close(tower.head(tower.final_norm(class_token))[:, 0], fed(model, images))


@pytest.mark.parametrize("name", ["siglip", "siglip 2"])
def test_the_pool_reads_the_normed_patches_and_gives_the_embedding(name: str) -> None:
    model = MODELS[name]()
    images = images_for(model)
    _, pooled = recorded(model, images, tower_of(model).pool)

    assert_close(pooled, fed(model, images))
    assert tower_of(model).pooling == "attention"
    assert tower_of(model).final_norm is None


@each_model
@pytest.mark.parametrize("corner", [(0, 3), (3, 0)])
def test_a_patch_that_alone_differs_differs_where_it_is(name: str, corner: tuple[int, int]) -> None:
    """Without positions all grey patches are the same token, so that the map has one value for all of them."""
    model = MODELS[name](num_hidden_layers=1)
    nn.init.zeros_(model.vision_model.embeddings.position_embedding.weight)
    images, (row, column) = torch.zeros(1, 3, 4 * PATCH, 4 * PATCH), corner
    images[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = torch.randn(3, PATCH, PATCH)

    ((found,),) = explain(model, images, torch.randn(1, WIDTH), method=signed).maps

    differs = (found - found.median()).abs() > 1e-4
    assert differs.nonzero().tolist() == [[row, column]]


@each_model
@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_fits_gives_finite_maps_on_the_grid(name: str, method: str) -> None:
    model = MODELS[name]()
    if METHODS[method].missing(tower_of(model)):
        assert (name in CLASS_TOKEN, method) == (False, "decomposition")
        return

    maps = explain(
        find_clip(model, tokenizer=tokenizer()), images_for(model), ["a red circle", "star"], method=method
    ).maps

    side = 8 if method == "occlusion" else 4  # it divides the cells of a coarse grid
    assert maps.shape == (2, 2, side, side)
    assert maps.isfinite().all()


@each_model
@pytest.mark.parametrize(("implementation", "method"), [("eager", "gae"), ("flash_attention_2", "gradcam")])
def test_the_chosen_attention_implementation_changes_no_map(name: str, implementation: str, method: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method=method).maps
    model.vision_model.config._attn_implementation = implementation  # flash attention is not even installed

    assert_close(explain(model, images, text, method=method).maps, expected, **close)
    assert model.vision_model.config._attn_implementation == implementation


@each_model
def test_the_attention_implementation_comes_back_after_an_exception(name: str) -> None:
    model = MODELS[name]()
    model.set_attn_implementation("eager")
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    during_pass = []

    def broken(_capture: object) -> Tensor:
        during_pass.append(
            (model.vision_model.config._attn_implementation, model.text_model.config._attn_implementation)
        )
        raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        explain(model, images_for(model), torch.randn(1, WIDTH), method=broken)

    assert during_pass == [("sdpa", "eager")]
    assert {config._attn_implementation for config in configs} == {"eager"}


@pytest.mark.parametrize("option", ["output_attentions", "output_hidden_states", "return_dict"])
@one_of_each_pooling
def test_what_the_configuration_lets_the_model_give_back_changes_no_map(name: str, option: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="gae").maps
    model.set_attn_implementation("eager")
    for config in (model.config, model.vision_model.config):
        setattr(config, option, option != "return_dict")

    assert_close(explain(model, images, text, method="gae").maps, expected, **close)


@each_model
def test_embeddings_are_read_from_what_transformers_4_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]()
    images, prompts = images_for(model), ["a red circle"]
    expected = explain(find_clip(model, tokenizer=tokenizer()), images, prompts, method="gae")
    for method in ("get_image_features", "get_text_features"):
        monkeypatch.setattr(model, method, _as_a_tensor(getattr(model, method)))

    found = explain(find_clip(model, tokenizer=tokenizer()), images, prompts, method="gae")

    assert torch.equal(found.maps, expected.maps)
    assert torch.equal(found.similarity, expected.similarity)


def _as_a_tensor(version_5: Callable[..., Any]) -> Callable[..., Tensor]:
    return wraps(version_5)(lambda *args, **kwargs: version_5(*args, **kwargs).pooler_output)


@pytest.mark.parametrize("name", [*CLASS_TOKEN, "siglip"])
def test_another_size_is_embedded_with_the_model_s_own_interpolated_positions(name: str) -> None:
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 2 * PATCH, 6 * PATCH)

    found = tower_of(model).encode(images)

    own = model.get_image_features(pixel_values=images, interpolate_pos_encoding=True).pooler_output
    assert torch.equal(found, own)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each_model
def test_a_larger_scale_has_a_finer_grid(name: str) -> None:
    model = MODELS[name]()
    assert explain(model, images_for(model), torch.randn(1, WIDTH), scales=(2.0,)).maps.shape == (2, 1, 8, 8)


@each_model
def test_frozen_equals_trainable_and_checkpointed_equals_plain(name: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    trainable = explain(model, images, text, layers=0, method="hirescam").maps

    checkpointed = explain(model, images, text, layers=0, method="hirescam", checkpointing=True).maps
    frozen = explain(model.requires_grad_(False), images, text, layers=0, method="hirescam").maps

    assert_close(checkpointed, trainable, **close)
    assert_close(frozen, trainable, **close)


@each_model
def test_a_model_that_trains_with_checkpointing_and_dropout_is_explained_as_in_eval_mode(name: str) -> None:
    model = MODELS[name](attention_dropout=0.5)
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="gae").maps
    model.gradient_checkpointing_enable()
    model.train()

    assert_close(explain(model, images, text, method="gae").maps, expected, **close)
    assert model.training
    assert model.vision_model.encoder.layers[0].gradient_checkpointing


@each_model
def test_lora_takes_part_in_the_map_frozen_or_not(name: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    plain = explain(model, images, text, layers=-1).maps
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))

    trainable = explain(adapted, images, text, layers=-1).maps
    frozen = explain(adapted.requires_grad_(False), images, text, layers=-1).maps

    assert not torch.allclose(trainable, plain, atol=1e-4)
    assert_close(frozen, trainable, **close)


@one_of_each_pooling
@pytest.mark.parametrize("wrap", ["compiled", "lora"])
def test_a_wrapped_tower_inside_a_plain_clip_is_seen_through(name: str, wrap: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="gae").maps
    if wrap == "compiled":
        model.vision_model = torch.compile(model.vision_model, backend="eager")
    else:  # adds nothing yet
        model.vision_model = get_peft_model(model.vision_model, LoraConfig(target_modules=["q_proj", "out_proj"], r=2))

    found = explain(model, images, text, method="gae")

    assert_close(found.maps, expected, **close)
    assert found.layers[0] in dict(model.named_modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@one_of_each_pooling
def test_half_and_double_precision_are_explained_in_their_own(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="hirescam").maps

    found = explain(model.to(dtype), images, text, method="hirescam").maps

    assert found.dtype == torch.float32
    assert_close(found, expected, atol=0.05 if dtype == torch.bfloat16 else 1e-6, rtol=0.2)


def test_a_siglip_that_embeds_no_images_fits_no_tower() -> None:
    with pytest.raises(TowerError, match="no tower fits SiglipModel"):
        find_clip(siglip(vision_use_head=False))


def test_only_the_one_that_takes_patches_takes_any_size() -> None:
    towers = {name: tower_of(make()) for name, make in MODELS.items()}

    assert {name for name, tower in towers.items() if type(tower) is HuggingFaceNaFlexViT} == {"siglip 2"}
    assert {name for name, tower in towers.items() if type(tower) is HuggingFaceViT} == {*MODELS} - {"siglip 2"}
    assert HuggingFaceNaFlexViT.any_size


def test_patches_are_cut_as_siglip_2_s_processor_cuts_them() -> None:
    images = torch.randn(2, 3, 2 * PATCH, 5 * PATCH)

    patches = patched(images, PATCH)

    assert torch.equal(patches, torch.stack([convert_image_to_patches(image, PATCH) for image in images]))


@pytest.mark.parametrize("size", [(PATCH + 1, PATCH), (PATCH, 3), (0, PATCH)])
def test_images_that_are_not_whole_patches_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"whole patches of 8x8 pixels \(got {size[0]}x{size[1]}\)"):
        tower_of(siglip2()).encode(torch.randn(1, 3, *size))


def padded_batch(images: list[Tensor]) -> Any:
    """Images of several sizes as the real processor feeds them, their pixels untouched."""
    processor = Siglip2ImageProcessor(
        patch_size=PATCH, max_num_patches=20, do_resize=False, do_rescale=False, do_normalize=False
    )
    return processor(images=images, return_tensors="pt")


def test_a_padded_batch_is_taken_apart_into_the_images_it_was_made_of() -> None:
    images = [torch.randn(3, height * PATCH, width * PATCH) for height, width in ((2, 5), (4, 3), (1, 20))]
    batch = padded_batch(images)

    found = unpadded(batch["pixel_values"], batch["spatial_shapes"], PATCH)

    assert all(torch.equal(own, image) for own, image in zip(found, images, strict=True))


def test_unpadded_images_have_the_similarity_of_the_padded_batch() -> None:
    model = siglip2()
    images = [torch.randn(3, height * PATCH, width * PATCH) for height, width in ((2, 5), (4, 3), (4, 4))]
    batch, text = padded_batch(images), torch.randn(WIDTH)
    together = F.cosine_similarity(model.get_image_features(**batch).pooler_output, text, dim=-1)

    apart = torch.cat([tower_of(model).encode(image[None]) for image in unpadded(
        batch["pixel_values"], batch["spatial_shapes"], PATCH
    )])  # fmt: skip

    assert batch["pixel_attention_mask"].min() == 0, "something was padded"
    assert_close(F.cosine_similarity(apart, text, dim=-1), together, atol=1e-5, rtol=0)


def test_a_padded_batch_is_explained_as_each_of_its_images_alone() -> None:
    model, text = siglip2(), torch.randn(1, WIDTH)
    images = [torch.randn(3, height * PATCH, width * PATCH) for height, width in ((2, 5), (4, 3))]

    together = explain(model, padded_batch(images), text, method="hirescam")

    for i, image in enumerate(images):
        alone = explain(model, image[None], text, method="hirescam")
        assert_close(together.of(i), alone.maps[0], **close)
        assert alone.maps.shape[2:] == (image.shape[1] // PATCH, image.shape[2] // PATCH)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_what_an_image_processor_gives_is_explained_as_the_tensor_in_it(name: str) -> None:
    model, text = MODELS[name](), torch.randn(1, WIDTH)
    side = {"height": 4 * PATCH, "width": 4 * PATCH}
    picture = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    batch = SiglipImageProcessor(size=side)(images=picture, return_tensors="pt")

    assert_close(explain(model, batch, text).maps, explain(model, batch["pixel_values"], text).maps)


@pytest.mark.parametrize(
    ("name", "wanted"), [("clip", "pixel_values"), ("siglip 2", "pixel_values and spatial_shapes")]
)
@pytest.mark.parametrize(
    ("batch", "came"), [({}, "got nothing"), ({"pixel_values": [[0.0]]}, "got pixel_values: list")]
)
def test_a_mapping_without_images_is_refused(
    name: str, wanted: str, batch: dict[str, Any], came: str, unchecked: None
) -> None:
    with pytest.raises(ConfigError, match=rf"expected the tensors {wanted}, .*return_tensors='pt' \({came}"):
        tower_of(MODELS[name]()).unpacked(batch)


@pytest.mark.parametrize(("values", "shape"), [(3 * 7 * 7, (2, 2)), (3 * PATCH**2, (3, 2))])
def test_patches_that_do_not_fit_their_shapes_are_refused(values: int, shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"expected patches \[n, s, 3 \* 8 \* 8\].*got \(1, 5, .*spatial_shapes"):
        unpadded(torch.randn(1, 5, values), torch.tensor([shape]), PATCH)


def test_the_towers_need_no_transformers() -> None:
    program = "import sys; sys.modules['transformers'] = None; import clipcam_lightning.cam.model"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_clip_keeps_its_map_with_an_adapter_on_its_projection() -> None:
    model = clip()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="decomposition").maps

    adapted = get_peft_model(model, LoraConfig(target_modules=["visual_projection", "out_proj"], r=2))

    assert_close(explain(adapted, images, text, method="decomposition").maps, expected, **close)
