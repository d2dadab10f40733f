"""What must be known of a strategy and a module before a fit; told by names, so that both Lightning packages are."""

from clipcam_lightning.errors import ConfigError

SHARDED = ("FSDPStrategy", "XLAFSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def refuse_sharded(strategy: object) -> None:
    """Refuse a strategy under which one rank alone cannot run a forward.

    Raises:
        ConfigError: with the strategy's name.
    """
    sharded = [kind.__name__ for kind in type(strategy).__mro__ if kind.__name__ in SHARDED]
    if sharded:
        raise ConfigError(f"ClipCamCallback cannot look into a model that {sharded[0]} splits over its ranks.")


def builds_later(module: object) -> bool:
    """Whether a LightningModule may build its layers in its own ``setup`` or ``configure_model``."""
    return any(
        {"setup", "configure_model"} & vars(kind).keys()
        for kind in type(module).__mro__
        if not kind.__module__.startswith(("lightning.", "pytorch_lightning."))
    )
