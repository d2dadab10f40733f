"""Towers of transformers, compared with the models themselves."""

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
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.huggingface import (
    HuggingFaceNaFlexViT,
    HuggingFaceViT,
    cut_into_patches,
    unpad_images,
)
from clipcam_lightning.errors import ConfigError, TowerError
from tests.support.tolerances import assert_equal_up_to_rounding
from tests.support.zoo.huggingface import MODELS, PATCH, WIDTH, clip, siglip, siglip2, tokenizer

# PEFT 0.21 and a test still use the name of transformers 4.
pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")

CLASS_TOKEN = ["clip", "chinese clip", "alt clip"]
each_model = pytest.mark.parametrize("name", MODELS)
one_of_each_pooling = pytest.mark.parametrize("name", ["clip", "siglip 2"])


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *find_tower(model).input_size)


def encode(model: nn.Module, images: Tensor) -> Tensor:
    """Embed images with the model itself, from inputs as its own processor makes them."""
    if "siglip2" not in type(model).__name__.lower():
        return model.get_image_features(pixel_values=images).pooler_output
    patches = torch.stack([convert_image_to_patches(image, PATCH) for image in images])
    shape = [images.shape[-2] // PATCH, images.shape[-1] // PATCH]
    return model.get_image_features(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(patches.shape[:2]),
        spatial_shapes=torch.tensor([shape] * len(images)),
    ).pooler_output


def encode_with_hook(model: nn.Module, images: Tensor, hook: Callable[..., Any], module: nn.Module) -> Tensor:
    """Embed images with a forward hook on ``module``."""
    handle = module.register_forward_hook(hook)
    try:
        return encode(model, images)
    finally:
        handle.remove()


def record_input_and_output(model: nn.Module, images: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    recorded: list[Tensor] = []
    encode_with_hook(model, images, lambda _module, inputs, output: recorded.extend((inputs[0], output)), module)
    return recorded[0].detach(), recorded[1].detach()


@each_model
def test_images_are_embedded_as_by_the_model_itself(name: str) -> None:
    model = MODELS[name]()
    images = images_for(model)

    assert_close(find_tower(model).encode(images), encode(model, images))


@each_model
def test_patch_tokens_land_row_by_row(name: str) -> None:
    tower = find_tower(MODELS[name]())
    prefix = 1 if name in CLASS_TOKEN else 0
    features = torch.randn(3, prefix + 2 * 4, WIDTH)  # not square, so that swapped sides show

    grid = tower.to_grid(features, (2 * PATCH, 4 * PATCH))

    assert grid.shape == (3, WIDTH, 2, 4)
    for row, column in product(range(2), range(4)):
        assert torch.equal(grid[:, :, row, column], features[:, prefix + 4 * row + column])


@each_model
def test_tokens_of_another_grid_are_rejected_with_the_valid_layers(name: str) -> None:
    with pytest.raises(TowerError, match=r"2x4 tokens.*vision_model\.encoder\.layers\.0"):
        find_tower(MODELS[name]()).to_grid(torch.randn(1, 12, WIDTH), (2 * PATCH, 4 * PATCH))


@each_model
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_maps_of_the_default_layer_equal_those_of_the_complete_graph(name: str, method: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    layer, outputs = model.get_submodule(find_tower(model).default_layer), []
    embeddings = encode_with_hook(model, images, lambda _layer, _inputs, output: outputs.append(output), layer)
    (gradient,) = torch.autograd.grad(F.cosine_similarity(embeddings, text).sum(), outputs[0])

    explanation = explain(model, images, text, method=method)

    activations, gradient = (x[:, -16:].detach() for x in (outputs[0], gradient))
    weights = gradient.mean(dim=1, keepdim=True) if method == "gradcam" else gradient
    expected = (weights * activations).sum(dim=-1).relu().reshape(2, 1, 4, 4)
    assert expected.max() > 1e-4, "the maps must be larger than rounding errors"
    assert_equal_up_to_rounding(explanation.maps, expected)
    assert_close(explanation.similarity[:, 0], F.cosine_similarity(embeddings, text).detach())


@pytest.mark.parametrize("name", ["siglip", "siglip 2"])
def test_the_default_layer_comes_after_the_norm_before_which_hirescam_is_zero(name: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    last_block = find_tower(model).layers[len(find_tower(model).blocks) - 1]

    before, after = (explain(model, images, text, method=signed, layers=layer).maps for layer in (last_block, None))

    assert before.abs().max() < 1e-4 * after.abs().max()


def signed(capture: Capture) -> Tensor:
    """HiResCAM without its relu."""
    return torch.einsum("bpchw,bchw->bphw", capture.gradients, capture.activations)


@each_model
def test_embed_tokens_pools_each_token_alone(name: str) -> None:
    model = MODELS[name]()
    tower, images = find_tower(model), images_for(model)
    tokens = record_input_and_output(model, images, tower.blocks[-1])[1]

    embedded = tower.embed_tokens(tokens)

    for t in range(tokens.shape[1]):
        if name == "siglip 2":  # its mask has the length of all tokens
            alone = model.vision_model.head(model.vision_model.post_layernorm(tokens[:, t : t + 1]))
        else:
            alone = encode_with_hook(
                model, images, lambda _block, _inputs, output, t=t: output[:, t : t + 1], tower.blocks[-1]
            )
        assert_equal_up_to_rounding(embedded[:, t], alone)


@pytest.mark.parametrize("name", ["siglip", "siglip 2"])
def test_the_output_of_the_pool_is_the_embedding(name: str) -> None:
    model = MODELS[name]()
    images = images_for(model)
    _, pooled = record_input_and_output(model, images, find_tower(model).pool)

    assert_close(pooled, encode(model, images))
    assert find_tower(model).pooling == "attention"
    assert find_tower(model).final_norm is None


@each_model
@pytest.mark.parametrize("corner", [(0, 3), (3, 0)])
def test_the_only_patch_that_differs_is_the_only_cell_that_differs(name: str, corner: tuple[int, int]) -> None:
    """Without positions all grey patches are the same token, so all of them have the same value in the map."""
    model = MODELS[name](num_hidden_layers=1)
    nn.init.zeros_(model.vision_model.embeddings.position_embedding.weight)
    images, (row, column) = torch.zeros(1, 3, 4 * PATCH, 4 * PATCH), corner
    images[:, :, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = torch.randn(3, PATCH, PATCH)

    ((map_,),) = explain(model, images, torch.randn(1, WIDTH), method=signed).maps

    differs = (map_ - map_.median()).abs() > 1e-4
    assert differs.nonzero().tolist() == [[row, column]]


@each_model
@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_fits_gives_finite_maps_on_the_grid(name: str, method: str) -> None:
    model = MODELS[name]()
    if METHODS[method].missing(find_tower(model)):
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
def test_the_configured_attention_implementation_changes_no_map(name: str, implementation: str, method: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method=method).maps
    model.vision_model.config._attn_implementation = implementation  # flash attention is not installed

    assert_equal_up_to_rounding(explain(model, images, text, method=method).maps, expected)
    assert model.vision_model.config._attn_implementation == implementation


@each_model
def test_the_attention_implementation_is_restored_after_an_exception(name: str) -> None:
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
def test_output_options_of_the_configuration_change_no_map(name: str, option: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="gae").maps
    model.set_attn_implementation("eager")
    for config in (model.config, model.vision_model.config):
        setattr(config, option, option != "return_dict")

    assert_equal_up_to_rounding(explain(model, images, text, method="gae").maps, expected)


@each_model
def test_outputs_of_transformers_4_give_the_same_maps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[name]()
    images, prompts = images_for(model), ["a red circle"]
    expected = explain(find_clip(model, tokenizer=tokenizer()), images, prompts, method="gae")
    for method in ("get_image_features", "get_text_features"):
        monkeypatch.setattr(model, method, _return_tensor(getattr(model, method)))

    explanation = explain(find_clip(model, tokenizer=tokenizer()), images, prompts, method="gae")

    assert torch.equal(explanation.maps, expected.maps)
    assert torch.equal(explanation.similarity, expected.similarity)


def _return_tensor(version_5: Callable[..., Any]) -> Callable[..., Tensor]:
    return wraps(version_5)(lambda *args, **kwargs: version_5(*args, **kwargs).pooler_output)


@pytest.mark.parametrize("name", [*CLASS_TOKEN, "siglip"])
def test_another_size_is_embedded_with_positions_that_the_model_interpolates(name: str) -> None:
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 2 * PATCH, 6 * PATCH)

    embedded = find_tower(model).encode(images)

    expected = model.get_image_features(pixel_values=images, interpolate_pos_encoding=True).pooler_output
    assert torch.equal(embedded, expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@each_model
def test_a_larger_scale_has_a_finer_grid(name: str) -> None:
    model = MODELS[name]()
    assert explain(model, images_for(model), torch.randn(1, WIDTH), scales=(2.0,)).maps.shape == (2, 1, 8, 8)


@each_model
def test_frozen_and_checkpointed_models_give_the_same_maps(name: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    trainable = explain(model, images, text, layers=0, method="hirescam").maps

    checkpointed = explain(model, images, text, layers=0, method="hirescam", checkpointing=True).maps
    frozen = explain(model.requires_grad_(False), images, text, layers=0, method="hirescam").maps

    assert_equal_up_to_rounding(checkpointed, trainable)
    assert_equal_up_to_rounding(frozen, trainable)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("dual")])  # which cannot checkpoint
def test_checkpointing_and_dropout_of_a_model_in_training_change_no_map(name: str) -> None:
    model = MODELS[name](attention_dropout=0.5)
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="gae").maps
    model.gradient_checkpointing_enable()
    model.train()

    assert_equal_up_to_rounding(explain(model, images, text, method="gae").maps, expected)
    assert model.training
    assert model.vision_model.encoder.layers[0].gradient_checkpointing


@each_model
def test_lora_weights_influence_the_map_frozen_or_not(name: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    plain = explain(model, images, text, layers=-1).maps
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))

    trainable = explain(adapted, images, text, layers=-1).maps
    frozen = explain(adapted.requires_grad_(False), images, text, layers=-1).maps

    assert not torch.allclose(trainable, plain, atol=1e-4)
    assert_equal_up_to_rounding(frozen, trainable)


@one_of_each_pooling
@pytest.mark.parametrize("wrap", ["compiled", "lora"])
def test_a_wrapped_tower_inside_a_plain_clip_gives_the_same_maps(name: str, wrap: str) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="gae").maps
    if wrap == "compiled":
        model.vision_model = torch.compile(model.vision_model, backend="eager")
    else:  # has no effect yet
        model.vision_model = get_peft_model(model.vision_model, LoraConfig(target_modules=["q_proj", "out_proj"], r=2))

    explanation = explain(model, images, text, method="gae")

    assert_equal_up_to_rounding(explanation.maps, expected)
    assert explanation.layers[0] in dict(model.named_modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@one_of_each_pooling
def test_half_and_double_precision_give_nearly_the_same_maps(name: str, dtype: torch.dtype) -> None:
    model = MODELS[name]()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="hirescam").maps

    maps = explain(model.to(dtype), images, text, method="hirescam").maps

    assert maps.dtype == torch.float32
    assert_close(maps, expected, atol=0.05 if dtype == torch.bfloat16 else 1e-6, rtol=0.2)


def test_a_siglip_without_a_vision_head_fits_no_tower() -> None:
    with pytest.raises(TowerError, match="no tower fits SiglipModel"):
        find_clip(siglip(vision_use_head=False))


def test_only_siglip_2_takes_patches() -> None:
    towers = {name: find_tower(make()) for name, make in MODELS.items()}

    assert {name for name, tower in towers.items() if type(tower) is HuggingFaceNaFlexViT} == {"siglip 2"}
    assert {name for name, tower in towers.items() if type(tower) is HuggingFaceViT} == {*MODELS} - {"siglip 2"}


def test_patches_are_cut_as_by_the_processor_of_siglip_2() -> None:
    images = torch.randn(2, 3, 2 * PATCH, 5 * PATCH)

    patches = cut_into_patches(images, PATCH)

    assert torch.equal(patches, torch.stack([convert_image_to_patches(image, PATCH) for image in images]))


@pytest.mark.parametrize("size", [(PATCH + 1, PATCH), (PATCH, 3), (0, PATCH)])
def test_images_that_are_not_whole_patches_are_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=rf"whole patches of 8x8 pixels \(got {size[0]}x{size[1]}\)"):
        find_tower(siglip2()).encode(torch.randn(1, 3, *size))


def make_padded_batch(images: list[Tensor]) -> Any:
    """Cut images of several sizes into patches and pad them with the real processor, without changing pixels."""
    processor = Siglip2ImageProcessor(
        patch_size=PATCH, max_num_patches=20, do_resize=False, do_rescale=False, do_normalize=False
    )
    return processor(images=images, return_tensors="pt")


def test_unpad_images_restores_the_images_of_a_padded_batch() -> None:
    images = [torch.randn(3, height * PATCH, width * PATCH) for height, width in ((2, 5), (4, 3), (1, 20))]
    batch = make_padded_batch(images)

    restored = unpad_images(batch["pixel_values"], batch["spatial_shapes"], PATCH)

    assert all(torch.equal(own, image) for own, image in zip(restored, images, strict=True))


def test_unpadded_images_have_the_similarity_of_the_padded_batch() -> None:
    model = siglip2()
    images = [torch.randn(3, height * PATCH, width * PATCH) for height, width in ((2, 5), (4, 3), (4, 4))]
    batch, text = make_padded_batch(images), torch.randn(WIDTH)
    together = F.cosine_similarity(model.get_image_features(**batch).pooler_output, text, dim=-1)

    apart = torch.cat([find_tower(model).encode(image[None]) for image in unpad_images(
        batch["pixel_values"], batch["spatial_shapes"], PATCH
    )])  # fmt: skip

    assert batch["pixel_attention_mask"].min() == 0, "the test needs padding"
    assert_close(F.cosine_similarity(apart, text, dim=-1), together, atol=1e-5, rtol=0)


def test_maps_of_a_padded_batch_equal_those_of_its_images_alone() -> None:
    model, text = siglip2(), torch.randn(1, WIDTH)
    images = [torch.randn(3, height * PATCH, width * PATCH) for height, width in ((2, 5), (4, 3))]

    together = explain(model, make_padded_batch(images), text, method="hirescam")

    for i, image in enumerate(images):
        alone = explain(model, image[None], text, method="hirescam")
        assert_equal_up_to_rounding(together.maps_of(i), alone.maps[0])
        assert alone.maps.shape[2:] == (image.shape[1] // PATCH, image.shape[2] // PATCH)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_output_of_an_image_processor_is_explained_like_its_tensor(name: str) -> None:
    model, text = MODELS[name](), torch.randn(1, WIDTH)
    side = {"height": 4 * PATCH, "width": 4 * PATCH}
    image = torch.randint(256, (3, 50, 70), dtype=torch.uint8)
    batch = SiglipImageProcessor(size=side)(images=image, return_tensors="pt")

    assert_close(explain(model, batch, text).maps, explain(model, batch["pixel_values"], text).maps)


@pytest.mark.parametrize(
    ("name", "expected"), [("clip", "pixel_values"), ("siglip 2", "pixel_values and spatial_shapes")]
)
@pytest.mark.parametrize(
    ("batch", "actual"), [({}, "got nothing"), ({"pixel_values": [[0.0]]}, "got pixel_values: list")]
)
def test_a_mapping_without_images_is_rejected(
    name: str, expected: str, batch: dict[str, Any], actual: str, unchecked: None
) -> None:
    with pytest.raises(ConfigError, match=rf"expected the tensors {expected}, .*return_tensors='pt' \({actual}"):
        find_tower(MODELS[name]()).unpack(batch)


@pytest.mark.parametrize(("values", "shape"), [(3 * 7 * 7, (2, 2)), (3 * PATCH**2, (3, 2))])
def test_patches_that_do_not_match_their_shapes_are_rejected(values: int, shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"expected patches \[n, s, 3 \* 8 \* 8\].*got \(1, 5, .*spatial_shapes"):
        unpad_images(torch.randn(1, 5, values), torch.tensor([shape]), PATCH)


@pytest.mark.slow
def test_the_towers_do_not_import_transformers() -> None:
    program = "import sys; sys.modules['transformers'] = None; import clipcam_lightning.cam.finding"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_lora_without_effect_on_the_projection_keeps_the_decomposition() -> None:
    model = clip()
    images, text = images_for(model), torch.randn(1, WIDTH)
    expected = explain(model, images, text, method="decomposition").maps

    adapted = get_peft_model(model, LoraConfig(target_modules=["visual_projection", "out_proj"], r=2))

    assert_equal_up_to_rounding(explain(adapted, images, text, method="decomposition").maps, expected)


@pytest.mark.parametrize("build", [clip, siglip2])
def test_a_model_for_images_of_four_channels_is_refused(build: Callable[..., nn.Module]) -> None:
    with pytest.raises(TowerError, match=r"takes images of 4 channels \(expected 3, RGB\)"):
        find_tower(build(num_channels=4))
