"""Grad-CAM of other libraries, each used as documented: on the image tower alone, with texts embedded before.

All of them differentiate a model with trainable parameters, as in a fine-tuning. They support one target per image, so
several prompts are a loop.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from captum.attr import LayerGradCam  # type: ignore[import-untyped]
from jaxtyping import Float
from pytorch_grad_cam import GradCAM as PytorchGradCam  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F
from torchcam.methods import GradCAM as TorchCam

from clipcam_lightning import ClipModel

Texts = Float[Tensor, "n p e"]


def pytorch_grad_cam(clip: ClipModel, images: Float[Tensor, "n 3 y x"], texts: Texts) -> None:
    """Run a forward and a backward pass through the whole tower for every prompt."""
    visual, layer = image_tower(clip), clip.module.get_submodule(clip.tower.default_layer)
    # Made anew each time: its hooks stay on the model and would slow down the other contenders.
    with PytorchGradCam(visual, [layer], reshape_transform=partial(_grid, clip, images)) as cam:
        for column in texts.unbind(1):
            cam(images, _cosines(column))
    visual.zero_grad()  # its gradients would count as memory of the next contender


def torchcam(clip: ClipModel, images: Float[Tensor, "n 3 y x"], texts: Texts) -> None:
    """Run one forward pass through the whole tower, and for every prompt a backward pass down to the layer."""
    visual, layer = image_tower(clip), clip.module.get_submodule(clip.tower.default_layer)
    with TorchCam(visual, layer, reshape_transform=partial(_grid, clip, images)) as cam:
        features = visual(images)
        for column in texts.unbind(1):
            cam(targets=_cosines(column), scores=features, retain_graph=True)


def captum(clip: ClipModel, images: Float[Tensor, "n 3 y x"], texts: Texts) -> None:
    """Run, for every prompt, a forward pass through the whole tower and a backward pass down to the layer.

    Captum treats the second dimension as channels, which in a ViT holds the tokens: the map is wrong, but costs as much
    as a correct one.
    """

    def similarity(batch: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n p"]:
        return F.cosine_similarity(image_tower(clip)(batch)[:, None], texts, dim=-1)

    cam = LayerGradCam(similarity, clip.module.get_submodule(clip.tower.default_layer))
    for p in range(texts.shape[1]):
        cam.attribute(images, target=p, relu_attributions=True)


PEERS: dict[str, Callable[[ClipModel, Tensor, Tensor], None]] = {
    "pytorch-grad-cam": pytorch_grad_cam,
    "torchcam": torchcam,
    "captum": captum,
}


def image_tower(clip: ClipModel) -> Any:
    """Get the image tower of an open_clip model, a module from images to embeddings."""
    return clip.module.visual


def _grid(clip: ClipModel, images: Tensor, output: Tensor) -> Float[Tensor, "n c h w"]:
    return clip.tower.to_grid(output, (images.shape[-2], images.shape[-1]))


def _cosines(texts: Float[Tensor, "n e"]) -> list[Callable[[Tensor], Tensor]]:
    """Make one target per image."""
    return [partial(_cosine, text) for text in texts]


def _cosine(text: Float[Tensor, "e"], image: Float[Tensor, "e"]) -> Float[Tensor, ""]:
    return F.cosine_similarity(image, text, dim=0)
