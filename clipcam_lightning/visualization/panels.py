"""Panels: one probe at one evaluation as four tiles."""

import math

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from clipcam_lightning.cam.decoding import require_pixels
from clipcam_lightning.cam.lettering import letter
from clipcam_lightning.cam.map_state import MapState, map_state
from clipcam_lightning.drift.probe_drift import ProbeDrift, format_drift
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.visualization.drawing import (
    PANEL_TILE,
    TILE,
    draw_change,
    draw_heat,
    draw_outline,
    draw_overlay,
    draw_panel,
    enlarge,
)

NOT_COMPARABLE = "nothing to compare"


def probe_panel(
    pixels: UInt8[Tensor, "3 y x"],
    baseline: Float[Tensor, "h w"],
    now: Float[Tensor, "h w"],
    probe: ProbeDrift,
    *,
    steps: tuple[int, int],
    mask: Bool[Tensor, "y x"] | None = None,
) -> Image.Image:
    """Draw one probe at one evaluation: input, baseline, now and change, with its prompt and metrics.

    Args:
        pixels: input of the model.
        baseline: raw map.
        now: raw map.
        probe: prompt and metrics.
        steps: of the baseline and of the evaluation.
        mask: of the object, outlined on the input.

    Returns:
        The panel, with a red flag if the probe is flagged. Each map is scaled to its own maximum; in place of the heat
        of a degenerate map stand the words of its :class:`~clipcam_lightning.MapState`.

    Raises:
        ConfigError: ``pixels`` are no uint8 tensor.

    Example:
        >>> from clipcam_lightning import evaluate, probe_panel
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> maps, probe = evaluation.snapshot.maps, evaluation.report.probes[0]
        >>> probe_panel(evaluation.pixels[0], maps[0], maps[0], probe, steps=(0, 0)).size
        (700, 430)
    """
    require_pixels(pixels, "3 y x")
    tiles = probe_tiles(pixels, baseline, now, mask, side=PANEL_TILE)
    labels = "input", "baseline", "now", "change"
    details = [*_describe(probe), f"step {steps[0]} to {steps[1]}"]
    return draw_panel(probe.prompt, details, list(zip(labels, tiles, strict=True)), is_flagged=probe.flagged)


def probe_tiles(
    pixels: UInt8[Tensor, "3 y x"],
    baseline: Float[Tensor, "h w"],
    now: Float[Tensor, "h w"],
    mask: Bool[Tensor, "y x"] | None = None,
    side: int = TILE,
) -> tuple[Image.Image, Image.Image, Image.Image, Image.Image]:
    """Draw the tiles of a panel.

    Args:
        pixels: input of the model.
        baseline: raw map.
        now: raw map.
        mask: of the object, outlined on the input.
        side: of each tile, in pixels.

    Returns:
        Input, baseline, now and change.
    """
    before, after = map_state(baseline), map_state(now)
    heat_before, heat_now = relative_saliency(torch.stack([baseline, now]))
    large = enlarge(pixels, side)
    overlays = draw_overlay(large, heat_before, before), draw_overlay(large, heat_now, after)
    return draw_outline(large, mask), *overlays, _draw_change(large, heat_now - heat_before, before, after)


def heat_tiles(
    baseline: Float[Tensor, "h w"], now: Float[Tensor, "h w"]
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Draw the tiles of a probe whose image is not available.

    Args:
        baseline: raw map.
        now: raw map.

    Returns:
        Baseline, now and change.
    """
    before, after = map_state(baseline), map_state(now)
    heat_before, heat_now = relative_saliency(torch.stack([baseline, now]))
    paper = enlarge(torch.full((3, *baseline.shape), 255, dtype=torch.uint8, device="cpu"), TILE)
    size = (paper.shape[1], paper.shape[2])
    heats = draw_heat(heat_before, size, state=before), draw_heat(heat_now, size, state=after)
    return *heats, _draw_change(paper, heat_now - heat_before, before, after)


def _draw_change(
    pixels: UInt8[Tensor, "3 y x"], change: Float[Tensor, "h w"], before: MapState, now: MapState
) -> Image.Image:
    """Draw a change of heat, if both maps carry information."""
    if before.is_degenerate or now.is_degenerate:
        return letter(draw_change(pixels, torch.zeros_like(change)), NOT_COMPARABLE)
    return draw_change(pixels, change)


def _describe(probe: ProbeDrift) -> list[str]:
    """Describe a probe in at most three lines; of a degenerate map the tile says what is wrong with it."""
    before = probe.similarity - probe.similarity_change
    lines = [
        f"drift {format_drift(probe.drift)}" if probe.has_valid_baseline else "drift unknown",
        f"similarity {before:.2f} to {probe.similarity:.2f}",
    ]
    if math.isfinite(probe.energy_inside_mask) and math.isfinite(probe.energy_change):
        energy = probe.energy_inside_mask - probe.energy_change
        lines.append(f"on object {energy:.2f} to {probe.energy_inside_mask:.2f}")
    return lines
