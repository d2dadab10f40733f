"""How many optimizer steps a fit has taken."""

from typing import Any, NamedTuple


class FitStart(NamedTuple):
    """Where a fit began, of which the steps are counted.

    Attributes:
        batches: that were trained on before, which is more than 0 after a resume.
        versions: how often each trained weight had been written to.
    """

    batches: int = 0
    versions: tuple[int, ...] = ()


def read_start(trainer: Any) -> FitStart:
    """Read where a fit begins, once its weights are there."""
    return FitStart(_count_batches(trainer), _read_versions(trainer.lightning_module))


def count_steps(trainer: Any, start: FitStart) -> int:
    """Count the optimizer steps, or the batches of a manual optimization whose steps Lightning does not see.

    Before its first step a manual optimization that accumulates gradients looks like one that Lightning does not see.
    The difference is whether the weights were written to.

    Args:
        trainer: of Lightning.
        start: where the fit began.
    """
    module = trainer.lightning_module
    if trainer.global_step or module is None or module.automatic_optimization:
        return int(trainer.global_step)
    written = sum(now != before for now, before in zip(_read_versions(module), start.versions, strict=False))
    # A few weights, such as the temperature, may be clamped after every batch.
    return _count_batches(trainer) if 2 * written > len(start.versions) else start.batches


def _count_batches(trainer: Any) -> int:
    return int(trainer.fit_loop.epoch_loop.total_batch_idx) + 1


def _read_versions(module: Any) -> tuple[int, ...]:
    return tuple(each._version for each in module.parameters() if each.requires_grad)
