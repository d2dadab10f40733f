"""A wrapped CLIP of any library gives the maps of the CLIP itself."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import tests.support.zoo.huggingface
import tests.support.zoo.open_clip
import tests.support.zoo.openai
import tests.support.zoo.timm
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.towers import find_tower

pytestmark = pytest.mark.slow

MODELS = {
    "open_clip": tests.support.zoo.open_clip.MODELS["cls"],
    "openai": tests.support.zoo.openai.MODELS["openai vit"],
    "timm vit": tests.support.zoo.timm.MODELS["siglip"],
    "timm convnext": tests.support.zoo.timm.MODELS["convnext"],
    "huggingface": tests.support.zoo.huggingface.MODELS["clip"],
}
LORA_TARGETS = {
    "open_clip": ["attn", "c_fc"],
    "openai": ["attn", "c_fc"],
    "timm vit": ["qkv", "fc1"],
    "huggingface": ["q_proj", "v_proj", "fc1"],
}
TESTED_METHODS = ("gradcam", "gae", "maskclip")  # a gradient, attention with a gradient, attention alone


def draw_inputs(model: nn.Module) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, *find_tower(model).input_size), torch.randn(2, 16)


def compute_maps(model: nn.Module, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
    """Compute the maps of those tested methods that fit."""
    tower = find_clip(model).tower
    fitting = [method for method in TESTED_METHODS if not METHODS[method].missing(tower)]
    return {method: explain(model, images, texts, method=method).maps for method in fitting}


@pytest.mark.parametrize("form", ["torch.compile(model)", "model.compile()", "compiled method", "compiled tower"])
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_model_gives_the_eager_maps(name: str, form: str) -> None:
    model: Any = MODELS[name]()
    images, texts = draw_inputs(model)
    expected = compute_maps(model, images, texts)
    embeds = "encode_image" if hasattr(model, "encode_image") else "get_image_features"
    vision = "visual" if hasattr(model, "visual") else "vision_model"
    compiled = model
    if form == "torch.compile(model)":
        compiled = torch.compile(model, backend="eager")
    elif form == "model.compile()":
        model.compile(backend="eager")
        getattr(model, vision).compile(backend="eager")
    elif form == "compiled method":
        setattr(model, embeds, torch.compile(getattr(model, embeds), backend="eager"))
    else:
        setattr(model, vision, torch.compile(getattr(model, vision), backend="eager"))
    with torch.no_grad():
        getattr(compiled, embeds)(images)  # compiles before any hook is registered

    assert_close(compute_maps(compiled, images, texts), expected, atol=1e-7, rtol=1e-4)


# PEFT uses the name of transformers 4 with transformers 5.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("on", ["the model", "the tower"])
@pytest.mark.parametrize("name", LORA_TARGETS)
def test_lora_gives_the_maps_of_the_merged_weights(name: str, on: str) -> None:
    model: Any = MODELS[name]()
    images, texts = draw_inputs(model)
    before = compute_maps(model, images, texts)
    config = LoraConfig(target_modules=LORA_TARGETS[name], r=2, init_lora_weights=False)
    if on == "the model":
        adapted = get_peft_model(model, config)
        merged = copy.deepcopy(adapted).merge_and_unload()
    else:
        vision = "visual" if hasattr(model, "visual") else "vision_model"
        wrapped = get_peft_model(getattr(model, vision), config)
        merged = copy.deepcopy(model)
        setattr(merged, vision, copy.deepcopy(wrapped).merge_and_unload())
        setattr(model, vision, wrapped)
        adapted = model

    adapted_maps = compute_maps(adapted, images, texts)

    assert_close(adapted_maps, compute_maps(merged, images, texts), atol=1e-6, rtol=1e-3)
    for method, maps in before.items():
        assert (adapted_maps[method] - maps).abs().max() > 0.1 * maps.abs().max(), "the test needs LoRA to have effect"


@pytest.mark.parametrize("name", ["open_clip", "openai"])
def test_the_output_projection_of_a_block_includes_its_lora(name: str) -> None:
    """Only the change by LoRA: PEFT merges it twice into an ``nn.MultiheadAttention`` (huggingface/peft#3774)."""
    model, heads = MODELS[name](), torch.randn(2, 9, 32)
    plain = find_tower(model).project(0, heads)
    adapted = get_peft_model(model, LoraConfig(target_modules=["attn"], r=2, init_lora_weights=False))
    layer = model.visual.transformer.resblocks[0].attn.base_layer.out_proj

    projected = find_clip(adapted).tower.project(0, heads)

    low_rank = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    assert_close(projected - plain, heads @ low_rank.T, atol=1e-5, rtol=1e-4)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", MODELS)
def test_a_distributed_model_gives_the_same_maps_and_no_gradient(name: str, one_process: None) -> None:
    model = MODELS[name]()
    images, texts = draw_inputs(model)
    expected = compute_maps(model, images, texts)

    distributed = compute_maps(DistributedDataParallel(model), images, texts)

    assert_close(distributed, expected, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_the_clip_is_found_below_several_wrappers(name: str) -> None:
    """Compiled, and then two modules deep as in a LightningModule."""
    model = MODELS[name]()
    wrapped = nn.ModuleDict({"outer": nn.ModuleDict({"clip": torch.compile(model, backend="eager")})})

    clip = find_clip(wrapped)

    assert clip.module is model
    assert clip.name == "outer.clip._orig_mod"


@pytest.mark.parametrize("name", ["open_clip", "openai"])
def test_lora_on_multi_head_attention_keeps_its_weights_to_the_bit(name: str) -> None:
    """There PEFT merges and unmerges in every forward, which leaves rounding errors in the weights."""
    plain = MODELS[name]()
    images, texts = draw_inputs(plain)
    model = get_peft_model(plain, LoraConfig(target_modules=["attn"], r=2, init_lora_weights=False))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}

    explain(model, images, texts)

    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with torch.no_grad():
        find_clip(model).module.encode_image(images)
    changed = any(not torch.equal(value, before[key]) for key, value in model.named_parameters())
    assert changed, "PEFT has fixed it: remove the workaround in model_state"
