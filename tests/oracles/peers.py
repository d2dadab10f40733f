"""Maps of pytorch-grad-cam, computed and post-processed by its own classes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytorch_grad_cam as peer
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


class Cosines(nn.Module):
    """An image tower as a classifier, which pytorch-grad-cam expects; its classes are prompts."""

    def __init__(self, visual: nn.Module, texts: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.texts = texts

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.visual(images), dim=-1) @ F.normalize(self.texts, dim=-1).T


class ShapleyOfTokens(peer.ShapleyCAM):
    """ShapleyCAM of pytorch-grad-cam with two errors fixed.

    It lays out tokens as a grid for the weights, but not for the activations that these multiply. And it detaches its
    gradients in place, which fails if they are views.
    """

    def get_cam_image(self, images: Any, layer: Any, targets: Any, activations: Any, grads: Any, smooth: Any) -> Any:
        weights = self.get_cam_weights(images, layer, targets, activations, grads)
        to_grid = self.activations_and_grads.reshape_transform or (lambda grid: grid)
        self.activations_and_grads.gradients.clear()
        return np.einsum("bc,bchw->bhw", weights, to_grid(activations).detach().numpy())


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
    adjusted: bool = True,
) -> np.ndarray:
    """Compute the map of each image for the text of the same index.

    Args:
        method: name of the method.
        visual: image tower.
        layer: the mapped layer.
        images: model input.
        texts: embeddings of all prompts.
        grid: height and width of the layer's grid, if its output is tokens.
        adjusted: whether to adjust arbitrary choices of the package to ours (:data:`ADJUSTMENTS`).

    Returns:
        Maps [n, y, x] in the size of the images.
    """

    def rows_of_patches(tokens: Tensor) -> Tensor:
        assert grid is not None
        return tokens[:, 1:].reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)

    maps = []
    with ExitStack() as stack:
        if method in ADJUSTMENTS and adjusted:
            stack.enter_context(ADJUSTMENTS[method]())
        layout = rows_of_patches if grid else None
        cam = stack.enter_context(PEERS[method](Cosines(visual, texts), [layer], reshape_transform=layout))
        for i, image in enumerate(images):
            if isinstance(cam, peer.FinerCAM):
                maps.append(cam(image[None], target_idx=i))
            else:
                maps.append(cam(image[None], targets=[lambda cosines, i=i: cosines[i]]))
    return np.concatenate(maps)


def post_process(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Post-process raw maps [n, h, w] like pytorch-grad-cam: relu, min-max, bilinear, relu, min-max."""

    def min_max(values: Tensor) -> Tensor:
        values = values - values.amin((1, 2), keepdim=True)
        return values / (1e-7 + values.amax((1, 2), keepdim=True))

    enlarged = F.interpolate(min_max(maps.relu())[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return min_max(enlarged.relu()).numpy()


@contextmanager
def _heavier_side() -> Iterator[None]:
    """Choose the sign of the principal component such that the positive cells have the larger sum of squares."""

    def orient(activations: np.ndarray) -> np.ndarray:
        components = get_2d_projection(activations)
        return np.stack([component * np.sign((component * np.abs(component)).sum()) for component in components])

    with patch("pytorch_grad_cam.eigen_cam.get_2d_projection", orient):
        yield


@contextmanager
def _sign_of_evidence() -> Iterator[None]:
    """Choose the sign of the principal component such that it correlates with gradient times activation."""

    def orient(products: np.ndarray) -> np.ndarray:
        evidence = products.sum(axis=1)
        pairs = zip(get_2d_projection(products), evidence, strict=True)
        return np.stack([component * np.sign((component * (total - total.mean())).sum()) for component, total in pairs])

    with patch("pytorch_grad_cam.eigen_grad_cam.get_2d_projection", orient):
        yield


@contextmanager
def _aligned_centres() -> Iterator[None]:
    """Enlarge masks with centres on centres, as the package enlarges its maps; its masks have corners on corners."""
    with patch("torch.nn.UpsamplingBilinear2d", lambda size: nn.Upsample(size=size, mode="bilinear")):
        yield


ADJUSTMENTS: dict[str, Callable[[], Any]] = {
    "eigencam": _heavier_side,
    "eigengradcam": _sign_of_evidence,
    "scorecam": _aligned_centres,
    # Only the math kernel of attention has second derivatives.
    "shapleycam": lambda: sdpa_kernel(SDPBackend.MATH),
}
