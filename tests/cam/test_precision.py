"""Models of every float type, with parts of several types, and with weights that autograd refuses, have their maps."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import convert_weights_to_lp
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as QuantizedLinear
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.precision import PromotedTypes, find_input_type
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.errors import ConfigError, ModelError, TowerError
from clipcam_lightning.monitoring.explainer import embed_within_memory
from clipcam_lightning.shapes_world.models import WordTokenizer, model_input, trained_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.zoo import huggingface
from tests.support.zoo.open_clip import MODELS, resnet, vit
from tests.support.zoo.timm import siglip

# What differs between types by more than rounding: quotients of small numbers, thresholds, and the sign of a component.
ILL_CONDITIONED = ("xgradcam", "ablationcam", "fem", "eigencam", "eigengradcam")
PER_CAPTURE = ("gradcam", "shapleycam", "attnlrp", "eigencam", "occlusion", "gae", "legrad", "grad_eclip",
               "decomposition", "maskclip", "gem")  # fmt: skip

Change = Callable[[nn.Module], nn.Module]


def convert_like_open_clip(dtype: torch.dtype) -> Change:
    """Convert as ``create_model(precision=...)`` does: not the norms, the class token and the positions."""

    def convert(model: nn.Module) -> nn.Module:
        convert_weights_to_lp(model, dtype)
        return model

    return convert


PRECISIONS: dict[str, Change] = {
    "bf16": convert_like_open_clip(torch.bfloat16),
    "fp16": convert_like_open_clip(torch.float16),
    "pure_bf16": lambda model: model.bfloat16(),
    "pure_fp16": lambda model: model.half(),
}


def fitting_methods(model: nn.Module) -> list[str]:
    tower = find_clip(model).tower
    return [name for name, method in METHODS.items() if not method.missing(tower)]


def inputs_of(model: nn.Module) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, *find_clip(model).tower.input_size), torch.randn(2, 16)


def correlate(maps: Tensor, others: Tensor) -> float:
    """Return the smallest correlation of a map with its counterpart."""
    rows = zip(maps.flatten(2).flatten(0, 1), others.flatten(2).flatten(0, 1), strict=True)
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in rows)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_maps_of_a_trained_clip_hardly_depend_on_its_precision(precision: str) -> None:
    model = trained_clip("vit").eval()
    images = model_input(torch.from_numpy(draw_scenes(2, seed=3).images), 64)
    texts = torch.randn(2, 64)
    names = [name for name in fitting_methods(model) if name not in ILL_CONDITIONED]
    expected = {name: explain(model, images, texts, method=name).maps for name in names}

    converted = PRECISIONS[precision](model)

    for name in names:
        maps = explain(converted, images, texts, method=name).maps
        assert correlate(maps, expected[name]) > 0.97, name


@pytest.mark.parametrize("name", ["attention pool", "own attention", "resnet", "coca"])
def test_every_method_fits_a_tower_in_the_mixed_precision_of_open_clip(name: str) -> None:
    torch.manual_seed(0)
    model = convert_like_open_clip(torch.bfloat16)(MODELS[name]())
    images, texts = inputs_of(model)

    for method in fitting_methods(model):
        maps = explain(model, images, texts, method=method).maps
        assert maps.dtype == torch.float32
        assert maps.isfinite().all(), method


def convert_vision(model: Any) -> nn.Module:
    """Leave the projection in float32, as for training it alone."""
    model.vision_model.bfloat16()
    return model


def convert_blocks(model: Any) -> nn.Module:
    model.visual.trunk.blocks.half()
    return model


def convert_head(model: Any) -> nn.Module:
    model.visual.proj.data = model.visual.proj.double()
    return model


@pytest.mark.parametrize(
    ("build", "convert"), [(huggingface.clip, convert_vision), (siglip, convert_blocks), (vit, convert_head)]
)
def test_parts_of_different_types_work_together_without_autocast(build: Callable[[], Any], convert: Change) -> None:
    torch.manual_seed(0)
    model = build()
    (images, texts), methods = inputs_of(model), fitting_methods(model)
    stable = [name for name in methods if name not in (*ILL_CONDITIONED, "scorecam", "cluster_occlusion", "cci")]
    expected = {name: explain(model, images, texts, method=name).maps for name in stable}
    mixed = convert(model)
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        find_clip(mixed).tower.encode(images.to(find_clip(mixed).dtype))

    for name in stable:
        assert correlate(explain(mixed, images, texts, method=name).maps, expected[name]) > 0.97, name


def test_operands_of_one_type_keep_it_and_others_are_promoted() -> None:
    layer, tokens = nn.Linear(4, 4, dtype=torch.bfloat16), torch.randn(2, 4)
    with PromotedTypes():
        plain, mixed = layer(tokens.bfloat16()), layer(tokens)
        product = tokens.half() @ torch.randn(4, 2).bfloat16()

    assert (plain.dtype, mixed.dtype, product.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(plain, layer(tokens.bfloat16()))
    assert_close(mixed, F.linear(tokens, layer.weight.float(), layer.bias.float()))


def test_pixels_have_the_type_of_the_first_layer_and_not_of_the_first_parameter() -> None:
    model = convert_like_open_clip(torch.bfloat16)(vit())

    assert next(model.visual.parameters()).dtype == torch.float32  # the class token
    assert find_input_type(model.visual) == torch.bfloat16
    assert find_input_type(nn.LayerNorm(2, dtype=torch.float64)) == torch.float64
    assert find_input_type(nn.Identity()) == torch.float32


@pytest.mark.parametrize("build", [vit, resnet])
def test_weights_made_in_inference_mode_give_the_same_maps_and_stay(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    with torch.inference_mode():
        inferred = deepcopy(model)
    images, texts = inputs_of(model)
    own = dict([*inferred.named_parameters(), *inferred.named_buffers()])

    for method in [name for name in PER_CAPTURE if name in fitting_methods(model)]:
        maps = explain(inferred, images, texts, method=method).maps
        assert_close(maps, explain(model, images, texts, method=method).maps, atol=0, rtol=0)
    after = dict([*inferred.named_parameters(), *inferred.named_buffers()])
    assert all(after[name] is value and value.is_inference() for name, value in own.items())


def quantize(layer: nn.Linear) -> QuantizedLinear:
    layer.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return QuantizedLinear.from_float(layer)


@pytest.mark.filterwarnings("ignore:.*quantization.*:DeprecationWarning", "ignore:.*:UserWarning")
@pytest.mark.parametrize(("build", "parts"), [(vit, ("c_fc", "c_proj")), (siglip, ("qkv", "proj", "fc1", "fc2"))])
def test_quantized_layers_give_the_maps_of_their_dequantized_weights(
    build: Callable[[], nn.Module], parts: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    model = build()
    quantized = deepcopy(model)
    for name, layer in [*model.visual.named_modules()]:
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in parts:
            replacement = quantize(deepcopy(layer))
            quantized.visual.set_submodule(name, replacement)
            layer.weight.data = replacement.weight().dequantize()
    images, texts = inputs_of(model)

    for method in [name for name in PER_CAPTURE if name in fitting_methods(model)]:
        maps = explain(quantized, images, texts, method=method).maps
        assert_close(maps, explain(model, images, texts, method=method).maps, msg=method)
    assert not any("forward" in vars(module) for module in quantized.modules())


def test_weights_without_values_are_refused_with_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"meta device.*positional_embedding.*load_state_dict"):
        explain(vit().to("meta"), torch.randn(1, 3, 16, 32), torch.randn(1, 16))


def test_autocast_around_a_mixed_model_changes_no_map() -> None:
    model = convert_like_open_clip(torch.bfloat16)(vit())
    images, texts = inputs_of(model)
    expected = explain(model, images, texts, method="hirescam").maps

    with torch.autocast("cpu", torch.bfloat16):
        maps = explain(model, images, texts, method="hirescam").maps

    assert_close(maps, expected, atol=0, rtol=0)


def test_texts_are_embedded_with_parts_of_different_types() -> None:
    model: Any = huggingface.clip()
    model.text_projection.double()
    clip = find_clip(model, tokenizer=huggingface.tokenizer())

    with torch.no_grad(), evaluation_mode(model):
        texts = clip.embed_texts(["a red circle"])

    assert texts.dtype == torch.float32
    assert texts.norm().item() == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_model_is_refused_with_what_to_do() -> None:
    model = open_clip.CLIP(16, **{
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1},
    }).eval()  # fmt: skip

    with pytest.raises(TowerError, match=r"TorchScript program.*jit=False"):
        find_clip(torch.jit.script(model))


def correlate_with_float32(tower: str, method: str) -> Tensor:
    """Correlate the maps of scenes in bfloat16 with those in float32; with the caption of another scene each."""
    scenes = draw_scenes(2 if METHODS[method].variants else 8, seed=3)
    clip = find_clip(trained_clip(tower), tokenizer=WordTokenizer())
    images = model_input(torch.from_numpy(scenes.images), clip.tower.input_size[0])
    prompts = [[own, scenes.captions[i - 1]] for i, own in enumerate(scenes.captions)]
    maps, exact = (
        explain(clip, images, prompts, method=method, precision=precision).maps.flatten(2).flatten(0, 1)
        for precision in ("bfloat16", "float32")
    )
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(maps, exact, strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_maps_in_bfloat16_resemble_those_in_float32(tower: str) -> None:
    names = [name for name in fitting_methods(trained_clip(tower)) if (tower, name) != ("vit", "xgradcam")]

    medians = {name: float(correlate_with_float32(tower, name).nanmedian()) for name in names}

    assert min(medians.values()) > 0.99, medians


@pytest.mark.parametrize("build", [MODELS["average"], MODELS["own attention"], MODELS["coca"], resnet, siglip,
                                   huggingface.MODELS["clip"], huggingface.MODELS["siglip"]])  # fmt: skip
def test_every_tower_and_pass_can_compute_in_bfloat16(build: Callable[[], nn.Module]) -> None:
    model = build()
    images, texts = inputs_of(model)

    for name in (name for name in PER_CAPTURE if name in fitting_methods(model)):
        maps = explain(model, images, texts, method=name, precision="bfloat16").maps
        assert maps.dtype == torch.float32
        assert maps.isfinite().all(), name


@pytest.mark.parametrize("weights", ["bf16", "pure_fp16"])
def test_models_in_half_precision_can_compute_in_bfloat16(weights: str) -> None:
    model = PRECISIONS[weights](vit())
    images, texts = inputs_of(model)

    for name in (name for name in PER_CAPTURE if name in fitting_methods(model)):
        assert explain(model, images, texts, method=name, precision="bfloat16").maps.isfinite().all(), name


def test_only_the_image_tower_computes_in_bfloat16(shapes_vit: open_clip.CLIP) -> None:
    types: dict[str, torch.dtype] = {}
    parts = {"image": shapes_vit.visual, "text": shapes_vit.transformer}
    handles = [
        part.get_submodule(f"{'transformer.' if name == 'image' else ''}resblocks.0.mlp.c_fc").register_forward_hook(
            lambda _module, _inputs, output, name=name: types.update({name: output.dtype})
        )
        for name, part in parts.items()
    ]
    clip = find_clip(shapes_vit, tokenizer=WordTokenizer())
    images = torch.randn(2, 3, 64, 64)

    explanation = explain(clip, images, ["a red circle"], precision="bfloat16")
    embedded = embed_within_memory(clip, images, MapSettings(precision="bfloat16"))
    for handle in handles:
        handle.remove()

    assert types == {"image": torch.bfloat16, "text": torch.float32}
    assert explanation.precision == "bfloat16"
    assert {explanation.maps.dtype, explanation.similarity.dtype, embedded.dtype} == {torch.float32}
    assert_close(embedded @ clip.embed_texts(["a red circle"]).T, explanation.similarity, atol=1e-3, rtol=0)
    assert not torch.equal(embedded, embed_within_memory(clip, images, MapSettings()))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_precision_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"precision must be one of float32, bfloat16 \(got 'float16'\)"):
        MapSettings(precision="float16")  # type: ignore[arg-type]
