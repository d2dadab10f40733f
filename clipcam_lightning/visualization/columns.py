"""Which evaluations of a long run are drawn."""

import numpy as np


def choose_columns(count: int, limit: int, kept: int | None = None) -> list[int]:
    """Choose the first evaluation, the last, one that must be among them, and others evenly spread between them.

    Args:
        count: of the evaluations, at least 1.
        limit: of the chosen ones, at least 2; the one that must be among them needs 3.
        kept: number of the one that must be among them, such as the first with an alarm.

    Returns:
        Numbers of evaluations, ascending.
    """
    chosen = set(np.linspace(0, count - 1, limit).round().astype(int).tolist())
    inner = sorted(chosen)[1:-1]
    if kept is not None and kept not in chosen and inner:
        chosen.remove(min(inner, key=lambda i: abs(i - kept)))
        chosen.add(kept)
    return sorted(chosen)
