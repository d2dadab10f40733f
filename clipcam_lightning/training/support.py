"""What must be known of a strategy and a module before a fit; told by names, so that both Lightning packages are."""

NOT_SERVED = ("DeepSpeedStrategy", "XLAFSDPStrategy", "XLAStrategy", "SingleDeviceXLAStrategy")


def why_not(strategy: object) -> str:
    """Why no look can be taken under a strategy; empty if it can."""
    kinds = [kind.__name__ for kind in type(strategy).__mro__ if kind.__name__ in NOT_SERVED]
    return f"ClipCamCallback cannot look into a model under {kinds[0]}." if kinds else ""


def builds_later(module: object) -> bool:
    """Whether a LightningModule may build its layers in its own ``setup`` or ``configure_model``."""
    return any(
        {"setup", "configure_model"} & vars(kind).keys()
        for kind in type(module).__mro__
        if not kind.__module__.startswith(("lightning.", "pytorch_lightning."))
    )
