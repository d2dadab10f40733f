"""Find the prompt of the probes that each image is closest to."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipcam_lightning.monitoring.background import number_equal

ROWS = 256  # images that are compared with all prompts at once


def find_closest(
    embeddings: Float[Tensor, "n *k d"], texts: Float[Tensor, "m 1 d"], ignored: Mapping[int, Sequence[int]] = {}
) -> Int[Tensor, "n *k"]:
    """Find the prompt that each image is closest to.

    Args:
        embeddings: of the images; their lengths do not matter.
        texts: unit embeddings of the prompts.
        ignored: by image, numbers of prompts that do not count, unless they have the embedding of its own prompt.

    Returns:
        Numbers of prompts, of equal ones the first; -1 for an image without any finite cosine.
    """
    vectors = texts[:, 0].float().cpu()
    numbers, firsts = number_equal([vector.numpy().tobytes() for vector in vectors])
    different, first_of = vectors[firsts].T, torch.tensor(firsts, dtype=torch.int64, device="cpu")
    closest = []
    for start in range(0, len(embeddings), ROWS):
        cosines = embeddings[start : start + ROWS].float().cpu() @ different
        cosines = cosines.where(cosines.isfinite(), -torch.inf)
        for row in range(len(cosines)):
            if start + row in ignored:
                columns = numbers[list(ignored[start + row])]
                cosines[row][..., columns[columns != numbers[start + row]]] = -torch.inf
        largest = cosines.max(-1)
        closest.append(first_of[largest.indices].where(largest.values.isfinite(), -1))
    return torch.cat(closest)


def list_other_prompts(prompts: Sequence[str], images: Sequence[Hashable]) -> dict[int, list[int]]:
    """List for each probe those of the same image that have another prompt, which is as true of it.

    Args:
        prompts: of the probes.
        images: of the probes, or what tells them apart.
    """
    of_image: dict[Hashable, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        of_image[image].append(i)
    others = {i: [j for j in of_image[image] if prompts[j] != prompts[i]] for i, image in enumerate(images)}
    return {i: each for i, each in others.items() if each}
