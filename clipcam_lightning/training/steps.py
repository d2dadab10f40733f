"""How many optimizer steps a fit has taken."""

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class StepCounter:
    """Counts the optimizer steps of a fit, or the batches of a manual optimization whose steps Lightning does not see.

    Before its first step a manual optimization that accumulates gradients looks like one that Lightning does not see.
    The difference is whether an optimizer of the module's parameters took a step, which may be one that Lightning does
    not know, or a whole epoch passed.
    """

    def __init__(self) -> None:
        self._batches = 0  # before the fit, which is more than 0 after a resume
        self._counts_batches = True
        self._parameters: set[int] = set()
        self._handles: Sequence[Any] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handles": (), "_parameters": set()}  # a copy does not listen to the optimizers

    def begin(self, trainer: Any) -> None:
        """Listen to the optimizers of a manual optimization."""
        self.end()
        self._batches = _count_batches(trainer)
        module = trainer.lightning_module
        self._counts_batches = bool(module.automatic_optimization)
        if not self._counts_batches:
            self._parameters = {id(parameter) for parameter in module.parameters()}
            self._handles = (register_optimizer_step_post_hook(self._note_step),)

    def count(self, trainer: Any) -> int:
        """Count the steps until now.

        Returns:
            The steps, on every rank the same.
        """
        module = trainer.lightning_module
        if trainer.global_step or module is None or module.automatic_optimization:
            return int(trainer.global_step)
        return _count_batches(trainer) if self._counts_batches else self._batches

    def end_epoch(self) -> None:
        """Count batches if no step was seen in a whole epoch: they are taken without an optimizer of torch."""
        self._counts_batches = True

    def end(self) -> None:
        """Listen to the optimizers no longer."""
        handles, self._handles = self._handles, ()
        for handle in handles:
            handle.remove()

    def _note_step(self, optimizer: Optimizer, *_arguments: Any) -> None:
        if not self._counts_batches:
            held = (id(parameter) for group in optimizer.param_groups for parameter in group["params"])
            self._counts_batches = not self._parameters.isdisjoint(held)


def _count_batches(trainer: Any) -> int:
    return int(trainer.fit_loop.epoch_loop.total_batch_idx) + 1
