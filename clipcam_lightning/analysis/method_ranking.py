"""Rank CAM methods: order what was measured, the most trustworthy method first."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from clipcam_lightning.analysis.method_measurement import BUDGET, MethodBench, RankedMethod
from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.methods import MethodLike
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.probes.probe_set import ProbeSet, ProbesLike


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

    @classmethod
    def of(cls, bench: MethodBench, rows: Sequence[RankedMethod], left_out: dict[str, str]) -> "MethodRanking":
        """Order measured methods by the rule of :func:`rank_methods`.

        Args:
            bench: measured the methods.
            rows: what it measured.
            left_out: methods that were not measured, with the reason.
        """
        masked = int(bench.prepared.has_mask.sum())
        return cls(tuple(order_methods(rows, masked)), left_out, bench.probes, masked)

    @property
    def titles(self) -> list[str]:
        """Names of the methods in their order, with their layers where two settings of one were measured."""
        count = Counter(row.method for row in self.rows)
        return [row.method if count[row.method] == 1 else row.title for row in self.rows]

    @property
    def best(self) -> RankedMethod:
        """The recommended method."""
        return self.rows[0]


def rank_methods(
    model: nn.Module | ClipModel,
    probes: ProbesLike,
    *,
    methods: Sequence[MethodLike] | None = None,
    budget: int = BUDGET,
    batch_size: int | None = None,
    clip: str | None = None,
    tokenizer: Tokenizer | None = None,
    towers: Sequence[type[Tower]] = (),
    encode_image: EncodeImage | None = None,
    encode_text: EncodeText | None = None,
) -> MethodRanking:
    """Measure which CAM method is to be trusted on a model, with probes of one's own. Masks are welcome, not needed.

    The order:

    1. Methods with :attr:`~RankedMethod.problems` come last: their maps do not depend on the weights or on the prompt,
       or are degenerate.
    2. With masks, methods whose pointing accuracy is within one standard error of the best come first, and the others
       follow by their pointing accuracy.
    3. Methods that are equal so far, which without masks are all, are ordered by :attr:`~RankedMethod.effect`: what the
       model loses if the place where a map is hottest is hidden, plus what images of other prompts gain from that
       place.

    The other metrics are measured but do not count. Agreement with occlusion would put occlusion first, which is not
    always the best. Hiding one place asks what occlusion asks, too; what other images gain is a question of its own.

    Args:
        model: any module that holds a CLIP, or a :class:`ClipModel`.
        probes: images with prompts, 8 or more if possible; as :class:`ProbeSet` takes them. At least two different
            prompts, or a tokenizer for prompts of absent things.
        methods: names, methods or functions; by default all that fit the tower, and what ``"auto"`` stands for.
        budget: the most forwards that a map may cost, where a backward counts as two. Forwards, because they do not
            depend on the machine; per map, because that is what one pays in each evaluation of a training.
        batch_size: images per pass, by default 32.
        clip, tokenizer, towers, encode_image, encode_text: where the CLIP is and how it is read, as in
            :class:`ModelSpec`.

    Returns:
        The ranking. The model is copied for the test with shuffled weights, and comes back as it was.

    Raises:
        ConfigError: a method does not exist or fit, or none is within the budget.
        ModelError: ``model`` holds no CLIP, or several.
        ProbeError: the probes do not fit the model.

    Source: necessity and sufficiency: after DeYoung et al. 2020, sec. 4.2 (comprehensiveness, sufficiency),
    https://arxiv.org/abs/1911.03429, here for one disc, and on other images in place of an empty one; agreement
    with occlusion: Zeiler & Fergus 2014, https://arxiv.org/abs/1311.2901; insertion and deletion: Petsiuk et al. 2018,
    https://arxiv.org/abs/1806.07421; randomization: Adebayo et al. 2018, https://arxiv.org/abs/1810.03292; one
    standard error: Breiman et al. 1984, sec. 3.4.3.

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
    found = ModelSpec(
        clip=clip, tokenizer=tokenizer, towers=towers, encode_image=encode_image, encode_text=encode_text
    ).find(model)
    bench = MethodBench(found, ProbeSet(probes), budget, batch_size)
    candidates, left_out = bench.choose_candidates(methods)
    return MethodRanking.of(bench, [bench.measure(candidate) for candidate in candidates], left_out)


def order_methods(rows: Sequence[RankedMethod], masked: int) -> list[RankedMethod]:
    """Order measured methods by the rule of :func:`rank_methods`, the best first.

    Args:
        rows: the methods.
        masked: number of probes with a mask.
    """
    best = max((row.pointing for row in rows if not row.problems), default=math.nan) if masked else math.nan
    limit = best - math.sqrt(best * (1 - best) / masked) if masked else math.nan  # binomial standard error

    def key(row: RankedMethod) -> tuple[bool, float, float]:
        effect = -math.inf if math.isnan(row.effect) else row.effect
        return bool(row.problems), -min(row.pointing, limit) if masked else 0.0, -effect

    return sorted(rows, key=key)
