"""A small world whose images come with exact masks, and the small CLIPs trained on it.

No weights and no data need to be downloaded, and every map can be graded. Demo, examples,
tests and benchmarks share it.
"""

from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip, model_input, trained_clip
from clipcam_lightning.shapes_world.scenes import CAPTIONS, Scenes, draw_scenes, with_haze, with_stamps

__all__ = [
    "CAPTIONS",
    "Scenes",
    "WordTokenizer",
    "build_clip",
    "draw_scenes",
    "model_input",
    "trained_clip",
    "with_haze",
    "with_stamps",
]
