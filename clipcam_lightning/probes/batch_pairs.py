"""Which texts and labels of a batch go with which of its images."""

import re
from collections.abc import Sequence
from dataclasses import replace

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.batch_images import BatchImages
from clipcam_lightning.probes.batch_texts import PROMPT_WORDS
from clipcam_lightning.probes.leaves import Leaf, name_leaf, split_words

GENERIC_WORDS = PROMPT_WORDS | {
    "id",
    "ids",
    "image",
    "images",
    "img",
    "imgs",
    "input",
    "inputs",
    "pixel",
    "values",
    "x",
}
VIEW_WORDS = {  # images whose keys differ only by these words show the same
    "aug",
    "augmentation",
    "augmented",
    "crop",
    "cropped",
    "crops",
    "flipped",
    "global",
    "large",
    "local",
    "masked",
    "orig",
    "original",
    "raw",
    "resized",
    "small",
    "strong",
    "student",
    "teacher",
    "thumbnail",
    "view",
    "views",
    "weak",
}


def list_near(leaves: Sequence[Leaf], images: BatchImages, candidates: Sequence[BatchImages]) -> list[Leaf]:
    """List what may go with images: whatever is not nearer to other images, by its place or by its keys.

    Args:
        leaves: of a batch.
        images: some of its images.
        candidates: all images that may be taken.
    """
    near = []
    for leaf in (leaf for leaf in leaves if not leaf.is_negative):
        neighbours = _list_neighbours(leaf, candidates)
        if images in neighbours and not any(_is_nearer(leaf, other, images) for other in neighbours):
            # A key above both, such as that of a loader, names neither.
            near.append(replace(leaf, keys=()) if leaf.keys == images.leaf.keys else leaf)
    return near


def require_decided(leaf: Leaf, images: BatchImages, candidates: Sequence[BatchImages]) -> None:
    """Require that a text goes with these images, and not perhaps with others.

    Raises:
        ProbeError: it may go with others.
    """
    rivals = [
        other
        for other in _list_neighbours(leaf, candidates)
        if other is not images
        and _measure(other) == _measure(images)
        and not _is_nearer(leaf, images, other)
        and not _are_views(images.leaf, other.leaf, leaf)
    ]
    if rivals:
        names = " or ".join(name_leaf(each.leaf) for each in (images, *rivals))
        raise ProbeError(
            f"the texts of {name_leaf(leaf)} may be about the images of {names}. Let keys show what goes together, as "
            "in {'image_1': ..., 'image_2': ..., 'caption_1': ...}, or give probes=... with prompts of your own."
        )


def _measure(images: BatchImages) -> tuple[int, object]:
    """Return the number of images, and the shape of a tensor: another size is that of a thumbnail, and no rival."""
    return len(images.values), getattr(images.leaf.value, "shape", None)


def _list_neighbours(leaf: Leaf, candidates: Sequence[BatchImages]) -> list[BatchImages]:
    """List the images in the smallest part of a batch that holds a leaf and images."""
    holders = (leaf.path[:depth] for depth in range(len(leaf.path) - 1, -1, -1))
    neighbours = ([each for each in candidates if each.leaf.path[: len(holder)] == holder] for holder in holders)
    return next(filter(None, neighbours), list(candidates))


def _is_nearer(leaf: Leaf, images: BatchImages, others: BatchImages) -> bool:
    """Whether a leaf has a word or number of its keys in common with some images, but none with others."""
    own, first, second = (_marks(each) for each in (leaf, images.leaf, others.leaf))
    return bool(own & first - second) and not own & second - first


def _marks(leaf: Leaf) -> set[str]:
    """List words and numbers of the keys of a leaf."""
    numbers = (number for key in leaf.keys for number in re.findall(r"\d+", key))
    return {word for key in leaf.keys for word in split_words(key)}.difference(GENERIC_WORDS).union(numbers)


def _are_views(images: Leaf, others: Leaf, text: Leaf) -> bool:
    """Whether other images show the same, by their keys or because they have a list of their own."""
    if images.keys == others.keys:
        depth = len(images.path) - 1
        is_with_text = images.path[:depth] == others.path[:depth] == text.path[:depth]
        return not is_with_text or text.path[depth] == images.path[depth] + 1
    first, second = _marks(images), _marks(others)
    words = {mark for mark in first ^ second if not mark.isdecimal()}
    return words <= VIEW_WORDS and (first <= second or first >= second or not VIEW_WORDS.isdisjoint(first | second))
