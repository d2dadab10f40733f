"""What a ground makes of other objects: how often images with another probe's object get the prompt of their ground."""

from collections import Counter
from dataclasses import dataclass

from clipcam_lightning.drift.snapshot import Snapshot

NONE = -1  # in place of a probe's number


@dataclass(frozen=True)
class Transplants:
    """Images with the ground of one probe and the objects of others, which have other prompts.

    Attributes:
        count: of these images.
        named: how many are closest to the prompt of their ground.
        recognized: how many are closest to the prompt of their object.
        elsewhere: the share of images with other grounds *and* other objects that are closest to it, 0 to 1.
        chance: the share of all images of all grounds that were recognized if the answers had nothing to do with the
            objects, 0 to 1.
    """

    count: int = 0
    named: int = 0
    recognized: int = 0
    elsewhere: float = 0.0
    chance: float = 0.0

    @property
    def pull(self) -> float:
        """Share that is named after its ground, minus the same elsewhere, -1 to 1; 0 without such images."""
        return self.named / self.count - self.elsewhere if self.count else 0.0


def count_transplants(snapshot: Snapshot) -> list[Transplants]:
    """Count for each probe which images with its ground get its prompt.

    Args:
        snapshot: with ``donors`` and ``transplants_named``; without them there is nothing to count.
    """
    prompts = snapshot.prompts
    if snapshot.donors is None or snapshot.transplants_named is None:
        return [Transplants()] * len(prompts)
    images = [
        (ground, prompts[ground], prompts[donor], prompts[named])
        for ground, pairs in enumerate(zip(snapshot.donors.tolist(), snapshot.transplants_named.tolist(), strict=True))
        for donor, named in zip(*pairs, strict=True)
        if donor != NONE
    ]
    own: dict[int, list[tuple[bool, bool]]] = {ground: [] for ground in range(len(prompts))}
    with_prompt, named_elsewhere = Counter[str](), Counter[str]()
    for ground, of_ground, of_object, named in images:
        own[ground].append((named == of_ground, named == of_object))
        with_prompt.update((of_ground, of_object))
        named_elsewhere[named] += named not in (of_ground, of_object)
    answers, objects = (Counter(image[column] for image in images) for column in (3, 2))
    chance = sum(answers[prompt] * count for prompt, count in objects.items()) / max(1, len(images)) ** 2
    return [
        Transplants(
            count=len(own[i]),
            named=sum(by_ground for by_ground, _ in own[i]),
            recognized=sum(by_object for _, by_object in own[i]),
            elsewhere=named_elsewhere[prompt] / max(1, len(images) - with_prompt[prompt]),
            chance=chance,
        )
        for i, prompt in enumerate(prompts)
    ]
