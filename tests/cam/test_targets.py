"""Targets: their formulas, their values, and that every method maps the gradient of its target."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.targets import Contrast, LogSoftmax, Similarity, Target, target_of
from clipcam_lightning.errors import ConfigError
from tests.oracles.cam import WholeGraph, to_channels
from tests.oracles.randomize import randomize_parameters
from tests.oracles.scores import SCORES
from tests.support.tolerances import assert_equal_up_to_rounding
from tests.support.zoo.open_clip import vit


def signed(capture: Capture) -> Tensor:
    """HiResCAM without its relu, which is linear in the gradient."""
    return torch.einsum("bpchw,bchw->bphw", capture.gradients, capture.activations)


def similar_texts(count: int) -> Tensor:
    """Draw embeddings with similar cosines, so that none dominates a softmax."""
    return torch.randn(1, 16) + 0.1 * torch.randn(count, 16)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_those_of_the_formula(name: str) -> None:
    similarity = torch.rand(3, 4, dtype=torch.float64)

    scores = target_of(name)(similarity, 4)

    assert_close(scores, torch.stack([torch.stack([SCORES[name](row, p) for p in range(4)]) for row in similarity]))


@pytest.mark.parametrize("name", SCORES)
def test_the_gradient_at_a_layer_is_that_of_the_whole_graph(name: str) -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), similar_texts(3)
    double = deepcopy(model).double()
    whole = WholeGraph(double, double.visual.transformer.resblocks[1].ln_1, texts, SCORES[name])

    maps = explain(model, images, texts, method=signed, layers=1, target=name).maps

    for i, image in enumerate(images):
        for p in range(3):
            activations, gradients = (torch.tensor(to_channels(each, (2, 4))) for each in whole.run(image, p)[:2])
            expected = (gradients * activations).sum(0)
            assert_equal_up_to_rounding(maps[i, p], expected)


def test_the_gradient_of_logsoftmax_is_a_mixture_of_those_of_the_similarities() -> None:
    """tau * (grad s_p - sum_q pi_q grad s_q)"""
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), similar_texts(4)
    each = explain(model, images, texts, method=signed)
    shares = (20 * each.similarity).softmax(dim=1)

    maps = explain(model, images, texts, method=signed, target=LogSoftmax(temperature=20.0)).maps

    mixed = torch.einsum("bq,bqhw->bhw", shares, each.maps)
    assert_close(maps, 20 * (each.maps - mixed[:, None]), atol=1e-5, rtol=1e-4)
    assert maps.amax() > 0.1


@pytest.mark.parametrize("target", ["contrast", LogSoftmax(temperature=20.0)])
@pytest.mark.parametrize("method", ["maskclip", "gem", "decomposition"])
def test_a_method_that_is_linear_in_the_text_maps_the_mixture(method: str, target: Any) -> None:
    """The map of a target mixes the maps of the prompts as its gradient mixes the gradients of their cosines."""
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), similar_texts(4)
    each = explain(model, images, texts, method=method)
    similarity = each.similarity.clone().requires_grad_()
    scores = target_of(target)(similarity, 4)

    maps = explain(model, images, texts, method=method, target=target).maps

    for p in range(4):
        (shares,) = torch.autograd.grad(scores[:, p].sum(), similarity, retain_graph=True)
        assert_close(maps[:, p], torch.einsum("bq,bqhw->bhw", shares, each.maps), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["occlusion", "cluster_occlusion", "cci"])
def test_occlusion_maps_the_loss_of_the_target_score(method: str) -> None:
    """A constant summand of the score cancels, a factor remains."""
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), similar_texts(3)
    plain = explain(model, images, texts, method=method)

    explanation = explain(model, images, texts, method=method, target=Affine())

    assert_close(explanation.maps, 3 * plain.maps, atol=1e-5, rtol=1e-4)
    assert_close(explanation.similarity, plain.similarity)
    assert explanation.target == "affine"


class Affine(Target):
    """A custom target."""

    name = "affine"

    def __call__(self, similarity: Tensor, prompts: int) -> Tensor:
        return 1 + 3 * similarity[:, :prompts]


@pytest.mark.parametrize("kind", [Contrast, LogSoftmax])
@pytest.mark.parametrize("method", ["gradcam", "maskclip", "gae", "occlusion"])
def test_negatives_are_compared_with_but_not_mapped(method: str, kind: Any) -> None:
    """One prompt with negatives has the score of the first of several prompts."""
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), similar_texts(4)
    together = explain(model, images, texts, method=method, target=kind())

    alone = explain(model, images, texts[:1], method=method, target=kind(negatives=texts[1:]))

    assert_close(alone.maps, together.maps[:, :1], atol=1e-5, rtol=1e-4)
    assert_close(alone.similarity, together.similarity[:, :1])


def test_negative_prompts_are_equivalent_to_their_embeddings() -> None:
    model, images = randomize_parameters(vit()), torch.randn(2, 3, 16, 32)

    def tokenizer(prompts: list[str]) -> Tensor:
        return torch.tensor([[len(prompt), 15, 0, 0, 0, 0, 0, 0] for prompt in prompts])

    with torch.no_grad():
        embedded = F.normalize(model.encode_text(tokenizer(["aa", "aaa"])), dim=-1)
    options: dict[str, Any] = {"method": "hirescam", "tokenizer": tokenizer}

    from_strings = explain(model, images, ["a"], target=Contrast(negatives=("aa", "aaa")), **options)

    assert_close(from_strings.maps, explain(model, images, ["a"], target=Contrast(negatives=embedded), **options).maps)
    assert from_strings.target == "contrast(aa, aaa)"


def test_a_contrast_subtracts_the_mean_of_its_negatives() -> None:
    similarity = torch.tensor([[0.5, 0.4, 0.1, 0.2]])

    assert_close(Contrast(negatives=("a", "b"))(similarity, 2), torch.tensor([[0.35, 0.25]]))
    assert_close(Contrast()(similarity, 4), torch.tensor([[0.5 - 0.7 / 3, 0.4 - 0.8 / 3, 0.1 - 1.1 / 3, 0.2 - 1 / 3]]))


@pytest.mark.parametrize("target", [Contrast(), LogSoftmax()])
def test_a_single_prompt_is_rejected_with_a_remedy(target: Target) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{target.name}'.*at least two prompts.*{type(target).__name__}\(negatives"
    ):
        target(torch.rand(2, 1), 1)


@pytest.mark.parametrize("kind", [Contrast, LogSoftmax])
@pytest.mark.parametrize(
    "negatives", ["a cat", ("a cat", " "), (1,), torch.ones(3), torch.ones(2, 3, dtype=torch.long)]
)
def test_invalid_negatives_are_rejected(kind: Any, negatives: Any, unchecked: None) -> None:
    with pytest.raises(ConfigError, match="negatives must be"):
        kind(negatives=negatives)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_and_finite_is_rejected(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature must be positive and finite"):
        LogSoftmax(temperature=temperature)


def test_the_name_of_a_target_depends_on_its_negatives() -> None:
    one, other = torch.ones(2, 3), torch.zeros(2, 3)
    names = [Similarity().name, Contrast().name, Contrast(("a", "b")).name, LogSoftmax(("a",)).name]

    assert names == ["similarity", "contrast", "contrast(a, b)", "logsoftmax(a)"]
    assert Contrast(one).name == Contrast(one.clone()).name != Contrast(other).name


def test_an_unknown_target_is_rejected_with_the_valid_names(unchecked: None) -> None:
    with pytest.raises(ConfigError, match=r"'similarity', 'contrast', 'logsoftmax'.*'logit'"):
        target_of("logit")
