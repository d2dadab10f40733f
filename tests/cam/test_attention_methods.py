"""Methods that read attention, compared with slow derivations on the complete float64 graph of the same weights."""

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.capture import AttentionCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.targets import Contrast
from clipcam_lightning.errors import ConfigError
from tests.oracles.attention import ORACLES, Inputs, decomposition_terms
from tests.oracles.randomize import randomize_parameters
from tests.oracles.resnet import ReferenceResNet
from tests.oracles.scores import SCORES, compute_cosines
from tests.oracles.transformer import ReferenceViT
from tests.support.tolerances import SCORE, assert_equal_up_to_rounding
from tests.support.zoo.open_clip import resnet, vit

MODELS: dict[str, Callable[[], open_clip.CLIP]] = {
    "class token": vit,
    "class token, seven blocks": lambda: vit(layers=7),
    "class token, layer scale": lambda: vit(ls_init_value=0.3),
    "mean": lambda: vit(pool_type="avg"),
    "norm after the mean": lambda: vit(pool_type="avg", final_ln_after_pool=True),
    "attention": lambda: vit(attentional_pool=True, attn_pooler_queries=2, attn_pooler_heads=2),
    "resnet": lambda: resnet(96),
}
UNFIT = {
    "legrad": {"resnet"},
    "clip_surgery": {"resnet"},
    "gem": {"resnet"},
    "grad_eclip": {"mean", "norm after the mean"},
    "decomposition": {"mean", "norm after the mean", "attention", "resnet"},
}
DEFAULT_BLOCKS = {
    "gae": 1, "rollout": 12, "legrad": 2, "grad_eclip": 1, "decomposition": 12, "maskclip": 1, "clip_surgery": 6,
    "gem": 6,
}  # fmt: skip


def fitting(*models: str) -> list[tuple[str, str]]:
    return [(method, model) for method in ORACLES for model in models if model not in UNFIT.get(method, ())]


class Case:
    """A random model, its reference, two images and four prompts."""

    def __init__(self, name: str) -> None:
        self.model = randomize_parameters(MODELS[name]())
        visual = self.model.visual
        is_vit = name != "resnet"
        self.reference = ReferenceViT(visual) if is_vit else ReferenceResNet(visual)
        self.depth = len(visual.transformer.resblocks) if is_vit else 0
        self.images = torch.randn(2, 3, *((16, 32) if is_vit else (96, 96)))
        # Two similar ones, so that both matter in a softmax, and their opposites, so that some evidence is positive.
        similar = torch.randn(1, 16) + 0.3 * torch.randn(2, 16)
        self.texts = torch.cat([similar, -similar])
        self.traces = [self.reference(image) for image in self.images]

    def oracle_inputs(self, target: str, blocks: Sequence[int]) -> list[list[Inputs]]:
        return [
            [Inputs(self.reference, trace, self.texts, SCORES[target], p, blocks) for p in range(len(self.texts))]
            for trace in self.traces
        ]

    def expected(self, method: str, target: str = "similarity", blocks: Sequence[int] | None = None) -> Tensor:
        if blocks is None:
            blocks = range(self.depth)[-DEFAULT_BLOCKS[method] :]
        rows = self.oracle_inputs(target, blocks)
        return torch.stack([torch.stack([ORACLES[method](inputs) for inputs in row]) for row in rows])


def assert_maps_equal(maps: Tensor, expected: Tensor) -> None:
    """Compare float32 with float64, with a tolerance relative to the largest value."""
    assert expected.std() > 1e-3 * expected.abs().max() > 0, "a constant map would prove nothing"
    assert_equal_up_to_rounding(maps, expected.float())


@pytest.mark.parametrize(("method", "model"), fitting(*MODELS))
def test_maps_equal_the_slow_derivation(method: str, model: str) -> None:
    case = Case(model)

    explanation = explain(case.model, case.images, case.texts, method=method)

    assert_maps_equal(explanation.maps, case.expected(method))
    with torch.no_grad():
        similarity = torch.stack([compute_cosines(trace.features, case.texts) for trace in case.traces])
        assert_close(explanation.similarity, similarity.float())


@pytest.mark.parametrize("blocks", [(1,), (0, 2), (0, 1, 2)])
@pytest.mark.parametrize(("method", "model"), fitting("class token", "attention"))
def test_layers_select_the_blocks_that_are_read(method: str, model: str, blocks: tuple[int, ...]) -> None:
    case = Case(model)
    if METHODS[method].one_block:
        blocks = blocks[:1]

    maps = explain(case.model, case.images, case.texts, method=method, layers=blocks[::-1]).maps

    assert_maps_equal(maps, case.expected(method, blocks=blocks))


@pytest.mark.parametrize("target", ["contrast", "logsoftmax"])
@pytest.mark.parametrize("method", ORACLES)
def test_maps_of_another_target_equal_the_slow_derivation(method: str, target: str) -> None:
    case = Case("class token")

    explanation = explain(case.model, case.images, case.texts, method=method, target=target)

    assert explanation.target == target
    assert_maps_equal(explanation.maps, case.expected(method, target))


def test_clip_surgery_of_one_prompt_subtracts_nothing() -> None:
    """Then its maps are differences of cosines only with the negatives that the target subtracts."""
    case = Case("class token")
    own, others = case.texts[:1], case.texts[1:] / case.texts[1:].norm(dim=1, keepdim=True)

    plain, contrast = (
        explain(case.model, case.images, own, method="clip_surgery", target=target).maps
        for target in ("similarity", Contrast(negatives=others))
    )
    of_others = [explain(case.model, case.images, other[None], method="clip_surgery").maps for other in others]

    assert_maps_equal(contrast, (plain - sum(of_others) / len(of_others)).double())


@pytest.mark.parametrize("model", ["class token", "class token, seven blocks", "class token, layer scale"])
def test_the_terms_of_the_decomposition_sum_to_the_cosine(model: str) -> None:
    """The decomposition is additive over patches, class token, MLPs, embedding and biases (Gandelsman et al. 2024)."""
    case = Case(model)
    explanation = explain(case.model, case.images, case.texts, method="decomposition")

    for i, row in enumerate(case.oracle_inputs("similarity", range(case.depth))):
        for p, inputs in enumerate(row):
            terms = decomposition_terms(inputs)
            cosine = compute_cosines(inputs.trace.features, case.texts)[p].detach()
            assert_close(sum(term.sum() for term in terms.values()), cosine, atol=1e-12, rtol=0)
            others = sum(term for part, term in terms.items() if part != "patches")
            total = explanation.maps[i, p].sum() + others.float()
            assert_close(total, explanation.similarity[i, p], atol=SCORE, rtol=0)


def test_maps_of_a_larger_image_are_those_of_a_model_built_for_its_size() -> None:
    """The larger model has interpolated positions and otherwise the same weights."""
    small, large = randomize_parameters(vit()), vit(image_size=(32, 64))
    positions = small.visual.positional_embedding.detach()
    grid = positions[1:].T.reshape(1, 32, 2, 4)
    grid = torch.nn.functional.interpolate(grid, size=(4, 8), mode="bicubic", antialias=True, align_corners=False)
    weights = small.state_dict()
    weights["visual.positional_embedding"] = torch.cat([positions[:1], grid[0].flatten(1).T])
    large.load_state_dict(weights)
    images, texts = torch.randn(1, 3, 32, 64), torch.randn(1, 16)
    shrunk = torch.nn.functional.interpolate(images, size=(16, 32), mode="bicubic", antialias=True)
    enlarged = torch.nn.functional.interpolate(shrunk, size=(32, 64), mode="bicubic", antialias=True)

    for method in ORACLES:
        maps = explain(small, shrunk, texts, method=method, scales=(2.0,)).maps
        assert_maps_equal(maps, explain(large, enlarged, texts, method=method).maps)


def test_every_method_that_reads_attention_has_an_oracle() -> None:
    assert {name for name, method in METHODS.items() if issubclass(method.reads, AttentionCapture)} == ORACLES.keys()


@pytest.mark.parametrize("method", ["grad_eclip", "maskclip"])
def test_a_method_of_one_block_rejects_several(method: str, clip: ClipModel) -> None:
    with pytest.raises(ConfigError, match=rf"{method} reads one block \(got layers \(-2, -1\)\)"):
        explain(clip, torch.zeros(1, 3, 64, 64), ["a"], method=method, layers=(-2, -1))


class Waits(torch.autograd.Function):
    """The identity, whose backward asks for a number, which no backward of several outputs at once can give."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:  # type: ignore[override]
        assert torch.isfinite(gradients).all().item()
        return gradients


def test_the_decomposition_goes_through_functions_that_cannot_be_batched() -> None:
    model = vit()
    clip, images, texts = find_clip(model), torch.randn(2, 3, *find_clip(model).tower.input_size), torch.randn(3, 16)
    expected = explain(clip, images, texts, method="decomposition").maps
    for block in model.visual.transformer.resblocks:
        block.attn.out_proj.forward = lambda values, own=block.attn.out_proj: Waits.apply(
            F.linear(values, own.weight, own.bias)
        )

    assert_close(explain(clip, images, texts, method="decomposition").maps, expected, rtol=1e-4, atol=1e-6)
