"""How far the map of one probe is from its baseline, and what its image shows without the object."""

import math
from dataclasses import dataclass

from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.drift.transplants import Transplants

ROUNDING = 1e-6  # of a drift


@dataclass(frozen=True)
class ProbeDrift:
    """How far the map of one probe is from its baseline.

    Attributes:
        name: of the probe.
        prompt: of the probe.
        drift: 1 minus the correlation coefficient of the raw maps: 0 for equal, 1 for unrelated, 2 for inverted maps. A
            degenerate map counts as 1.
        top_iou: overlap of the hottest 20 % of the cells, 0 to 1; a degenerate map counts as 0.
        center_shift: distance of the centres of mass, as a fraction of the image's diagonal, 0 to 1; a degenerate map
            counts as 1.
        js_distance: Jensen-Shannon distance of the maps' mass, 0 to 1; a degenerate map counts as 1.
        noise_ratio: drift in units of the probe's noise floor; NaN if the baseline has none.
        shared_gain: share of the map's mass that is new where the other images' maps gained most
            (:func:`~clipcam_lightning.drift.metrics.shared_gain`), -1 to 1; NaN for a degenerate map, which gained
            nothing anywhere, and if no other image has a valid map.
        concentration: share of the map's mass that is new in one spot
            (:func:`~clipcam_lightning.drift.metrics.concentration`), 0 to 1; NaN for a degenerate map.
        similarity: cosine of image and prompt now, -1 to 1.
        similarity_change: now minus baseline.
        energy_inside_mask: share of the map's mass on the object, 0 to 1; 0 for a degenerate map, NaN without mask.
        energy_change: now minus baseline; NaN without mask.
        pointing: 1 if the map's hottest pixel is on the object, else 0; 0 for a degenerate map, NaN without mask.
        background_score: how much nearer to its prompt the image without its object is than the other images without
            theirs, in standard deviations of these; NaN if unknown.
        background_score_before: the same at the baseline.
        named_without_object: 1 if the image without its object is closer to its own prompt than to those of the other
            probes, else 0; NaN if unknown.
        named_before: the same at the baseline.
        closest_prompt: the prompt of the probes that the whole image is closest to; empty if unknown.
        closest_prompt_before: the same at the baseline.
        transplants: what the model calls other objects on the background of this image; nothing is counted without
            suspicion.
        transplants_before: the same at the run's first baseline.
        covered_loss: what the similarity loses if the place outside the object is covered where the map gained most,
            -2 to 2; NaN if the map hardly moved, and without suspicion.
        control_loss: the same for another place, as far from the middle of the image; NaN as above.
        state: of the map of now: whether it carries information, and if not, why.
        baseline_state: of the baseline's map.
        severity: how far the map is off in units of what the rule tolerates; a probe above 1 is flagged. Infinite
            for a valid map that became degenerate, 0 without valid baseline.
        reason: why the probe is flagged; empty if it is not.

    Example:
        >>> from clipcam_lightning import evaluate
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> probe = evaluation.report.probes[0]
        >>> round(probe.drift, 3), probe.flagged, str(probe.state)
        (0.0, False, 'valid')
    """

    name: str
    prompt: str
    drift: float
    top_iou: float
    center_shift: float
    js_distance: float
    noise_ratio: float
    shared_gain: float
    concentration: float
    similarity: float
    similarity_change: float
    energy_inside_mask: float
    energy_change: float
    pointing: float
    background_score: float
    background_score_before: float
    named_without_object: float
    named_before: float
    closest_prompt: str
    closest_prompt_before: str
    transplants: Transplants
    transplants_before: Transplants
    covered_loss: float
    control_loss: float
    state: MapState
    baseline_state: MapState
    severity: float
    reason: str

    @property
    def has_valid_baseline(self) -> bool:
        """Whether the baseline's map carries information; if not, the drift is unknown."""
        return not self.baseline_state.is_degenerate

    @property
    def background_gain(self) -> float:
        """How far the background score rose, counting negative scores as 0; NaN if unknown.

        A background with a negative score does not speak for the prompt, however low the score is. At the baseline it
        is low above all where the object's region was chosen as the place whose removal lowers the similarity most.
        """
        return max(self.background_score, 0.0) - max(self.background_score_before, 0.0)  # max keeps a NaN that is first

    @property
    def degenerate(self) -> str:
        """State of the map of now, or else of the baseline's map, if it is degenerate; empty if both are valid."""
        degenerate = (state.value for state in (self.state, self.baseline_state) if state.is_degenerate)
        return next(degenerate, "")

    @property
    def flagged(self) -> bool:
        """Whether the probe violates the rule."""
        return bool(self.reason)


def format_loss(loss: float) -> str:
    """Format a loss of similarity for people: three digits after the point.

    Example:
        >>> format_loss(0.1234), format_loss(-0.0001)
        ('0.123', '0.000')
    """
    return f"{round(loss, 3) + 0.0:.3f}"  # adding 0 removes the sign of -0


def format_drift(drift: float) -> str:
    """Format a drift for people: two digits after the point, below 0.1 as many as show two that count.

    Args:
        drift: 0 to 2; below 1e-6 it is rounding and formatted as 0.

    Example:
        >>> format_drift(1.234), format_drift(0.000128), format_drift(0.0)
        ('1.23', '0.00013', '0.00')
    """
    decimals = 1 - math.floor(math.log10(drift)) if ROUNDING <= drift < 0.1 else 2
    return f"{drift:.{decimals}f}"
