"""See where a CLIP looks in a fine-tuning with Lightning, and get an alarm when the background predicts the prompt.

Names are resolved when they are first used, so importing the package imports neither torch nor Lightning.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

__version__ = version("clipcam-lightning")

if TYPE_CHECKING:  # for type checkers and editors; a test compares it with the table below
    from clipcam_lightning.analysis.confusion import Confusion as Confusion, confusions as confusions
    from clipcam_lightning.analysis.method_measurement import RankedMethod as RankedMethod
    from clipcam_lightning.analysis.method_ranking import MethodRanking as MethodRanking, rank_methods as rank_methods
    from clipcam_lightning.analysis.prompt_sensitivity import (
        Sensitivity as Sensitivity,
        paraphrases as paraphrases,
        sensitivity as sensitivity,
    )
    from clipcam_lightning.callback import ClipCamCallback as ClipCamCallback
    from clipcam_lightning.cam.capture import AttentionCapture as AttentionCapture, Capture as Capture
    from clipcam_lightning.cam.explain import explain as explain
    from clipcam_lightning.cam.explanation import Explanation as Explanation
    from clipcam_lightning.cam.finding import ModelSpec as ModelSpec, find_clip as find_clip
    from clipcam_lightning.cam.map_state import MapState as MapState, map_state as map_state
    from clipcam_lightning.cam.methods import METHODS as METHODS, Method as Method
    from clipcam_lightning.cam.model import ClipModel as ClipModel
    from clipcam_lightning.cam.settings import MapSettings as MapSettings
    from clipcam_lightning.cam.targets import (
        Contrast as Contrast,
        LogSoftmax as LogSoftmax,
        Similarity as Similarity,
        Target as Target,
    )
    from clipcam_lightning.cam.towers.tower import AttentionTower as AttentionTower, Tower as Tower
    from clipcam_lightning.drift.compare import compare as compare
    from clipcam_lightning.drift.probe_drift import ProbeDrift as ProbeDrift
    from clipcam_lightning.drift.report import DriftReport as DriftReport
    from clipcam_lightning.drift.report_json import report_as_json as report_as_json
    from clipcam_lightning.drift.rule import DriftRule as DriftRule
    from clipcam_lightning.drift.snapshot import Snapshot as Snapshot, SnapshotInfo as SnapshotInfo
    from clipcam_lightning.errors import (
        ClipCamError as ClipCamError,
        ClipCamWarning as ClipCamWarning,
        ConfigError as ConfigError,
        DriftAlarm as DriftAlarm,
        IncomparableError as IncomparableError,
        ModelError as ModelError,
        ProbeError as ProbeError,
        SnapshotError as SnapshotError,
        TowerError as TowerError,
    )
    from clipcam_lightning.monitor import ClipCamMonitor as ClipCamMonitor
    from clipcam_lightning.monitoring.evaluate import evaluate as evaluate
    from clipcam_lightning.monitoring.evaluation import Evaluation as Evaluation, Sink as Sink
    from clipcam_lightning.monitoring.history import HistoryEntry as HistoryEntry
    from clipcam_lightning.probes.probe import LoadedProbe as LoadedProbe, Probe as Probe
    from clipcam_lightning.probes.probe_set import ProbeSet as ProbeSet
    from clipcam_lightning.sinks.background import BackgroundSink as BackgroundSink
    from clipcam_lightning.visualization.analysis_panels import (
        confusion_panel as confusion_panel,
        sensitivity_panel as sensitivity_panel,
    )
    from clipcam_lightning.visualization.contact_sheet import contact_sheet as contact_sheet
    from clipcam_lightning.visualization.panels import probe_panel as probe_panel
    from clipcam_lightning.visualization.report import html_pages as html_pages, html_report as html_report
else:  # for Python; type checkers skip it, so that they report an unknown name
    _NAMES = {
        "analysis.confusion": ("Confusion", "confusions"),
        "analysis.method_measurement": ("RankedMethod",),
        "analysis.method_ranking": ("MethodRanking", "rank_methods"),
        "analysis.prompt_sensitivity": ("Sensitivity", "paraphrases", "sensitivity"),
        "callback": ("ClipCamCallback",),
        "cam.capture": ("AttentionCapture", "Capture"),
        "cam.explain": ("explain",),
        "cam.explanation": ("Explanation",),
        "cam.finding": ("ModelSpec", "find_clip"),
        "cam.map_state": ("MapState", "map_state"),
        "cam.methods": ("METHODS", "Method"),
        "cam.model": ("ClipModel",),
        "cam.settings": ("MapSettings",),
        "cam.targets": ("Contrast", "LogSoftmax", "Similarity", "Target"),
        "cam.towers.tower": ("AttentionTower", "Tower"),
        "drift.compare": ("compare",),
        "drift.probe_drift": ("ProbeDrift",),
        "drift.report": ("DriftReport",),
        "drift.report_json": ("report_as_json",),
        "drift.rule": ("DriftRule",),
        "drift.snapshot": ("Snapshot", "SnapshotInfo"),
        "errors": (
            "ClipCamError",
            "ClipCamWarning",
            "ConfigError",
            "DriftAlarm",
            "IncomparableError",
            "ModelError",
            "ProbeError",
            "SnapshotError",
            "TowerError",
        ),
        "monitor": ("ClipCamMonitor",),
        "monitoring.evaluate": ("evaluate",),
        "monitoring.evaluation": ("Evaluation", "Sink"),
        "monitoring.history": ("HistoryEntry",),
        "probes.probe": ("LoadedProbe", "Probe"),
        "probes.probe_set": ("ProbeSet",),
        "sinks.background": ("BackgroundSink",),
        "visualization.analysis_panels": ("confusion_panel", "sensitivity_panel"),
        "visualization.contact_sheet": ("contact_sheet",),
        "visualization.panels": ("probe_panel",),
        "visualization.report": ("html_pages", "html_report"),
    }
    _MODULES = {name: module for module, names in _NAMES.items() for name in names}
    __all__ = list(_MODULES)

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
