"""Independent, slower re-derivations that results are held against."""

import numpy as np
import torch
from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor, nn
from torch.nn import functional as F

PEERS: dict[str, type[BaseCAM]] = {"gradcam": GradCAM, "hirescam": HiResCAM, "layercam": LayerCAM}


def peer_maps(
    method: str, visual: nn.Module, layer: nn.Module, images: Tensor, texts: Tensor, grid: tuple[int, int] | None
) -> np.ndarray:
    """pytorch-grad-cam's finished maps [n, y, x] for image i and text i; ``grid`` for towers of tokens."""

    def rows_of_patches(tokens: Tensor) -> Tensor:
        assert grid is not None
        return tokens[:, 1:].reshape(len(tokens), *grid, -1).permute(0, 3, 1, 2)

    targets = [lambda embedding, text=text: F.cosine_similarity(embedding, text, dim=-1) for text in texts]
    with PEERS[method](visual, [layer], reshape_transform=rows_of_patches if grid else None) as cam:
        return np.asarray(cam(images, targets=targets))


def post_processed(maps: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Raw maps [n, h, w] through pytorch-grad-cam's order: relu, min-max, bilinear, relu, min-max."""

    def min_max(values: Tensor) -> Tensor:
        values = values - values.amin((1, 2), keepdim=True)
        return values / (1e-7 + values.amax((1, 2), keepdim=True))

    enlarged = F.interpolate(min_max(maps.relu())[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    return min_max(enlarged.relu()).numpy()


def full_graph_gradients(
    clip: nn.Module, layer: nn.Module, images: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Activations and gradients of a layer for cosine i, one image at a time through the whole model; the cosines."""
    activations, gradients, cosines = [], [], []
    for image, text in zip(images, texts, strict=True):
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _module, _inputs, output, kept=kept: kept.append(output))
        cosine = F.cosine_similarity(clip.encode_image(image[None]), text[None])
        handle.remove()
        (gradient,) = torch.autograd.grad(cosine.sum(), kept[0])
        activations.append(kept[0].detach())
        gradients.append(gradient)
        cosines.append(cosine.detach())
    return torch.cat(activations), torch.cat(gradients), torch.cat(cosines)


def maps_by_loops(method: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """Maps [n, h, w] of [n, c, h, w] by the papers' sums, written as loops."""
    n, c, h, w = activations.shape
    maps = torch.zeros(n, h, w)
    for i in range(n):
        for y in range(h):
            for x in range(w):
                for k in range(c):
                    a, g = activations[i, k, y, x], gradients[i, k, y, x]
                    weight = {
                        "gradcam": gradients[i, k].sum() / (h * w),
                        "hirescam": g,
                        "layercam": g if g > 0 else torch.tensor(0.0),
                    }[method]
                    maps[i, y, x] += weight * a
                maps[i, y, x] = max(maps[i, y, x], torch.tensor(0.0))
    return maps
