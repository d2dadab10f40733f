"""See where a CLIP looks while it is fine-tuned with PyTorch Lightning, and be told when that changes.

Names are resolved when they are first used: importing the package imports neither torch nor Lightning.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipcam_lightning.analysis.confusion import Confusion, confusions
    from clipcam_lightning.callback import ClipCamCallback
    from clipcam_lightning.cam.capture import Capture
    from clipcam_lightning.cam.explain import explain
    from clipcam_lightning.cam.explanation import Explanation
    from clipcam_lightning.cam.methods import METHODS, Method
    from clipcam_lightning.cam.model import ClipModel, find_clip
    from clipcam_lightning.cam.targets import Contrast, LogSoftmax
    from clipcam_lightning.cam.towers.tower import Tower
    from clipcam_lightning.drift.compare import DriftReport, compare
    from clipcam_lightning.drift.rule import DriftRule
    from clipcam_lightning.drift.snapshot import Snapshot
    from clipcam_lightning.errors import ClipCamError, ClipCamWarning, DriftAlarm
    from clipcam_lightning.probes.probe import Probe
    from clipcam_lightning.probes.probe_set import ProbeSet

__version__ = version("clipcam-lightning")

_HOME = {
    "METHODS": "cam.methods",
    "Capture": "cam.capture",
    "ClipCamCallback": "callback",
    "ClipCamError": "errors",
    "ClipCamWarning": "errors",
    "ClipModel": "cam.model",
    "Confusion": "analysis.confusion",
    "Contrast": "cam.targets",
    "DriftAlarm": "errors",
    "DriftReport": "drift.compare",
    "DriftRule": "drift.rule",
    "Explanation": "cam.explanation",
    "LogSoftmax": "cam.targets",
    "Method": "cam.methods",
    "Probe": "probes.probe",
    "ProbeSet": "probes.probe_set",
    "Snapshot": "drift.snapshot",
    "Tower": "cam.towers.tower",
    "compare": "drift.compare",
    "confusions": "analysis.confusion",
    "explain": "cam.explain",
    "find_clip": "cam.model",
}

__all__ = [
    "METHODS",
    "Capture",
    "ClipCamCallback",
    "ClipCamError",
    "ClipCamWarning",
    "ClipModel",
    "Confusion",
    "Contrast",
    "DriftAlarm",
    "DriftReport",
    "DriftRule",
    "Explanation",
    "LogSoftmax",
    "Method",
    "Probe",
    "ProbeSet",
    "Snapshot",
    "Tower",
    "compare",
    "confusions",
    "explain",
    "find_clip",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
