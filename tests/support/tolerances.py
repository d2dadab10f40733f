"""How far float32 results of the same formula may differ.

A different order of summation rounds differently, and vector instructions, threads and libraries choose the order. The
difference is relative to the largest value that was summed, not to each element, and grows with the depth of the
computation.
"""

import torch
from torch import Tensor
from torch.testing import assert_close

EPS = torch.finfo(torch.float32).eps  # 1.2e-7
MARGIN = 10  # for processors and libraries on which nothing was measured


def float32_tolerance(operations: int) -> float:
    """Compute the largest difference allowed between two float32 results, relative to their largest value.

    Each operation (a matrix product, a norm, a softmax) adds an error of about ``EPS`` to the errors of the operations
    before it, which sums to ``EPS * operations``. The differences measured with one to four threads and three sets of
    vector instructions are below this sum. The tolerance is ten times the sum.

    Args:
        operations: number of operations in sequence, including those of the backward pass.

    Returns:
        The tolerance, which is relative to the largest absolute value.
    """
    return MARGIN * EPS * operations


BLOCK_OPERATIONS = 12  # two norms, six matrix products, softmax, activation, two residual sums
BLOCKS = 3  # of the small towers in the tests; their ResNets are about as deep

MAP = float32_tolerance(2 * BLOCKS * BLOCK_OPERATIONS)  # forward and backward
SCORE = float32_tolerance(5)  # absolute, of a difference of cosines: norm, projection, length, dot product, difference
UNSTABLE = 1e-3  # XGrad-CAM of tokens divides by sums over the patches, which are close to 0 after a norm


def assert_equal_up_to_rounding(
    actual: Tensor, expected: Tensor, tolerance: float = MAP, *, absolute: float = 0.0, message: str | None = None
) -> None:
    """Compare float32 results with a tolerance relative to their largest value.

    Args:
        actual: the result of the package.
        expected: the result of another computation.
        tolerance: one of the constants above.
        absolute: additional absolute tolerance; :data:`SCORE` for maps that are differences of cosines.
        message: tells which of several comparisons failed.
    """
    largest = float(expected.detach().abs().max())
    assert_close(actual, expected, atol=tolerance * largest + absolute, rtol=0, msg=message)
