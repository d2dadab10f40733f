"""Integrated gradients."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.attnlrp import relevance_of_cells

STEPS = 3  # with three, small CLIPs were localised about as well as by occlusion


def integrated_gradients(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Average the gradient on the way from the mean cell to the image's cells, and multiply it with that way.

    .. math:: M_{ij} = \sum_k (A_{kij} - \bar A_k)\, \frac1n \sum_{m=1}^{n} \left.
        \frac{\partial s}{\partial A_{kij}} \right|_{\bar A + \frac{m - 1/2}{n} (A - \bar A)}

    with ``n`` three points, by the midpoint rule. With many points the map sums to the score minus that of the same
    image with the mean cell everywhere (completeness). Where the paper starts from a black image, the mean cell keeps
    what the image shows and takes away only where. The gradient is the true one, so that every operation between the
    layer and the score is covered.

    On a ViT the first block's input is mapped by default, without positions; on other towers the last layer. Class and
    register tokens stay as they are. Costs one forward, and per layer three more with a backward per prompt.

    Fits every tower. Values are signed.

    Args:
        capture: activations of the image, and gradients at one point. The maps of the points are averaged.

    Returns:
        Raw maps, in units of the score.

    Source: Sundararajan et al. 2017, eqs. 1 and 3, https://arxiv.org/abs/1703.01365
    """
    return relevance_of_cells(capture)
