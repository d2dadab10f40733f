"""Rank CAM methods on a model and probes of one's own."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clipcam_lightning.analysis.map_quality import LIKE_BEFORE, grade, perturbation_curves
from clipcam_lightning.analysis.prompt_sensitivity import ABSENT
from clipcam_lightning.cam.arguments import require_positive
from clipcam_lightning.cam.capture import LayerCapture
from clipcam_lightning.cam.explain import BATCH_SIZE, explain_clip
from clipcam_lightning.cam.fuse import Fusion, resize_maps
from clipcam_lightning.cam.methods import METHODS, Method, MethodLike
from clipcam_lightning.cam.model import ClipModel, ModelSpec, Tokenizer
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.drift import metrics
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.probes.probe_set import ProbeSet, ProbesLike

BUDGET = 300  # forwards per map: occlusion of a 16 x 16 grid fits, one forward for each of 512 channels does not
SAME_FOR_ALL_PROMPTS = 0.95  # correlation from which a map counts as independent of its prompt
SHUFFLE_SEED = 0


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
        insertion: mean margin while the hottest pixels are inserted into the mean colour, over the whole curve. The
            margin is the cosine with the prompt minus the mean cosine with the other prompts. Higher is better.
        deletion: mean margin while the hottest pixels are deleted. Lower is better.
        agreement: mean correlation with the map of occlusion, -1 to 1; NaN if occlusion was too dear.
        randomization: mean correlation of the maps before and after the weights of the image tower are shuffled. From
            0.5 on, the method explains the image and not the model.
        other_prompt: mean correlation of a probe's map with the map for the prompt of another probe. From 0.95 on, the
            method ignores the prompt.
        degenerate: share of the maps, 0 to 1, that carry no information; each has the worst value in every mean.
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
    def problems(self) -> tuple[str, ...]:
        """Why the method is not to be trusted on this model; empty if nothing speaks against it."""
        problems = {
            "does not depend on the weights": self.randomization >= LIKE_BEFORE,
            "does not depend on the prompt": self.other_prompt >= SAME_FOR_ALL_PROMPTS,
            "most maps are degenerate": self.degenerate > 0.5,
        }
        return tuple(problem for problem, is_present in problems.items() if is_present)


@dataclass(frozen=True, eq=False, repr=False)
class MethodRanking:
    """CAM methods in the order in which they are to be trusted; see :func:`rank_methods`.

    Attributes:
        rows: the measured methods, the best first.
        left_out: the methods that were not measured, with the reason.
        probes: the probes that they were measured on.
        masked: number of probes with a mask.

    Example:
        >>> from clipcam_lightning import rank_methods
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> clip, methods = trained_clip("vit"), ["gradcam", "occlusion"]
        >>> ranking = rank_methods(clip, probes, methods=methods, budget=3, tokenizer=WordTokenizer())
        >>> ranking.best.setting
        'method="gradcam", layers=["visual.transformer.resblocks.2.ln_1"]'
        >>> ranking.left_out
        {'occlusion': 'costs 65 forwards per map, more than the budget of 3'}
    """

    rows: tuple[RankedMethod, ...]
    left_out: dict[str, str]
    probes: ProbeSet
    masked: int

    __repr__ = short_repr

    @property
    def best(self) -> RankedMethod:
        """The recommended method."""
        return self.rows[0]


def rank_methods(
    model: nn.Module | ClipModel,
    probes: ProbesLike | ProbeSet,
    *,
    methods: Sequence[MethodLike] | None = None,
    budget: int = BUDGET,
    batch_size: int | None = None,
    clip: str | None = None,
    tokenizer: Tokenizer | None = None,
    towers: Sequence[type[Tower]] = (),
) -> MethodRanking:
    """Measure which CAM method is to be trusted on a model, with probes of one's own. Masks are welcome, not needed.

    The order:

    1. Methods with :attr:`~RankedMethod.problems` come last: their maps do not depend on the weights or on the prompt,
       or are degenerate.
    2. With masks, methods whose pointing accuracy is within one standard error of the best come first, and the others
       follow by their pointing accuracy.
    3. Methods that are equal so far, which without masks are all, are ordered by the sum of two ranks: that of their
       agreement with occlusion, which asks the model instead of its gradients, and that of insertion. Of equal sums the
       higher agreement comes first. Occlusion agrees with itself, so another method comes before it only if two
       methods or more insert better.

    Deletion is measured but does not count: images with holes are unlike all that a model was trained on, and of two
    methods the one that shatters the image more wins. Ranks are summed because the units differ.

    Args:
        model: any module that holds a CLIP, or a :class:`ClipModel`.
        probes: images with prompts, 8 or more if possible; as :class:`ProbeSet` takes them. At least two different
            prompts, or a tokenizer for prompts of absent things.
        methods: names, methods or functions; by default all that fit the tower, and what ``"auto"`` stands for.
        budget: the most forwards that a map may cost, where a backward counts as two. Forwards, because they do not
            depend on the machine; per map, because that is what one pays in each evaluation of a training.
        batch_size: images per pass, by default 32.
        clip, tokenizer, towers: where the CLIP is and how it is read, as in :class:`ModelSpec`.

    Returns:
        The ranking. The model is copied for the test with shuffled weights, and comes back as it was.

    Raises:
        ConfigError: a method does not exist or fit, or none is within the budget.
        ModelError: ``model`` holds no CLIP, or several.
        ProbeError: the probes do not fit the model.

    Source: agreement with occlusion: Zeiler & Fergus 2014, https://arxiv.org/abs/1311.2901; insertion and deletion:
    Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421; randomization: Adebayo et al. 2018,
    https://arxiv.org/abs/1810.03292; one standard error: Breiman et al. 1984, sec. 3.4.3.

    Example:
        >>> from clipcam_lightning import rank_methods
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(4)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> methods = ["gradcam", "decomposition", "rollout"]
        >>> ranking = rank_methods(trained_clip("vit"), probes, methods=methods, tokenizer=WordTokenizer())
        >>> ranking.best.method, ranking.rows[-1].problems
        ('decomposition', ('does not depend on the prompt',))
    """
    found = ModelSpec(clip=clip, tokenizer=tokenizer, towers=towers).find(model)
    probe_set = probes if isinstance(probes, ProbeSet) else ProbeSet(probes)
    bench = MethodBench(found, probe_set, budget, batch_size)
    candidates, left_out = bench.choose_candidates(methods)
    return bench.rank([bench.measure(candidate) for candidate in candidates], left_out)


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
            self.texts, self.own = own.unique(dim=0, return_inverse=True)
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

    @torch.no_grad()
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
        agreement = torch.full((len(maps),), torch.nan)
        if has_reference:
            reference = self._reference[0]
            agreement = _correlate(resize_maps(maps, _size(reference)), reference, degenerate, worst=-1.0)
        insertion, deletion = self._measure_margins(maps)
        masked = self.prepared.has_mask
        grades = grade(maps[masked][:, None], self.prepared.masks[masked][:, None]) if masked.any() else None
        return RankedMethod(
            candidate.method.name,
            candidate.layers,
            candidate.fuse,
            candidate.forwards,
            pointing=float(grades.pointing.mean()) if grades else math.nan,
            energy=float(grades.energy.mean()) if grades else math.nan,
            insertion=insertion,
            deletion=deletion,
            agreement=float(agreement.mean()),
            randomization=float(_correlate(maps, randomized, degenerate, worst=1.0).mean()),
            other_prompt=float(_correlate(maps, of_other, degenerate, worst=1.0).mean()),
            degenerate=float(degenerate.float().mean()),
            maps=maps,
        )

    def rank(self, rows: Sequence[RankedMethod], left_out: dict[str, str]) -> MethodRanking:
        """Order measured methods by the rule of :func:`rank_methods`.

        Args:
            rows: measured on these probes.
            left_out: methods that were not measured, with the reason.
        """
        masked = int(self.prepared.has_mask.sum())
        return MethodRanking(tuple(order_methods(rows, masked)), left_out, self.probes, masked)

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

    def _measure_margins(self, maps: Float[Tensor, "n h w"]) -> tuple[float, float]:
        """Average the margins over the curves of insertion and of deletion."""
        with evaluation_mode(self.clip.module), self.clip.tower.native():
            deletion, insertion = perturbation_curves(self._compute_margins, self.prepared.images, maps.nan_to_num(0))

        def average(curves: Float[Tensor, "n k"]) -> float:
            return float(torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1).mean())

        return average(insertion), average(deletion)

    def _compute_margins(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n"]:
        """Compute the cosine of each probe with its prompt minus the mean cosine with the other prompts."""
        batches = images.split(self.batch_size or BATCH_SIZE)
        similarity = torch.cat([self.clip.embed_images(batch) @ self.texts.T for batch in batches])
        own = similarity.gather(1, self.own[:, None])[:, 0]
        others = (similarity.sum(dim=1) - own) / (len(self.texts) - 1)
        return (own - others).cpu()


def order_methods(rows: Sequence[RankedMethod], masked: int) -> list[RankedMethod]:
    """Order measured methods by the rule of :func:`rank_methods`, the best first.

    Args:
        rows: the methods.
        masked: number of probes with a mask.
    """
    valid, invalid = ([row for row in rows if bool(row.problems) is has_problems] for has_problems in (False, True))
    best = max((row.pointing for row in valid), default=math.nan) if masked else math.nan
    limit = best - math.sqrt(best * (1 - best) / masked) if masked else math.nan  # binomial standard error

    def order(group: list[RankedMethod]) -> list[RankedMethod]:
        ranks = sum_ranks([[row.agreement for row in group], [row.insertion for row in group]])
        agreements = [0.0 if math.isnan(row.agreement) else row.agreement for row in group]
        keys = [(rank, -agreement) for rank, agreement in zip(ranks, agreements, strict=True)]
        # Python's sort is stable, so the less important key comes first.
        by_ranks = [group[i] for i in sorted(range(len(group)), key=keys.__getitem__)]
        return sorted(by_ranks, key=lambda row: -min(row.pointing, limit)) if masked else by_ranks

    return [*order(valid), *order(invalid)]


def sum_ranks(columns: Sequence[Sequence[float]]) -> list[int]:
    """Sum, for each row, the number of rows that are better in each column.

    Args:
        columns: one value per row, higher for better; a column of NaN ranks all rows equal.
    """
    ranks = [[sum(other > value for other in column) for value in column] for column in columns]
    return [sum(row) for row in zip(*ranks, strict=True)]


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


def _size(maps: Float[Tensor, "n h w"]) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
