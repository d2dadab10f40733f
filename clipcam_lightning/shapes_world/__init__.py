"""A small world whose images come with exact masks, and the small CLIPs trained on it.

No weights and no data need to be downloaded, and every map can be graded. Demo, examples,
tests and benchmarks share it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip, model_input, trained_clip
from clipcam_lightning.shapes_world.scenes import CAPTIONS, Scenes, draw_scenes, with_haze, with_stamps

if TYPE_CHECKING:
    from clipcam_lightning.shapes_world.demo import FineTunedClip, demo_probes, loader, stamped_scenes

__all__ = [
    "CAPTIONS",
    "FineTunedClip",
    "Scenes",
    "WordTokenizer",
    "build_clip",
    "demo_probes",
    "draw_scenes",
    "loader",
    "model_input",
    "stamped_scenes",
    "trained_clip",
    "with_haze",
    "with_stamps",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the demo only when one of its names is used: it imports Lightning, which takes seconds."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.demo"), name)
