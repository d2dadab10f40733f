"""Objects of other probes on the ground of a probe: what does the model call them?"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipcam_lightning.analysis.interventions import EmbedImages, fill_regions, transplant
from clipcam_lightning.cam.compact_images import CompactImages, parts
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.monitoring.background import number_equal
from clipcam_lightning.monitoring.closest_prompts import find_closest
from clipcam_lightning.monitoring.explainer import Explainer
from clipcam_lightning.probes.prepared import PreparedProbes

TRANSPLANTS, PER_PROMPT = 6, 24  # at most per ground; and how many suffice for the grounds of a prompt


def choose_donors(
    prompts: Sequence[str], images: Sequence[Hashable], objects: Bool[Tensor, "n y x"]
) -> Int[Tensor, "n k"]:
    """Choose whose objects are put on the ground of each probe: of other prompts and other images, evenly spread.

    A ground gets six, or as few as make 24 for its prompt if many probes share it.

    Args:
        prompts: of the probes.
        images: of the probes, or what tells them apart.
        objects: pixels of the objects.

    Returns:
        Numbers of probes; ``-1`` where there are too few with an object, or the ground's own object is unknown.
    """
    candidates = _Candidates(prompts, images, objects)
    grounds = Counter(prompts[i] for i in candidates.numbers)
    ranks: dict[str, Iterator[int]] = defaultdict(itertools.count)
    firsts: dict[str, int] = {}
    donors = torch.full((len(prompts), TRANSPLANTS), NONE, device="cpu")
    for i in candidates.numbers:
        others = candidates.differing_from(i)
        count = min(TRANSPLANTS, math.ceil(PER_PROMPT / grounds[prompts[i]]), len(others))
        # Each prompt starts elsewhere, so that all objects are used about equally often; and so does each of its
        # grounds, so that together they get objects of all other prompts.
        first, rank = firsts.setdefault(prompts[i], i), next(ranks[prompts[i]])
        start = first + rank * len(others) // max(1, count * grounds[prompts[i]])
        chosen = [(start + k * len(others) // count) % len(others) for k in range(count)]
        donors[i, :count] = others[chosen]
    return donors


def fill_donors(
    donors: Int[Tensor, "n k"],
    grounds: Sequence[int],
    prompts: Sequence[str],
    images: Sequence[Hashable],
    objects: Bool[Tensor, "n y x"],
) -> Int[Tensor, "n k"]:
    """Give some grounds as many donors as a ground may have: of other prompts and other images, evenly spread.

    Args:
        donors: of :func:`choose_donors`.
        grounds: numbers of the probes whose grounds get more; one whose own object is unknown gets none.
        prompts: of the probes.
        images: of the probes, or what tells them apart.
        objects: pixels of the objects.

    Returns:
        The donors with ``-1`` replaced where there are enough.
    """
    filled, candidates = donors.clone(), _Candidates(prompts, images, objects)
    with_object = set(candidates.numbers)
    for rank, i in enumerate(grounds):
        if i not in with_object:
            continue
        others = candidates.differing_from(i)
        others = others[~torch.isin(others, donors[i])]
        free = (donors[i] == NONE).nonzero()[: len(others), 0].tolist()
        start = rank * len(others) // max(1, len(free) * len(grounds))
        for k, column in enumerate(free):
            filled[i, column] = others[(start + k * len(others) // len(free)) % len(others)]
    return filled


class _Candidates:
    """The probes that have an object, which can be put on the grounds of others.

    Attributes:
        numbers: of these probes, sorted by prompt.

    Args:
        prompts: of the probes.
        images: of the probes, or what tells them apart.
        objects: pixels of the objects.
    """

    def __init__(self, prompts: Sequence[str], images: Sequence[Hashable], objects: Bool[Tensor, "n y x"]) -> None:
        self.numbers = sorted(objects.flatten(1).any(1).nonzero()[:, 0].tolist(), key=lambda j: (prompts[j], j))
        self._ordered = torch.tensor(self.numbers, dtype=torch.int64, device="cpu")
        self._prompts, self._images = (number_equal(values)[0] for values in (prompts, images))

    def differing_from(self, ground: int) -> Int[Tensor, "m"]:
        """List those that have another prompt and another image than a ground, sorted by prompt."""
        prompts, images = self._prompts, self._images
        is_other = (prompts[self._ordered] != prompts[ground]) & (images[self._ordered] != images[ground])
        return self._ordered[is_other]


def name_transplants(
    explainer: Explainer,
    prepared: PreparedProbes,
    texts: Float[Tensor, "n 1 d"],
    objects: Bool[Tensor, "n y x"],
    donors: Int[Tensor, "n k"],
) -> Int[Tensor, "n k"]:
    """Find the prompt that each image with another object is closest to: one forward per donor.

    Args:
        explainer: the model as it is now.
        prepared: the probes as the model's input.
        texts: embeddings of the prompts.
        objects: pixels of the objects.
        donors: whose object is put on each ground.

    Returns:
        Numbers of probes with these prompts; ``-1`` where there is no donor.
    """
    if (donors == NONE).all():
        return donors
    embedded = embed_transplants(prepared.images, objects, donors, explainer.embed_images)
    return find_closest(embedded, texts).where(donors != NONE, NONE)


def embed_transplants(
    images: Float[Tensor, "n 3 y x"] | CompactImages,
    objects: Bool[Tensor, "n y x"],
    donors: Int[Tensor, "n k"],
    embed: EmbedImages,
) -> Float[Tensor, "n k d"]:
    """Put objects on grounds from which the own object is removed, and embed the result: one forward per donor.

    Args:
        images: of the probes.
        objects: pixels of the objects.
        donors: whose object is put on each ground, at least one; where it is ``-1``, the result is 0.
        embed: embeds images.
    """
    embedded: Tensor | None = None
    for part in parts(len(images), images.shape):
        grounds = fill_regions(images[part], objects[part])
        for k, column in enumerate(donors[part].unbind(1)):
            rows = (column != NONE).nonzero()[:, 0]
            if len(rows):
                given = column[rows]
                found = embed(transplant(grounds[rows], images[given], objects[given]))
                if embedded is None:
                    embedded = found.new_zeros(*donors.shape, found.shape[1])
                embedded[part.start + rows, k] = found
    assert embedded is not None  # there is at least one donor
    return embedded
