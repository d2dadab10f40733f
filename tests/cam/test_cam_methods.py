"""CAM methods that read one layer: against a peer's package, against the papers' sums on the whole graph, by hand."""

from copy import deepcopy
from itertools import product
from typing import NamedTuple

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from clipcam_lightning.cam.capture import Capture, CurvatureCapture, LayerCapture, cut_at
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.targets import Contrast
from clipcam_lightning.errors import ConfigError
from tests.oracles.cam import LOOPS, WholeGraph, finer, to_channels
from tests.oracles.lively import lively
from tests.oracles.peers import PEERS, WITHOUT_PEER, peer_maps, post_processed
from tests.oracles.scores import SCORES
from tests.support.zoo.open_clip import resnet, vit

# XGrad-CAM divides by a channel's sum over the patches. After a norm some channels have a sum near 0, and its last
# float32 digits decide over the map, here and in the peer.
UNSTABLE = 1e-3


class Case(NamedTuple):
    """A model, the layer that is mapped, and the grid of a layer of tokens."""

    model: open_clip.CLIP
    layer: str
    grid: tuple[int, int] | None

    def module(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.layer)


@pytest.fixture(scope="module", params=["ViT-B-32", "RN50"])
def big(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(1)
    model = lively(open_clip.CLIP(**open_clip.get_model_config(request.param)))
    if request.param == "RN50":
        return Case(model, "visual.layer4", None)
    return Case(model, "visual.transformer.resblocks.11.ln_1", (7, 7))


@pytest.mark.parametrize("method", [method for method in LOOPS if method not in WITHOUT_PEER])
def test_equals_pytorch_grad_cam_on_full_size_towers(big: Case, method: str) -> None:
    images, texts = torch.randn(3, 3, 224, 224), torch.randn(5, big.model.visual.output_dim)

    ours = explain(big.model, images, texts, method=method)

    assert ours.layers == (big.layer,)
    maps = ours.maps[range(3), range(3)]
    theirs = peer_maps(method, big.model.visual, big.module(big.model), images, texts, big.grid)
    tolerance = UNSTABLE if method == "xgradcam" and big.grid else 2e-5
    assert abs(post_processed(maps, (224, 224)) - theirs).max() < tolerance
    assert maps.amax() > 0, "all-zero maps equal anything"


TOWERS = {
    "vit": lambda: Case(vit(image_size=(32, 48)), "visual.transformer.resblocks.2.ln_1", (4, 6)),
    "vit, first block": lambda: Case(vit(image_size=(32, 48)), "visual.transformer.resblocks.0.ln_1", (4, 6)),
    "vit, mean of patches": lambda: Case(
        vit(image_size=(32, 48), pool_type="avg", final_ln_after_pool=True), "visual.transformer.resblocks.2", (4, 6)
    ),
    "resnet": lambda: Case(resnet(96), "visual.layer4", None),
}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("method", LOOPS)
def test_equals_the_papers_sums_on_the_whole_graph(method: str, tower: str) -> None:
    case = TOWERS[tower]()
    lively(case.model)
    height, width = (32, 48) if case.grid else (96, 96)
    images, texts = torch.randn(2, 3, height, width), torch.randn(5, 16)
    double = deepcopy(case.model).double()
    score = finer if method == "finercam" else SCORES["similarity"]
    whole = WholeGraph(double, case.module(double), texts, score)

    ours = explain(case.model, images, texts, method=method, layers=case.layer)

    expected = torch.zeros_like(ours.maps)
    for (i, image), p in product(enumerate(images), range(5)):
        outputs = whole.run(image, p)[:2]
        if method == "shapleycam":
            outputs = (*outputs, whole.curvature(image, p))
        expected[i, p] = torch.tensor(LOOPS[method](*(to_channels(each, case.grid) for each in outputs)))
    tolerance = UNSTABLE if method == "xgradcam" and case.grid else 1e-5
    assert_close(ours.maps, expected, atol=tolerance * float(expected.amax()), rtol=0)
    assert expected.amax() > 0, "all-zero maps equal anything"


@pytest.mark.parametrize("method", LOOPS)
def test_equals_the_papers_sums_in_every_sign_and_size(method: str) -> None:
    """Of captures in float64, where nothing but the formula can differ."""
    A, G, HA = (torch.randn(5, 4, 6, dtype=torch.float64) for _ in range(3))
    A[0] = A[0].relu()
    G[1] = 0
    given = {"activations": A[None], "gradients": G[None, None], "curvature": HA[None, None]}
    kind = METHODS[method].reads
    capture = kind(**{name: given[name] for name in kind.__dataclass_fields__})

    found = METHODS[method](capture)

    channels = [A.tolist(), G.tolist(), HA.tolist()][: 3 if kind is CurvatureCapture else 2]
    assert_close(found[0, 0], torch.tensor(LOOPS[method](*channels), dtype=torch.float64), atol=1e-7, rtol=1e-6)
    assert found.amax() > 0


def test_maps_of_a_tiny_capture_are_those_worked_out_by_hand() -> None:
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # one image, two channels, a 1x2 grid
    gradients = torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]])[:, None]  # of one prompt
    capture = Capture(activations, gradients)

    assert_close(METHODS["gradcam"](capture), torch.tensor([[[[0.0, 5.0]]]]))  # 2*1 - 1*3 = -1; 2*2 - 1*-1 = 5
    assert_close(METHODS["hirescam"](capture), torch.tensor([[[[0.0, 6.0]]]]))  # 1*1 - 2*3 = -5; 3*2 + 0 = 6
    assert_close(METHODS["layercam"](capture), torch.tensor([[[[1.0, 6.0]]]]))  # the -2 does not count
    assert_close(METHODS["elementwise"](capture), torch.tensor([[[[1.0, 6.0]]]]))  # the -6 cancels nothing


def test_grad_cam_of_a_pooled_linear_head_is_cam() -> None:
    """For score = w . mean(A), Grad-CAM is CAM / HW (Selvaraju et al. 2017)."""
    conv, weight = nn.Conv2d(3, 5, 3), torch.randn(5)
    with cut_at([conv]) as recorded:
        score = (conv(torch.randn(2, 3, 8, 8)).mean((2, 3)) @ weight).sum()
        (gradient,) = torch.autograd.grad(score, recorded[conv])
    A = recorded[conv].detach()

    cam = torch.einsum("k,bkhw->bhw", weight, A).relu() / (6 * 6)

    assert_close(METHODS["gradcam"](Capture(A, gradient[:, None])), cam[:, None])


def test_shapley_cam_on_a_single_cell_shares_out_the_whole_of_a_quadratic_score() -> None:
    """What the channels are worth sums to what the score is above that of no channel at all (Cai 2025)."""
    A, Q = torch.rand(6), torch.rand(6, 6)
    slope = (Q + Q.T) @ A / 2  # of A Q A / 2, and its Hessian times A too
    gradients = slope.reshape(1, 1, 6, 1, 1)

    found = METHODS["shapleycam"](CurvatureCapture(A.reshape(1, 6, 1, 1), gradients, curvature=gradients))

    assert_close(found.squeeze(), A @ Q @ A / 2)


@pytest.mark.parametrize("name", ["eigencam", "fem"])
def test_a_method_that_asks_no_prompt_gives_the_same_map_to_all(name: str) -> None:
    model = lively(vit(image_size=(32, 48)))

    maps = explain(model, torch.randn(2, 3, 32, 48), torch.randn(3, 16), method=name).maps

    assert maps.shape == (2, 3, 4, 6)
    assert torch.equal(maps[:, 0], maps[:, 2])


def test_eigen_cam_is_positive_where_its_component_is_largest() -> None:
    activations = torch.zeros(2, 1, 1, 4)
    activations[0, 0, 0] = torch.tensor([0.0, 0.0, 0.0, 4.0])
    activations[1, 0, 0] = -activations[0, 0, 0]

    maps = METHODS["eigencam"](LayerCapture(activations))

    assert_close(maps, torch.tensor([0.0, 0.0, 0.0, 3.0]).expand(2, 1, 1, 4))


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_activations_that_are_not_finite_are_seen_in_the_map(method: str) -> None:
    activations = torch.randn(2, 3, 2, 2)
    activations[0, 0, 0, 0] = torch.nan
    kind = METHODS[method].reads
    capture = kind(activations, torch.randn(2, 1, 3, 2, 2)) if kind is Capture else kind(activations)

    maps = METHODS[method](capture)

    assert maps[0].isnan().all()
    assert maps[1].isfinite().all()


def test_finer_cam_alone_with_its_prompt_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"finercam compares.*at least two prompts.*Contrast\(negatives="):
        explain(vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 16), method="finercam")


def test_finer_cam_compares_with_the_negatives_too() -> None:
    """One prompt with four negatives is the first of five prompts."""
    model, images, prompts = lively(vit()), torch.randn(2, 3, 16, 32), list("abcde")

    def tokenizer(prompts: list[str]) -> Tensor:
        return torch.tensor([["abcde".index(prompt), 15, 0, 0, 0, 0, 0, 0] for prompt in prompts])

    together = explain(model, images, prompts, method="finercam", tokenizer=tokenizer)
    target = Contrast(negatives=tuple(prompts[1:]))
    alone = explain(model, images, prompts[:1], method="finercam", target=target, tokenizer=tokenizer)

    assert_close(alone.maps, together.maps[:, :1])
    assert alone.target == "finer of contrast(b, c, d, e)"


def test_every_method_that_reads_one_layer_is_held_against_both() -> None:
    reading = {name for name, method in METHODS.items() if issubclass(method.reads, LayerCapture)}
    assert reading == LOOPS.keys() | {"scorecam", "ablationcam", "occlusion", "cluster_occlusion"}
    assert LOOPS.keys() | {"scorecam", "ablationcam"} == PEERS.keys() | WITHOUT_PEER
