"""The second path of self-self attention that GEM and CLIP Surgery run beside the model's own."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.attention import Attention
from clipcam_lightning.cam.capture import WholeCapture


def embed_on_second_path(
    capture: WholeCapture, attend: Callable[[Attention, Float[Tensor, "b t d"]], Float[Tensor, "b h t v"]]
) -> Float[Tensor, "b s e"]:
    r"""Add up what another attention adds in each recorded block, without the MLPs, and embed the patches.

    .. math:: x' \leftarrow x' + \mathrm{out}(\mathrm{attend}(\ldots))

    starting from the first recorded block's input. Queries, keys and values are those of the model's own path.

    Args:
        capture: attention of the blocks.
        attend: computes the heads' outputs from a block's attention and the input of its attention module.

    Returns:
        Unit embedding of each patch, as if it alone were pooled; float32.
    """
    tower = capture.tower
    tokens = tower.to_tokens(capture.inputs[0].first_argument)
    for block, attention, call in zip(capture.blocks, capture.attentions, capture.attention_inputs, strict=True):
        heads = attend(attention, tower.to_tokens(call.first_argument))
        tokens = tokens + tower.project(block, heads.transpose(1, 2).flatten(2))
    return F.normalize(tower.embed_tokens(capture.select_patches(tokens)).float(), dim=-1)
