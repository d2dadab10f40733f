"""How far float32 results of one formula may lie apart.

Another order of summation rounds differently, and vector instructions, threads and libraries choose the order. The
difference is relative to the largest value that was summed, not to each element, and grows with the depth of the
computation.
"""

import torch
from torch import Tensor
from torch.testing import assert_close

EPS = torch.finfo(torch.float32).eps  # 1.2e-7
MARGIN = 10  # over the error of the count, for processors and libraries on which nobody measured


def float32_tolerance(operations: int) -> float:
    """Bound the difference of two float32 results, relative to their largest value.

    Each operation (a matrix product, a norm, a softmax) adds an error of about ``EPS`` to those of the operations
    before it. ``EPS * operations`` is the sum. Differences that were measured with one to four threads and three sets
    of vector instructions stay below it, and the bound is ten times as much.

    Args:
        operations: how many follow each other, those of the backward pass included.
    """
    return MARGIN * EPS * operations


BLOCK_OPERATIONS = 12  # two norms, six matrix products, softmax, activation, two sums with the residual
BLOCKS = 3  # of the small towers of the tests; their ResNets are about as deep

MAP = float32_tolerance(2 * BLOCKS * BLOCK_OPERATIONS)  # forward and backward
SCORE = float32_tolerance(5)  # absolute, of a difference of cosines: norm, projection, length, dot product, difference
UNSTABLE = 1e-3  # XGrad-CAM of tokens divides by sums over the patches, which after a norm are near 0


def assert_equal_up_to_rounding(
    actual: Tensor, expected: Tensor, tolerance: float = MAP, *, absolute: float = 0.0, message: str | None = None
) -> None:
    """Compare float32 results relative to their largest value.

    Args:
        actual: what the package computes.
        expected: the result of another computation of the same formula.
        tolerance: one of the constants above.
        absolute: added to the tolerance; :data:`SCORE` for maps of differences of cosines.
        message: which of several comparisons failed.
    """
    largest = float(expected.detach().abs().max())
    assert_close(actual, expected, atol=tolerance * largest + absolute, rtol=0, msg=message)
