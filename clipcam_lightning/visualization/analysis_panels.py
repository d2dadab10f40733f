"""Panels of the analyses: confusions and prompt sensitivity."""

import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from clipcam_lightning.analysis.confusion import Confusion
from clipcam_lightning.analysis.prompt_sensitivity import Sensitivity
from clipcam_lightning.cam.decoding import require_pixels
from clipcam_lightning.cam.display.drawing import to_image
from clipcam_lightning.cam.map_state import map_state
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.visualization.drawing import (
    PANEL_TILE,
    draw_change,
    draw_outline,
    draw_overlay,
    draw_panel,
    enlarge,
)


def confusion_panel(
    pixels: UInt8[Tensor, "3 y x"], confusion: Confusion, mask: Bool[Tensor, "y x"] | None = None
) -> Image.Image:
    """Draw one confused probe: input, map of its own prompt, map of the preferred prompt, difference.

    Args:
        pixels: the image as the model sees it: ``find_clip(model).preprocessing.pixels(image)[0]``.
        confusion: of :func:`~clipcam_lightning.analysis.confusion.confusions`.
        mask: of the object, outlined on the input.

    Returns:
        The panel; each map is scaled to its own maximum.

    Raises:
        ConfigError: ``pixels`` are no uint8 tensor.

    Example:
        >>> import torch
        >>> from clipcam_lightning import Confusion, confusion_panel
        >>> maps = torch.rand(2, 7, 7)
        >>> confusion = Confusion(0, "cat", "a cat", "a dog", 0.2, 0.3, maps[0], maps[1])
        >>> confusion_panel(torch.zeros(3, 224, 224, dtype=torch.uint8), confusion).size
        (700, 430)
    """
    require_pixels(pixels, "3 y x")
    own, preferred = relative_saliency(torch.stack([confusion.map, confusion.preferred_map]))
    large = enlarge(pixels, PANEL_TILE)
    return draw_panel(
        f"{confusion.prompt}, taken for {confusion.preferred}",
        [f"similarity {confusion.similarity:.3f}", f"preferred {confusion.preferred_similarity:.3f}"],
        [
            ("input", draw_outline(large, mask)),
            ("true prompt", draw_overlay(large, own, map_state(confusion.map))),
            ("preferred", draw_overlay(large, preferred, map_state(confusion.preferred_map))),
            ("difference", draw_change(large, preferred - own)),
        ],
        change=("true", "preferred"),
    )


def sensitivity_panel(pixels: UInt8[Tensor, "3 y x"], sensitivity: Sensitivity) -> Image.Image:
    """Draw one image under paraphrases: input, mean map, spread between paraphrases,
    and mean map of absent things.

    Args:
        pixels: the image as the model sees it: ``find_clip(model).preprocessing.pixels(image)[0]``.
        sensitivity: of :func:`~clipcam_lightning.analysis.prompt_sensitivity.sensitivity`.

    Returns:
        The panel, with the correlation of the maps between paraphrases and with those of absent things.

    Raises:
        ConfigError: ``pixels`` are no uint8 tensor.

    Example:
        >>> import torch
        >>> from clipcam_lightning import sensitivity, sensitivity_panel
        >>> from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
        >>> result = sensitivity(trained_clip("vit"), torch.rand(3, 64, 64), "a red circle", tokenizer=WordTokenizer())
        >>> sensitivity_panel(torch.zeros(3, 64, 64, dtype=torch.uint8), result).size
        (700, 430)
    """
    require_pixels(pixels, "3 y x")
    large = enlarge(pixels, PANEL_TILE)
    means = [relative_saliency(maps).mean(0) for maps in (sensitivity.maps, sensitivity.absent_maps)]
    own, absent = relative_saliency(torch.stack(means))
    return draw_panel(
        sensitivity.prompts[0],
        [
            f"{len(sensitivity.prompts)} paraphrases",
            f"correlation {sensitivity.correlation:.2f}",
            f"top-20 % IoU {sensitivity.top_iou:.2f}",
            f"absent things {sensitivity.absent_correlation:.2f}",
        ],
        [
            ("input", to_image(large)),
            ("mean map", draw_overlay(large, own, map_state(means[0]))),
            ("spread", draw_overlay(large, sensitivity.spread.nan_to_num(0.0))),
            ("absent things", draw_overlay(large, absent, map_state(means[1]))),
        ],
    )
