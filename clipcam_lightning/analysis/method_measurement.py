"""Measure CAM methods on a model and probes of one's own, one by one."""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clipcam_lightning.analysis.interventions import fill_regions, transplant
from clipcam_lightning.analysis.map_quality import LIKE_BEFORE, grade, hottest_discs, perturbation_curves
from clipcam_lightning.analysis.prompt_sensitivity import ABSENT
from clipcam_lightning.cam.arguments import require_positive
from clipcam_lightning.cam.capture import LayerCapture
from clipcam_lightning.cam.compact_images import parts
from clipcam_lightning.cam.explain import BATCH_SIZE, explain_clip
from clipcam_lightning.cam.fuse import Fusion, resize_maps
from clipcam_lightning.cam.methods import METHODS, Method, MethodLike
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.probes.probe_set import ProbeSet

BUDGET = 300  # forwards per map: occlusion of a 16 x 16 grid fits, one forward for each of 512 channels does not
SAME_FOR_ALL_PROMPTS = 0.95  # correlation from which a map counts as independent of its prompt
SHUFFLE_SEED = 0
GROUNDS = 3  # images of other prompts that the disc of a probe is put on


@dataclass(frozen=True, eq=False, repr=False)
class RankedMethod:
    """A CAM method as measured on a model and probes; see :func:`rank_methods`. Means are over the probes.

    Attributes:
        method: its name.
        layers: dotted names of the mapped layers.
        fuse: how their maps are combined.
        forwards: cost of one map, in forwards of the image tower, where a backward counts as two.
        pointing: share of the masked probes, 0 to 1, whose hottest pixel is on the object; NaN without masks.
        energy: mean share of a map's mass on the object, 0 to 1; NaN without masks.
        necessity: mean margin that an image loses if a disc around the hottest pixel is filled with the colours around
            it. Its radius is a fifth of the image's shorter side. The margin is the cosine with the prompt minus the
            mean cosine with the other prompts. Higher is better.
        sufficiency: mean margin that images of other prompts gain from that disc, compared with the same place filled
            with the colours around it. Higher is better; NaN if all probes have one prompt.
        insertion: mean margin while the hottest pixels are inserted into the mean colour, over the whole curve. Higher
            is better.
        deletion: mean margin while the hottest pixels are deleted. Lower is better.
        agreement: mean correlation with the map of occlusion, -1 to 1; NaN if occlusion was too dear.
        randomization: mean correlation of the maps before and after the weights of the image tower are shuffled. From
            0.5 on, the method explains the image and not the model.
        other_prompt: mean correlation of a probe's map with the map for the prompt of another probe. From 0.95 on, the
            method ignores the prompt.
        degenerate: share of the maps, 0 to 1, that carry no information. In the means such a map counts as one that
            misses the object and is the same for all weights and prompts; necessity and sufficiency are at most 0.
        maps: raw saliency of each probe, on the CPU.

    Example:
        >>> row = RankedMethod("gradcam", ("visual.layer4",), "mean", 3, maps=torch.rand(2, 7, 7), randomization=0.7)
        >>> row.setting
        'method="gradcam", layers=["visual.layer4"]'
        >>> row.problems
        ('does not depend on the weights',)
    """

    method: str
    layers: tuple[str, ...]
    fuse: Fusion
    forwards: int
    pointing: float = math.nan
    energy: float = math.nan
    necessity: float = math.nan
    sufficiency: float = math.nan
    insertion: float = math.nan
    deletion: float = math.nan
    agreement: float = math.nan
    randomization: float = math.nan
    other_prompt: float = math.nan
    degenerate: float = 0.0
    maps: Float[Tensor, "n h w"] = field(kw_only=True)

    __repr__ = short_repr

    @property
    def setting(self) -> str:
        """The arguments that make such maps, as Python."""
        name = f'"{self.method}"' if self.method in METHODS else self.method
        names = ", ".join(f'"{layer}"' for layer in self.layers)
        layers = f", layers=[{names}]" if names else ""  # none for a method that reads the pool alone
        fuse = "" if self.fuse == "mean" else f', fuse="{self.fuse}"'
        return f"method={name}{layers}{fuse}"

    @property
    def title(self) -> str:
        """Name of the method, with its layers and how their maps are combined."""
        layers = f" at {', '.join(self.layers)}" if self.layers else ""
        return f"{self.method}{layers}{'' if self.fuse == 'mean' else f' ({self.fuse})'}"

    @property
    def effect(self) -> float:
        """Necessity plus sufficiency, or necessity alone: how much the place matters where the maps are hottest."""
        return self.necessity + (0.0 if math.isnan(self.sufficiency) else self.sufficiency)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the method is not to be trusted on this model; empty if nothing speaks against it."""
        problems = {
            "does not depend on the weights": self.randomization >= LIKE_BEFORE,
            "does not depend on the prompt": self.other_prompt >= SAME_FOR_ALL_PROMPTS,
            "most maps are degenerate": self.degenerate > 0.5,
        }
        return tuple(problem for problem, is_present in problems.items() if is_present)


@dataclass(frozen=True)
class Candidate:
    """A method to measure.

    Attributes:
        method: the method.
        layers: dotted names.
        fuse: how the maps of several layers are combined.
        forwards: cost of one map.
    """

    method: Method
    layers: tuple[str, ...]
    fuse: Fusion
    forwards: int


class MethodBench:
    """Measures methods one by one on the same model and probes.

    Args:
        clip: the model.
        probes: images with prompts.
        budget: the most forwards that a map may cost.
        batch_size: images per pass; ``None`` for the default.

    Raises:
        ModelError: all probes have one prompt and there is no tokenizer for other prompts.
        ProbeError: the probes do not fit the model.
    """

    def __init__(self, clip: ClipModel, probes: ProbeSet, budget: int = BUDGET, batch_size: int | None = None) -> None:
        require_positive(budget=budget, batch_size=batch_size)
        self.clip = clip
        self.probes = probes
        self.budget = budget
        self.batch_size = batch_size
        self.prepared: PreparedProbes = probes.prepare(clip)
        with evaluation_mode(clip.module), torch.no_grad():
            own = self.prepared.embed_texts(clip)[:, 0]
            self.texts, numbers = own.unique(dim=0, return_inverse=True)
            self.own = numbers.cpu()
            if len(self.texts) == 1:
                self.texts = torch.cat([self.texts, clip.embed_texts(ABSENT)])

    def choose_candidates(self, methods: Sequence[MethodLike] | None) -> tuple[list[Candidate], dict[str, str]]:
        """Choose the methods to measure.

        Args:
            methods: names, methods or functions; ``None`` for all that fit the tower, and ``"auto"``.

        Returns:
            The candidates, each setting once; and the reason for each method that is left out.

        Raises:
            ConfigError: a method does not exist or fit, or none is within the budget.
        """
        tower = self.clip.tower
        if methods is None:
            methods = ["auto", *(method for method in METHODS.values() if not method.missing(tower))]
        candidates: dict[tuple[Method, tuple[str, ...], Fusion], Candidate] = {}
        left_out = {}
        for each in methods:
            method, layers, fuse = MapSettings(method=each).resolve(tower)
            forwards = method.forwards(self._measure_layers(layers) if method.variants or method.steps else [])
            if method.target is not None:
                left_out[method.name] = "compares the prompts of one image, and a probe has one prompt"
            elif forwards > self.budget:
                left_out[method.name] = f"costs {forwards} forwards per map, more than the budget of {self.budget}"
            else:
                candidates[method, layers, fuse] = Candidate(method, layers, fuse, forwards)
        if not candidates:
            reasons = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
            raise ConfigError(f"there is no method to rank: {reasons or 'methods is empty'}.")
        return list(candidates.values()), left_out

    def measure(self, candidate: Candidate) -> RankedMethod:
        """Measure one method.

        Args:
            candidate: of :meth:`choose_candidates`.
        """
        has_reference = self._occlusion.forwards <= self.budget
        is_occlusion = has_reference and candidate == self._occlusion
        maps, of_other = self._reference if is_occlusion else self._explain(self.clip, candidate)
        randomized, _ = self._explain(self._shuffled, candidate)
        degenerate = ~metrics.is_valid(maps)
        agreement = torch.full_like(maps[:, 0, 0], torch.nan)
        if has_reference:
            reference = self._reference[0]
            agreement = _correlate(resize_maps(maps, _size(reference)), reference, degenerate, worst=-1.0)
        with evaluation_mode(self.clip.module), self.clip.tower.native(), torch.no_grad():
            necessity, sufficiency = self._measure_effects(maps, degenerate)
            insertion, deletion = self._measure_curves(maps)
        masked = self.prepared.has_mask
        grades = grade(maps[masked][:, None], self.prepared.masks[masked][:, None]) if masked.any() else None
        return RankedMethod(
            candidate.method.name,
            candidate.layers,
            candidate.fuse,
            candidate.forwards,
            pointing=float(grades.pointing.mean()) if grades else math.nan,
            energy=float(grades.energy.mean()) if grades else math.nan,
            necessity=necessity,
            sufficiency=sufficiency,
            insertion=insertion,
            deletion=deletion,
            agreement=float(agreement.mean()),
            randomization=float(_correlate(maps, randomized, degenerate, worst=1.0).mean()),
            other_prompt=float(_correlate(maps, of_other, degenerate, worst=1.0).mean()),
            degenerate=float(degenerate.float().mean()),
            maps=maps,
        )

    @cached_property
    def _occlusion(self) -> Candidate:
        method, layers, fuse = MapSettings(method="occlusion").resolve(self.clip.tower)
        return Candidate(method, layers, fuse, method.forwards(self._measure_layers(layers)))

    @cached_property
    def _reference(self) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
        """The maps of occlusion."""
        return self._explain(self.clip, self._occlusion)

    @cached_property
    def _shuffled(self) -> ClipModel:
        """A copy of the model in which the weights of the image tower are shuffled."""
        copy = deepcopy(self.clip)
        shuffle_weights(copy.module.get_submodule(copy.adapter.vision))
        return copy

    def _measure_layers(self, layers: tuple[str, ...]) -> list[tuple[int, int, int]]:
        """Measure channels, height and width of layers, with one forward."""
        shapes: list[tuple[int, int, int]] = []

        def record(capture: LayerCapture) -> Float[Tensor, "b 1 h w"]:
            _, channels, height, width = capture.activations.shape
            shapes.append((channels, height, width))
            return capture.activations[:, :1]

        settings = MapSettings(method=Method(record, LayerCapture), layers=layers, fuse="max")
        explain_clip(self.clip, self.prepared.images[:1], self.texts[:1], settings)
        return shapes

    def _explain(self, clip: ClipModel, candidate: Candidate) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
        """Map each probe for its own prompt, and for the prompt of another probe."""
        settings = MapSettings(
            method=candidate.method, layers=candidate.layers or None, fuse=candidate.fuse, batch_size=self.batch_size
        )
        others = (self.own + 1) % len(self.texts)
        prompts = torch.stack([self.texts[self.own], self.texts[others]], dim=1)
        maps = explain_clip(clip, self.prepared.images, prompts, settings).maps.cpu()
        return maps[:, 0], maps[:, 1]

    @cached_property
    def grounds(self) -> Int[Tensor, "n k"]:
        """Other images with other prompts, for each probe: evenly spread over those that follow it; else ``-1``."""
        images = torch.tensor(self.prepared.images.keys, device="cpu", dtype=torch.int64)
        grounds = torch.full((len(images), GROUNDS), NONE, device="cpu", dtype=torch.int64)
        for i, (prompt, image) in enumerate(zip(self.own, images, strict=True)):
            others = ((self.own != prompt) & (images != image)).roll(-i).nonzero()[:, 0] + i
            count = min(GROUNDS, len(others))
            for k in range(count):
                grounds[i, k] = others[k * len(others) // count] % len(images)
        return grounds

    def _measure_effects(self, maps: Float[Tensor, "n h w"], degenerate: Bool[Tensor, "n"]) -> tuple[float, float]:
        """Average necessity and sufficiency.

        A degenerate map has no hottest pixel, and nothing that happens to be where one is looked for counts for it.
        """
        images, losses, gains = self.prepared.images, [], []
        for part in self._parts:
            own, whole = self.own[part], images[part]
            discs = hottest_discs(maps[part].nan_to_num(0), _size(whole))
            losses.append(self._compute_margins(whole, own) - self._compute_margins(fill_regions(whole, discs), own))
            gained = torch.full((len(own), GROUNDS), torch.nan, device="cpu", dtype=torch.float32)
            for k, numbers in enumerate(self.grounds[part].unbind(1)):
                rows = numbers != NONE
                if rows.any():
                    ground = images[numbers[rows]]
                    gained[rows, k] = self._compute_margins(
                        transplant(ground, whole[rows], discs[rows]), own[rows]
                    ) - self._compute_margins(fill_regions(ground, discs[rows]), own[rows])
            gains.append(gained.nanmean(dim=1))
        loss, gain = (
            torch.where(degenerate, each.clamp(max=0), each) for each in (torch.cat(losses), torch.cat(gains))
        )
        return float(loss.mean()), float(gain.nanmean())

    def _measure_curves(self, maps: Float[Tensor, "n h w"]) -> tuple[float, float]:
        """Average the margins over the curves of insertion and of deletion."""
        areas = []
        for part in self._parts:
            score = partial(self._compute_margins, own=self.own[part])
            curves = perturbation_curves(score, self.prepared.images[part], maps[part].nan_to_num(0))
            areas.append(torch.stack([torch.trapezoid(each, dx=1 / (each.shape[1] - 1), dim=1) for each in curves]))
        deletion, insertion = torch.cat(areas, dim=1).mean(dim=1).tolist()
        return insertion, deletion

    @property
    def _parts(self) -> Iterator[slice]:
        """Divide the probes, so that memory does not grow with their number."""
        return parts(len(self.own), self.prepared.images.shape)

    def _compute_margins(self, images: Float[Tensor, "n 3 y x"], own: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Compute the cosine of each image with a prompt minus the mean cosine with the other prompts.

        Args:
            images: model input.
            own: number of each image's prompt.
        """
        batches = images.split(self.batch_size or BATCH_SIZE)
        cosines = torch.cat([(self.clip.embed_images(batch) @ self.texts.T).cpu() for batch in batches])
        of_own = cosines.gather(1, own[:, None])[:, 0]
        return of_own - (cosines.sum(dim=1) - of_own) / (len(self.texts) - 1)


def shuffle_weights(module: nn.Module) -> None:
    """Shuffle the values within each weight and floating-point buffer of a module, in place.

    Each keeps its distribution, so the activations keep their order of magnitude, and nothing of what was learned
    remains. No random state changes.

    Source: after Adebayo et al. 2018, sec. 4, https://arxiv.org/abs/1810.03292, with the trained values in another
    order in place of those of an untrained model, which nobody but its author can build.
    """
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    with torch.no_grad():
        for values in module.state_dict().values():
            if values.is_floating_point():
                order = torch.randperm(values.numel(), generator=generator).to(values.device)
                values.copy_(values.flatten()[order].view_as(values))


def _correlate(
    maps: Float[Tensor, "n h w"], others: Float[Tensor, "n h w"], degenerate: Bool[Tensor, "n"], worst: float
) -> Float[Tensor, "n"]:
    """Correlate maps; ``worst`` for a degenerate one, and 0 where only the other one is."""
    return metrics.correlation(maps, others).nan_to_num(0).masked_fill(degenerate, worst)


def _size(maps: Float[Tensor, "*n h w"]) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
