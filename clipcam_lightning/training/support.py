"""What the callback must know of a Trainer, its strategy and a module.

Classes are matched by name, so that both Lightning packages work.
"""

from collections.abc import Mapping
from typing import Any

UNSUPPORTED = ("DeepSpeedStrategy", "XLAFSDPStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")


def unsupported_reason(strategy: object) -> str:
    """Say why no evaluation is possible under a strategy; ``""`` if the strategy is supported."""
    kinds = [kind.__name__ for kind in type(strategy).__mro__ if kind.__name__ in UNSUPPORTED]
    return f"{kinds[0]} is not supported." if kinds else ""


def may_build_layers_later(module: object) -> bool:
    """Whether a LightningModule may build its layers in its own ``setup`` or ``configure_model``."""
    return any(
        {"setup", "configure_model"} & vars(kind).keys()
        for kind in type(module).__mro__
        if not kind.__module__.startswith(("lightning.", "pytorch_lightning."))
    )


def list_owners(trainer: Any) -> list[Any]:
    """List what may know the names of the classes: the module, the datamodule, and the loaders of the training."""
    loaders = trainer.train_dataloader
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return [
        trainer.lightning_module,
        getattr(trainer, "datamodule", None),
        *(loaders if isinstance(loaders, list | tuple) else [loaders]),
    ]
