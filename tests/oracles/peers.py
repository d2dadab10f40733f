"""pytorch-grad-cam's finished maps, through its own classes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytorch_grad_cam as peer
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection, get_2d_projection_with_sign_correction
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


class Cosines(nn.Module):
    """An image tower as the classifier that the peer expects; its classes are prompts."""

    def __init__(self, visual: nn.Module, texts: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.texts = texts

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.visual(images), dim=-1) @ F.normalize(self.texts, dim=-1).T


class ShapleyOfTokens(peer.ShapleyCAM):
    """The peer lays tokens out for the weights and forgets it for the activations that these multiply.

    It also ends by detaching its gradients in place, which fails where they are views.
    """

    def get_cam_image(self, images: Any, layer: Any, targets: Any, activations: Any, grads: Any, smooth: Any) -> Any:
        weights = self.get_cam_weights(images, layer, targets, activations, grads)
        lay_out = self.activations_and_grads.reshape_transform or (lambda grid: grid)
        self.activations_and_grads.gradients.clear()
        return np.einsum("bc,bchw->bhw", weights, lay_out(activations).detach().numpy())


PEERS: dict[str, type[BaseCAM] | type[peer.FinerCAM]] = {
    "gradcam": peer.GradCAM,
    "gradcam_pp": peer.GradCAMPlusPlus,
    "xgradcam": peer.XGradCAM,
    "hirescam": peer.HiResCAM,
    "elementwise": peer.GradCAMElementWise,
    "layercam": peer.LayerCAM,
    "finercam": peer.FinerCAM,
    "shapleycam": ShapleyOfTokens,
    "eigencam": peer.EigenCAM,
    "eigengradcam": peer.EigenGradCAM,
    "fem": peer.FEM,
    "scorecam": peer.ScoreCAM,
    "ablationcam": peer.AblationCAM,
}
# Methods that read one layer and that no other package has.
WITHOUT_PEER: frozenset[str] = frozenset()


def peer_maps(
    method: str,
    visual: nn.Module,
    layer: nn.Module,
    images: Tensor,
    texts: Tensor,
    grid: tuple[int, int] | None,
    as_the_peer_is: bool = False,
) -> np.ndarray:
    """Maps [n, y, x] for image i and text i among all ``texts``; ``grid`` for towers of tokens.

    Args:
        as_the_peer_is: without the settlements of what is a matter of choice (:data:`SETTLED`).
    """

    def rows_of_patches(tokens: Tensor) -> Tensor:
        assert grid is not None
        return tokens[:, 1:].reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)

    maps = []
    with ExitStack() as stack:
        if method in SETTLED and not as_the_peer_is:
            stack.enter_context(SETTLED[method]())
        layout = rows_of_patches if grid else None
        cam = stack.enter_context(PEERS[method](Cosines(visual, texts), [layer], reshape_transform=layout))
        for i, image in enumerate(images):
            if isinstance(cam, peer.FinerCAM):
                maps.append(cam(image[None], target_idx=i))
            else:
                maps.append(cam(image[None], targets=[lambda cosines, i=i: cosines[i]]))
    return np.concatenate(maps)


def post_processed(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Raw maps [n, h, w] through pytorch-grad-cam's order: relu, min-max, bilinear, relu, min-max."""

    def min_max(values: Tensor) -> Tensor:
        values = values - values.amin((1, 2), keepdim=True)
        return values / (1e-7 + values.amax((1, 2), keepdim=True))

    enlarged = F.interpolate(min_max(maps.relu())[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return min_max(enlarged.relu()).numpy()


@contextmanager
def _sign_of_largest() -> Iterator[None]:
    """A principal component has no sign: the peer's own later choice, which its Eigen-CAM leaves to the SVD."""
    with patch("pytorch_grad_cam.eigen_cam.get_2d_projection", get_2d_projection_with_sign_correction):
        yield


@contextmanager
def _sign_of_evidence() -> Iterator[None]:
    """The sign with which the component rises with gradient times activation."""

    def oriented(products: np.ndarray) -> np.ndarray:
        evidence = products.sum(axis=1)
        pairs = zip(get_2d_projection(products), evidence, strict=True)
        return np.stack([component * np.sign((component * (total - total.mean())).sum()) for component, total in pairs])

    with patch("pytorch_grad_cam.eigen_grad_cam.get_2d_projection", oriented):
        yield


@contextmanager
def _centres_aligned() -> Iterator[None]:
    """The peer's masks are enlarged with corners on corners, its maps with centres on centres."""
    with patch("torch.nn.UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear")):
        yield


SETTLED: dict[str, Callable[[], Any]] = {
    "eigencam": _sign_of_largest,
    "eigengradcam": _sign_of_evidence,
    "scorecam": _centres_aligned,
    # Only the plain kernel of attention has second derivatives.
    "shapleycam": lambda: sdpa_kernel(SDPBackend.MATH),
}
