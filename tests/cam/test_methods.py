"""Methods against a peer's package, plain loops, a hand-computed map and a theorem."""

import open_clip
import pytest
import torch
from oracles import PEERS, full_graph_gradients, maps_by_loops, peer_maps, post_processed
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.capture import Capture, cut_at
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS, method_of
from clipcam_lightning.errors import ConfigError

LAYERS = {"ViT-B-32": "visual.transformer.resblocks.11.ln_1", "RN50": "visual.layer4"}


@pytest.fixture(scope="module", params=LAYERS)
def big(request: pytest.FixtureRequest) -> tuple[open_clip.CLIP, str]:
    torch.manual_seed(1)
    config = open_clip.get_model_config(request.param)
    model = open_clip.CLIP(**config).eval()
    for module in model.modules():  # RN50 starts with bn3 at zero, which makes every block an identity
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, request.param


@pytest.mark.parametrize("method", METHODS)
def test_equals_pytorch_grad_cam_on_full_size_towers(big: tuple[open_clip.CLIP, str], method: str) -> None:
    model, name = big
    images, texts = torch.randn(3, 3, 224, 224), F.normalize(torch.randn(3, model.visual.output_dim), dim=-1)

    ours = explain(model, images, texts[:, None], method=method)

    assert ours.layers == (LAYERS[name],)
    layer = model.get_submodule(LAYERS[name])
    theirs = peer_maps(method, model.visual, layer, images, texts, grid=(7, 7) if name == "ViT-B-32" else None)
    assert abs(post_processed(ours.maps[:, 0], (224, 224)) - theirs).max() < 2e-5
    assert ours.maps.amax() > 0, "all-zero maps equal anything"


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_full_graph_and_plain_loops(untrained: open_clip.CLIP, method: str) -> None:
    images, texts = torch.randn(3, 3, 64, 64), F.normalize(torch.randn(3, 64), dim=-1)
    layer = untrained.visual.transformer.resblocks[-1].ln_1
    activations, gradients, cosines = full_graph_gradients(untrained.eval(), layer, images, texts)

    ours = explain(untrained, images, texts[:, None], method=method)

    grids = (tokens[:, 1:].reshape(3, 8, 8, -1).permute(0, 3, 1, 2) for tokens in (activations, gradients))
    assert_close(ours.maps[:, 0], maps_by_loops(method, *grids), atol=1e-6, rtol=1e-4)
    assert_close(ours.similarity[:, 0], cosines)


def test_maps_of_a_tiny_capture_are_those_worked_out_by_hand() -> None:
    activations = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # one image, two channels, a 1x2 grid
    gradients = torch.tensor([[[[1.0, 3.0]], [[-2.0, 0.0]]]])
    capture = Capture(activations, gradients)

    assert_close(METHODS["gradcam"](capture), torch.tensor([[[0.0, 5.0]]]))  # 2*1 - 1*3 = -1; 2*2 - 1*-1 = 5
    assert_close(METHODS["hirescam"](capture), torch.tensor([[[0.0, 6.0]]]))  # 1*1 - 2*3 = -5; 3*2 + 0 = 6
    assert_close(METHODS["layercam"](capture), torch.tensor([[[1.0, 6.0]]]))  # the -2 does not count


def test_grad_cam_of_a_pooled_linear_head_is_cam() -> None:
    """For score = w . mean(A), Grad-CAM is CAM / HW (Selvaraju et al. 2017)."""
    conv, weight = nn.Conv2d(3, 5, 3), torch.randn(5)
    with cut_at([conv]) as recorded:
        score = (conv(torch.randn(2, 3, 8, 8)).mean((2, 3)) @ weight).sum()
        (gradient,) = torch.autograd.grad(score, recorded[conv])
    A = recorded[conv].detach()

    cam = torch.einsum("k,bkhw->bhw", weight, A).relu() / (6 * 6)

    assert_close(METHODS["gradcam"](Capture(A, gradient)), cam)


@pytest.mark.parametrize("method", METHODS)
def test_an_image_ignores_the_rest_of_its_batch(method: str) -> None:
    activations, gradients = torch.randn(4, 6, 3, 5), torch.randn(4, 6, 3, 5)

    together = METHODS[method](Capture(activations, gradients))
    alone = METHODS[method](Capture(activations[:1], gradients[:1]))

    assert_close(together[:1], alone)


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"gradcam, hirescam, layercam.*'gradcamm'"):
        method_of("gradcamm")


def test_every_method_has_a_peer() -> None:
    assert METHODS.keys() == PEERS.keys()
