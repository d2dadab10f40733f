"""Methods that propagate relevance, compared with a propagation that uses no gradient, and with theorems."""

from collections.abc import Callable

import open_clip
import pytest
import torch
from peft import IA3Config, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.capture import AttentionCapture, Capture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.rules import AttnLrpRules, ConstantNormalizers
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.errors import ConfigError
from tests.oracles.randomize import randomize_parameters
from tests.oracles.relevance import RelevanceViT, sum_centred
from tests.support.tolerances import assert_equal_up_to_rounding
from tests.support.zoo.open_clip import vit

MODELS: dict[str, Callable[[], open_clip.CLIP]] = {
    "class token": vit,
    "class token, layer scale": lambda: vit(ls_init_value=0.3),
    "mean": lambda: vit(pool_type="avg"),
    "norm after the mean": lambda: vit(pool_type="avg", final_ln_after_pool=True),
    "attention": lambda: vit(attentional_pool=True, attn_pooler_queries=2, attn_pooler_heads=2),
}


@pytest.mark.parametrize("name", MODELS)
def test_attnlrp_equals_a_propagation_of_relevance_from_layer_to_layer(name: str) -> None:
    model = randomize_parameters(MODELS[name]()).double()
    images, texts = torch.randn(2, 3, 16, 32), torch.randn(3, 16)
    reference = RelevanceViT(model.visual)

    maps = explain(model, images, texts, method="attnlrp").maps

    expected = torch.stack([torch.stack([propagate(reference, image, text) for text in texts]) for image in images])
    assert_equal_up_to_rounding(maps, expected.float())
    assert expected.min() < 0 < expected.max()


@pytest.mark.parametrize("name", MODELS)
def test_the_relevance_at_each_block_equals_a_propagation(name: str) -> None:
    """Of a block's input, all tokens but the class token are patches."""
    model = randomize_parameters(MODELS[name]()).double()
    image, text = torch.randn(1, 3, 16, 32), torch.randn(1, 16)
    reference = RelevanceViT(model.visual)

    maps = explain(model, image, text, method="attnlrp", layers=1).maps[0, 0]

    tokens, relevance = reference.at_block(image[0], text[0], 1)
    assert_equal_up_to_rounding(maps, sum_centred(tokens[1:], relevance[1:], reference.grid).float())


@pytest.mark.parametrize("final_norm", [True, False])
def test_input_x_gradient_of_a_linear_tower_is_the_summand_of_each_patch(final_norm: bool) -> None:
    """The mean of the patches, normed or not, is linear once the norm's deviation is constant."""
    torch.manual_seed(1)
    model = randomize_parameters(vit(layers=1, pool_type="avg", final_ln_after_pool=final_norm)).double()
    block = model.visual.transformer.resblocks[0]
    nn.init.zeros_(block.attn.out_proj.weight)  # the block adds constants
    nn.init.zeros_(block.mlp.c_proj.weight)
    image, text = torch.randn(1, 3, 16, 32), torch.randn(1, 16)

    maps = explain(model, image, text, method="input_x_gradient").maps[0, 0]

    visual, width = model.visual, 32
    with torch.no_grad():
        patches = visual.conv1(image.double())[0].flatten(1).T  # [s, d]
        placed = patches + visual.positional_embedding[1:]
        tokens = visual.ln_pre(placed) + block.attn.out_proj.bias + block.mlp.c_proj.bias
        centre = torch.eye(width) - 1 / width
        pooled = tokens.mean(dim=0, keepdim=True) if final_norm else tokens
        first, last = (
            norm.weight[:, None] * centre / (each.var(dim=1, unbiased=False) + norm.eps).sqrt()[:, None, None]
            for norm, each in ((visual.ln_pre, placed), (visual.ln_post, pooled))
        )
        features = visual.ln_post(pooled).mean(dim=0) @ visual.proj
        direction = visual.proj @ (text[0].double() / text[0].double().norm() / features.norm()) / len(patches)
        expected = ((patches - patches.mean(dim=0))[:, None] @ first.mT @ last.mT @ direction)[:, 0]
    assert_equal_up_to_rounding(maps, expected.float().view(maps.shape))
    assert maps.abs().max() > 1e-3


def test_a_norm_without_constant_divisor_has_another_gradient() -> None:
    model = randomize_parameters(vit()).double()
    image, text = torch.randn(1, 3, 16, 32), torch.randn(1, 16)

    true, constant = (
        explain(model, image, text, method=Method(gradients, rules=rules), layers="visual.conv1").maps
        for rules in (None, ConstantNormalizers)
    )

    assert (true - constant).norm() > 0.1 * true.norm()


def gradients(capture: Capture) -> Tensor:
    return capture.gradients.sum(dim=2)


@pytest.mark.parametrize("activation", [F.gelu, F.silu, F.relu, F.mish, nn.ELU(inplace=True), torch.square])
def test_an_activation_function_passes_relevance_on_unchanged(activation: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 0.7, 3.0], dtype=torch.float64, requires_grad=True)

    with AttnLrpRules():
        y = activation(x + 0)

    assert_close(y, activation(x + 0))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert_close(x * gradient, y)
    assert gradient.isfinite().all()


def test_quick_gelu_and_gated_units_divide_relevance_by_the_rules() -> None:
    x, gate = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)

    with AttnLrpRules():
        quick, gated = x * torch.sigmoid(1.702 * x), x * F.silu(gate)

    (of_x,) = torch.autograd.grad(quick.sum(), x)
    assert_close(x * of_x, quick)
    of_x, of_gate = torch.autograd.grad(gated.sum(), (x, gate))
    assert_close(x * of_x, gated / 2)
    assert_close(gate * of_gate, gated / 2)


def test_hand_written_norms_follow_the_rules() -> None:
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    operations: dict[str, Callable[[], Tensor]] = {
        "length": lambda: x / x.norm(dim=-1, keepdim=True),
        "length in place": lambda: (x + 0).div_(x.norm(dim=-1, keepdim=True)),
        "reciprocal": lambda: x * (1 / x.norm(dim=-1, keepdim=True)),
        "deviation": lambda: x * x.square().mean(dim=-1, keepdim=True).rsqrt(),
        "negative power": lambda: x * x.pow(2).mean(dim=-1, keepdim=True) ** -0.5,
        "RMS norm": lambda: F.rms_norm(x, (6,)),
    }
    for name, operation in operations.items():
        for rules in (ConstantNormalizers, AttnLrpRules):
            with rules():
                y = operation()
            assert_close(y, operation(), msg=name)
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert_close((x * gradient).sum(), y.sum(), msg=name)


def test_a_group_norm_is_a_layer_norm_of_each_group() -> None:
    x, weight, bias = (
        torch.randn(2, 6, 3, 4).double().requires_grad_(),
        torch.randn(6).double(),
        torch.randn(6).double(),
    )
    chosen = torch.randn(2, 6, 3, 4).double()

    with ConstantNormalizers():
        whole = F.group_norm(x, 2, weight, bias)
        parts = torch.cat([F.layer_norm(part, (3, 3, 4)) for part in x.chunk(2, dim=1)], dim=1)

    assert_close(whole, F.group_norm(x, 2, weight, bias))
    (of_whole,) = torch.autograd.grad((whole * chosen).sum(), x)
    (of_parts,) = torch.autograd.grad((parts * weight[:, None, None] * chosen).sum(), x)
    assert_close(of_whole, of_parts)


def test_each_factor_of_a_product_gets_an_equal_share() -> None:
    x, other = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(4, 4, dtype=torch.float64)
    operations: dict[str, Callable[[], Tensor]] = {
        "matrices": lambda: x @ other.T,
        "mm": lambda: x.mm(other),
        "named factor": lambda: torch.mul(x, other=other),
        "sum with a product": lambda: torch.addmm(zero, x, other),
        "sum with products of elements": lambda: torch.addcmul(zero, x, other),
        "einsum": lambda: torch.einsum("ij,jk->ik", x, other),
        "einsum of a list": lambda: torch.einsum("ij,jk->ik", [x, other]),
        "in place": lambda: (x + 0).mul_(other),
        "in place, by operator": lambda: multiply_in_place(x + 0, other),
        "gated by SiLU": lambda: x * F.silu(other),
        "gated by GELU": lambda: x * F.gelu(other, approximate="tanh"),
    }
    for name, operation in operations.items():
        with AttnLrpRules():
            y = operation()
        assert_close(y, operation(), msg=name)
        for each, gradient in zip((x, other), torch.autograd.grad(y.sum(), (x, other)), strict=True):
            assert_close((each * gradient).sum(), y.sum() / 2, msg=name)
    with AttnLrpRules():
        y = torch.einsum("ij,jk,kl->il", x, other, x)
    (of_x, of_other) = torch.autograd.grad(y.sum(), (x, other))
    assert_close((x * of_x).sum(), y.sum() * 2 / 3)
    assert_close((other * of_other).sum(), y.sum() / 3)


def multiply_in_place(x: Tensor, other: Tensor) -> Tensor:
    x.mul_(other)  # the result is in x alone
    return x


def test_a_sigmoid_gate_leaves_all_relevance_to_the_other_factor() -> None:
    x, gate = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    operations: dict[str, Callable[[], Tensor]] = {
        "product": lambda: x * torch.sigmoid(gate),
        "gated linear unit": lambda: F.glu(torch.cat([x, gate], dim=-1)),
    }
    for name, operation in operations.items():
        with AttnLrpRules():
            y = operation()
        assert_close(y, operation(), msg=name)
        of_x, of_gate = torch.autograd.grad(y.sum(), (x, gate), allow_unused=True, materialize_grads=True)
        assert_close(x * of_x, y, msg=name)
        assert not of_gate.any(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_keep_large_values(dtype: torch.dtype) -> None:
    x = torch.randn(3, 64).to(dtype)
    x[:, 0] = 400  # its square is more than float16 can hold
    expected = F.layer_norm(x, (64,))

    with AttnLrpRules():
        y = F.layer_norm(x, (64,))

    assert y.dtype == dtype
    assert_close(y, expected, atol=1e-2, rtol=1e-2)


def test_the_target_is_differentiated_without_the_rules() -> None:
    model, image, text = randomize_parameters(vit()), torch.randn(1, 3, 16, 32), torch.randn(2, 16)
    plain = explain(model, image, text, method="attnlrp")

    squared = explain(model, image, text, method="attnlrp", target=Squared()).maps

    assert_equal_up_to_rounding(squared, 2 * plain.similarity[..., None, None] * plain.maps)


class Squared(Target):
    name = "squared"

    def __call__(self, similarity: Tensor, prompts: int) -> Tensor:
        return similarity * similarity


@pytest.mark.parametrize("method", ["attnlrp", "input_x_gradient"])
def test_weights_that_are_computed_from_parameters_are_no_activations(method: str) -> None:
    model, image, text = randomize_parameters(vit()), torch.randn(1, 3, 16, 32), torch.randn(1, 16)
    adapted = get_peft_model(model, IA3Config(target_modules=["c_proj"], feedforward_modules=["c_proj"]))
    for name, parameter in adapted.named_parameters():
        if "ia3" in name:
            nn.init.normal_(parameter, 1.0, 0.5)

    trainable = explain(adapted, image, text, method=method).maps
    assert any(parameter.requires_grad for parameter in adapted.parameters())
    frozen = explain(adapted.requires_grad_(False), image, text, method=method).maps

    assert_equal_up_to_rounding(trainable, frozen)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_operations_that_cannot_be_intercepted_are_refused_with_the_methods_that_fit() -> None:
    model, image, text = vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 16)
    for block in model.visual.transformer.resblocks:
        block.mlp.gelu = torch.jit.script(nn.GELU())

    with pytest.raises(
        ConfigError, match=r"no rule for GeluBackward0, .*without rules: gradcam, .*integrated_gradients"
    ):
        explain(model, image, text, method="attnlrp")
    assert explain(model, image, text, method="input_x_gradient").maps.any()  # it has no rule for GELU


@pytest.mark.parametrize("method", ["attnlrp", "input_x_gradient"])
def test_checkpointing_is_refused(method: str) -> None:
    with pytest.raises(ConfigError, match=rf"{method} changes the backward pass"):
        explain(vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 16), method=method, checkpointing=True)


@pytest.mark.parametrize("layer", [3, -4])
def test_an_index_counts_the_inputs_of_the_blocks(layer: int) -> None:
    with pytest.raises(ConfigError, match=r"from -3 to 2 .*visual\.conv1, visual\.transformer\.resblocks\.0"):
        explain(vit(pool_type="avg"), torch.randn(1, 3, 16, 32), torch.randn(1, 16), method="attnlrp", layers=layer)


def test_rules_are_for_methods_that_read_the_gradient_of_a_layer() -> None:
    with pytest.raises(ConfigError, match=r"read a Capture \(got AttentionCapture"):
        Method(gradients, AttentionCapture, rules=AttnLrpRules)


def propagate(reference: RelevanceViT, image: Tensor, text: Tensor) -> Tensor:
    return sum_centred(*reference(image, text), reference.grid)
