"""How often images with another probe's object get the prompt of their background."""

from collections import Counter
from dataclasses import dataclass

from clipcam_lightning.drift.snapshot import Snapshot

NONE = -1  # in place of a probe's number


@dataclass(frozen=True)
class Transplants:
    """Images with the background of one probe and the objects of others, which have other prompts.

    Attributes:
        count: of these images.
        named: how many are closest to the prompt of their background.
        elsewhere: the share of images with other backgrounds *and* other objects that are closest to it, 0 to 1.
    """

    count: int = 0
    named: int = 0
    elsewhere: float = 0.0

    @property
    def pull(self) -> float:
        """Share that gets the prompt of its background, minus the same elsewhere, -1 to 1; 0 without such images."""
        return self.named / self.count - self.elsewhere if self.count else 0.0


def count_transplants(snapshot: Snapshot) -> list[Transplants]:
    """Count for each probe which images with its background get its prompt.

    Args:
        snapshot: with ``donors`` and ``transplants_named``; without them there is nothing to count.
    """
    prompts = snapshot.prompts
    if snapshot.donors is None or snapshot.transplants_named is None:
        return [Transplants()] * len(prompts)
    pairs_of_each = zip(snapshot.donors.tolist(), snapshot.transplants_named.tolist(), strict=True)
    images = [
        (background, prompts[background], prompts[donor], prompts[named])
        for background, pairs in enumerate(pairs_of_each)
        for donor, named in zip(*pairs, strict=True)
        if NONE not in (donor, named)
    ]
    counts, named_own = Counter[int](), Counter[int]()
    with_prompt, named_elsewhere = Counter[str](), Counter[str]()
    for background, of_background, of_object, named in images:
        counts[background] += 1
        named_own[background] += named == of_background
        with_prompt.update((of_background, of_object))
        named_elsewhere[named] += named not in (of_background, of_object)
    return [
        Transplants(
            count=counts[i],
            named=named_own[i],
            elsewhere=named_elsewhere[prompt] / max(1, len(images) - with_prompt[prompt]),
        )
        for i, prompt in enumerate(prompts)
    ]
