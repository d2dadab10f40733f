"""CAM methods that read one layer, compared with pytorch-grad-cam, with the sums in the papers, and by hand."""

import dataclasses
import sys
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
from tests.oracles.cam import LOOPS, WholeGraph, finer_score, to_channels
from tests.oracles.peers import PEERS, WITHOUT_PEER, peer_maps, post_process
from tests.oracles.randomize import randomize_parameters
from tests.oracles.scores import SCORES
from tests.support.counting_device import DeviceTensor, counting_device
from tests.support.tolerances import MAP, UNSTABLE, assert_equal_up_to_rounding
from tests.support.zoo.open_clip import resnet, vit


def tolerance_of(method: str, grid: tuple[int, int] | None) -> float:
    """Choose the tolerance relative to the largest value of the map."""
    return UNSTABLE if method == "xgradcam" and grid else MAP


class Case(NamedTuple):
    """A model, the mapped layer, and the layer's grid if its output is tokens."""

    model: open_clip.CLIP
    layer: str
    grid: tuple[int, int] | None

    def module(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.layer)


@pytest.fixture(scope="module", params=["ViT-B-32", "RN50"])
def full_size(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(1)
    model = randomize_parameters(open_clip.CLIP(**open_clip.get_model_config(request.param))).double()
    layer, grid = {
        "ViT-B-32": ("visual.transformer.resblocks.11.ln_1", (7, 7)),
        "RN50": ("visual.layer4", None),
    }[request.param]
    model.requires_grad_(False).get_submodule(layer).requires_grad_(True)  # a peer's backward ends there, and is faster
    return Case(model, layer, grid)


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method in LOOPS if method not in WITHOUT_PEER])
def test_maps_of_full_size_towers_equal_those_of_pytorch_grad_cam(full_size: Case, method: str) -> None:
    """In float64: the rounding errors of twelve blocks would dominate maps of small differences."""
    images = torch.randn(2, 3, 224, 224).double()
    texts = torch.randn(3, full_size.model.visual.output_dim).double()

    explanation = explain(full_size.model, images, texts, method=method)

    assert explanation.layers == (full_size.layer,)
    maps = explanation.maps[range(2), range(2)]
    layer = full_size.module(full_size.model)
    expected = peer_maps(method, full_size.model.visual, layer, images, texts, full_size.grid)
    assert_close(post_process(maps, (224, 224)), expected, atol=tolerance_of(method, full_size.grid), rtol=0)
    assert maps.amax() > 0, "all-zero maps would prove nothing"


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
def test_maps_equal_the_sums_in_the_paper_on_the_complete_graph(method: str, tower: str) -> None:
    case = TOWERS[tower]()
    randomize_parameters(case.model)
    height, width = (32, 48) if case.grid else (96, 96)
    images, texts = torch.randn(2, 3, height, width), torch.randn(5, 16)
    double = deepcopy(case.model).double()
    score = finer_score if method == "finercam" else SCORES["similarity"]
    whole = WholeGraph(double, case.module(double), texts, score)

    maps = explain(case.model, images, texts, method=method, layers=case.layer).maps

    expected = torch.zeros_like(maps)
    for (i, image), p in product(enumerate(images), range(5)):
        outputs = whole.run(image, p)[:2]
        if method == "shapleycam":
            outputs = (*outputs, whole.curvature(image, p))
        expected[i, p] = torch.tensor(LOOPS[method](*(to_channels(each, case.grid) for each in outputs)))
    assert_equal_up_to_rounding(maps, expected, tolerance_of(method, case.grid))
    assert expected.amax() > 0, "all-zero maps would prove nothing"


@pytest.mark.parametrize("method", LOOPS)
def test_maps_of_any_capture_equal_the_sums_in_the_paper(method: str) -> None:
    """In float64, where only the formula can make a difference."""
    A, G, HA = (torch.randn(5, 4, 6, dtype=torch.float64) for _ in range(3))
    A[0] = A[0].relu()
    G[1] = 0
    fields = {"activations": A[None], "gradients": G[None, None], "curvature": HA[None, None]}
    kind = METHODS[method].reads
    capture = kind(**{field.name: fields[field.name] for field in dataclasses.fields(kind)})

    maps = METHODS[method](capture)

    channels = [A.tolist(), G.tolist(), HA.tolist()][: 3 if kind is CurvatureCapture else 2]
    assert_close(maps[0, 0], torch.tensor(LOOPS[method](*channels), dtype=torch.float64), atol=1e-7, rtol=1e-6)
    assert maps.amax() > 0


def test_maps_of_a_tiny_capture_equal_those_computed_by_hand() -> None:
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # one image, two channels, a 1x2 grid
    gradients = torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]])[:, None]  # of one prompt
    capture = Capture(activations, gradients)

    assert_close(METHODS["gradcam"](capture), torch.tensor([[[[0.0, 5.0]]]]))  # 2*1 - 1*3 = -1; 2*2 - 1*-1 = 5
    assert_close(METHODS["hirescam"](capture), torch.tensor([[[[0.0, 6.0]]]]))  # 1*1 - 2*3 = -5; 3*2 + 0 = 6
    assert_close(METHODS["layercam"](capture), torch.tensor([[[[1.0, 6.0]]]]))  # without the gradient -2
    assert_close(METHODS["elementwise"](capture), torch.tensor([[[[1.0, 6.0]]]]))  # without the product -6


def test_grad_cam_of_a_pooled_linear_head_is_cam() -> None:
    """For score = w . mean(A), Grad-CAM is CAM / HW (Selvaraju et al. 2017)."""
    conv, weight = nn.Conv2d(3, 5, 3), torch.randn(5)
    with cut_at([conv]) as recorded:
        score = (conv(torch.randn(2, 3, 8, 8)).mean((2, 3)) @ weight).sum()
        (gradient,) = torch.autograd.grad(score, recorded[conv])
    A = recorded[conv].detach()

    cam = torch.einsum("k,bkhw->bhw", weight, A).relu() / (6 * 6)

    assert_close(METHODS["gradcam"](Capture(A, gradient[:, None])), cam[:, None])


def test_shapley_cam_of_a_single_cell_distributes_a_quadratic_score_over_the_channels() -> None:
    """Efficiency: the Shapley values sum to the score minus the score without any channel (Cai 2025)."""
    A, Q = torch.rand(6), torch.rand(6, 6)
    slope = (Q + Q.T) @ A / 2  # gradient of A Q A / 2, which equals its Hessian times A
    gradients = slope.reshape(1, 1, 6, 1, 1)

    map_ = METHODS["shapleycam"](CurvatureCapture(A.reshape(1, 6, 1, 1), gradients, curvature=gradients))

    assert_close(map_.squeeze(), A @ Q @ A / 2)


@pytest.mark.parametrize("name", ["eigencam", "fem"])
def test_a_method_without_prompts_gives_every_prompt_the_same_map(name: str) -> None:
    model = randomize_parameters(vit(image_size=(32, 48)))

    maps = explain(model, torch.randn(2, 3, 32, 48), torch.randn(3, 16), method=name).maps

    assert maps.shape == (2, 3, 4, 6)
    assert torch.equal(maps[:, 0], maps[:, 2])


def test_eigen_cam_is_positive_on_the_side_of_fewer_and_larger_cells() -> None:
    activations = torch.zeros(2, 1, 1, 4)
    activations[0, 0, 0] = torch.tensor([0.0, 0.0, 0.0, 4.0])
    activations[1, 0, 0] = -activations[0, 0, 0]

    maps = METHODS["eigencam"](LayerCapture(activations))

    assert_close(maps, torch.tensor([0.0, 0.0, 0.0, 3.0]).expand(2, 1, 1, 4))


def test_no_single_cell_decides_the_sign_of_eigen_cam() -> None:
    """The two extremes differ by rounding alone; the other cells tell the sides apart."""
    activations = torch.tensor([-4.0, 4.0, 4.0, -1.0, -1.0, -1.0, -1.0]).expand(2, 1, 1, 7).clone()
    activations[0, 0, 0, 0] -= 1e-6
    activations[1, 0, 0, 1] += 1e-6

    first, second = METHODS["eigencam"](LayerCapture(activations))

    assert_close(first, second)
    assert_close(first[0, 0, :3].gt(0).tolist(), [False, True, True])


@pytest.mark.parametrize("method", ["eigencam", "eigengradcam"])
def test_activations_that_are_not_finite_make_a_map_of_nan(method: str) -> None:
    activations = torch.randn(2, 3, 2, 2)
    activations[0, 0, 0, 0] = torch.nan
    kind = METHODS[method].reads
    capture = kind(activations, torch.randn(2, 1, 3, 2, 2)) if kind is Capture else kind(activations)

    maps = METHODS[method](capture)

    assert maps[0].isnan().all()
    assert maps[1].isfinite().all()


def test_finer_cam_of_a_single_prompt_is_rejected_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"finercam compares.*at least two prompts.*Contrast\(negatives="):
        explain(vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 16), method="finercam")


def test_finer_cam_compares_with_the_negatives() -> None:
    """One prompt with four negatives has the map of the first of five prompts."""
    model, images, prompts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), list("abcde")

    def tokenizer(prompts: list[str]) -> Tensor:
        return torch.tensor([["abcde".index(prompt), 15, 0, 0, 0, 0, 0, 0] for prompt in prompts])

    together = explain(model, images, prompts, method="finercam", tokenizer=tokenizer)
    target = Contrast(negatives=tuple(prompts[1:]))
    alone = explain(model, images, prompts[:1], method="finercam", target=target, tokenizer=tokenizer)

    assert_close(alone.maps, together.maps[:, :1])
    assert alone.target == "finer of contrast(b, c, d, e)"


def test_every_method_that_reads_one_layer_is_compared_with_both() -> None:
    reading = {name for name, each in METHODS.items() if issubclass(each.reads, LayerCapture) and not each.rules}
    others = {"scorecam", "ablationcam", "occlusion", "cluster_occlusion", "cci", "integrated_gradients"}
    assert reading == LOOPS.keys() | others
    assert LOOPS.keys() | {"scorecam", "ablationcam"} == PEERS.keys() | WITHOUT_PEER


def test_eigencam_is_computed_on_the_cpu_where_the_device_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    activations = torch.randn(2, 6, 4, 5)
    expected = METHODS["eigencam"](LayerCapture(activations))
    monkeypatch.setattr(sys.modules["clipcam_lightning.cam.methods.eigencam"], "WITHOUT_FLOAT64", ("meta",))

    with counting_device() as waits:
        maps = METHODS["eigencam"](LayerCapture(DeviceTensor(activations)))

    assert waits == {"read": 1, "write": 1}, "the activations to the CPU, and the map back"
    assert isinstance(maps, DeviceTensor)
    assert_close(maps.values, expected)
