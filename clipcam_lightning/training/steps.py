"""How many optimizer steps a fit has taken."""

from typing import Any


class StepCounter:
    """Counts the optimizer steps of a fit, or the batches of a manual optimization whose steps Lightning does not see.

    Before its first step a manual optimization that accumulates gradients looks like one that Lightning does not see.
    The difference is whether an optimizer of the trainer took a step.
    """

    def __init__(self) -> None:
        self._batches = 0  # before the fit, which is more than 0 after a resume
        self._has_stepped = True
        self._handles: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handles": []}  # a copy does not listen to the optimizers

    def begin(self, trainer: Any) -> None:
        """Listen to the optimizers of a manual optimization."""
        self.end()
        self._batches = _count_batches(trainer)
        optimizers = [] if trainer.lightning_module.automatic_optimization else trainer.optimizers
        self._has_stepped = not optimizers or not all(hasattr(each, "register_step_post_hook") for each in optimizers)
        if not self._has_stepped:
            self._handles = [each.register_step_post_hook(self._note_step) for each in optimizers]

    def count(self, trainer: Any) -> int:
        """Count the steps until now.

        Returns:
            The steps, on every rank the same.
        """
        module = trainer.lightning_module
        if trainer.global_step or module is None or module.automatic_optimization:
            return int(trainer.global_step)
        return _count_batches(trainer) if self._has_stepped else self._batches

    def end(self) -> None:
        """Listen to the optimizers no longer."""
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()

    def _note_step(self, *_arguments: Any) -> None:
        self._has_stepped = True


def _count_batches(trainer: Any) -> int:
    return int(trainer.fit_loop.epoch_loop.total_batch_idx) + 1
