"""``clipcam explain``: one picture for each image and prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from rich.table import Table
from torch import Tensor

from clipcam_lightning.cam.explain import explain_clip
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import Contrast, LogSoftmax, target_of
from clipcam_lightning.cli.models import ModelSource, load_clip, source_of
from clipcam_lightning.cli.outputs import check_folder, writing
from clipcam_lightning.cli.settings import map_settings
from clipcam_lightning.cli.terminal import Output, plain, progress, warn
from clipcam_lightning.drift.metrics import degeneracy
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.atomic import write_atomically
from clipcam_lightning.visualization.captioned import caption, magnify


@dataclass(frozen=True)
class Explained:
    """One image with its maps, of every prompt.

    Attributes:
        given: the image's file, as it was given.
        maps: of the one image.
        files: the picture of each prompt.
    """

    given: str
    maps: Explanation
    files: tuple[Path, ...]


def run(options: Any) -> int:
    """Map every image for every prompt, draw the maps and print the similarities."""
    check_folder(options.out)
    settings = map_settings(options)
    target = target_of(settings.target)
    if isinstance(target, Contrast | LogSoftmax) and not len(target.negatives) and len(options.prompt) < 2:
        raise ConfigError(f"--target {options.target} contrasts a prompt with others; give at least two --prompt.")
    images, prompts = _read(options.images, options.prompt)
    explained = list(_explained(options, source_of(options), settings, images, prompts))
    for each in explained:
        for prompt, map_ in zip(options.prompt, each.maps.maps_of(0), strict=True):
            if why := degeneracy(map_.cpu()):
                warn(f"the map of {each.given} for {prompt!r} says nothing: it is {why}.")
    output = Output()
    output.print(_table(explained, options.prompt))
    count, maps = len(images) * len(prompts), explained[0].maps
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    output.print(
        f"wrote {pictures} to {plain(str(options.out))}: {_made_by(maps)} at {', '.join(maps.layers)}",
        soft_wrap=True,
    )
    return 0


def _read(images: Sequence[str], prompts: Sequence[str]) -> tuple[ProbeSet, ProbeSet]:
    """Images and prompts, each with a name that is unique and safe in a file name.

    Raises:
        ProbeError: an image cannot be read, or a prompt is empty.
    """
    places = [f"image {i}" for i in range(1, len(images) + 1)]
    pictures = ProbeSet([Probe(image, "any") for image in images], places=places)
    places = [f"prompt {i}" for i in range(1, len(prompts) + 1)]
    return pictures, ProbeSet([Probe(pictures[0].image, prompt) for prompt in prompts], places=places)


def _explained(
    options: Any, source: ModelSource, settings: MapSettings, images: ProbeSet, prompts: ProbeSet
) -> Iterator[Explained]:
    """Load the model, then map and draw one image after the other."""
    with progress() as bar:
        loading = bar.add_task("loading the model", total=None)
        clip = load_clip(source).clip
        bar.remove_task(loading)
        with torch.no_grad():
            texts = clip.embed_texts(prompts.prompts)
        mapping = bar.add_task(f"mapping {len(images)} images", total=len(images))
        for image, given in zip(images, options.images, strict=True):
            pixels: Any = image.image
            maps = explain_clip(clip, clip.preprocessing.image(pixels)[None], texts, settings)
            files = tuple(options.out / f"{image.name}--{prompt.name}.png" for prompt in prompts)
            _draw(maps, magnify(clip.preprocessing, pixels), prompts.prompts, files)
            yield Explained(given, maps, files)
            bar.advance(mapping)


def _draw(maps: Explanation, picture: UInt8[Tensor, "3 y x"], prompts: Sequence[str], files: Sequence[Path]) -> None:
    overlays = maps.overlay(picture[None])[0]
    for overlay, prompt, similarity, file in zip(overlays, prompts, maps.similarity[0].tolist(), files, strict=True):
        page = caption(picture, overlay, prompt, f"similarity {similarity:.3f} · {_made_by(maps)}")
        with writing(file):
            write_atomically(file, page)


def _made_by(maps: Explanation) -> str:
    return maps.method if maps.target == "similarity" else f"{maps.method} of {maps.target}"


def _table(explained: Sequence[Explained], prompts: Sequence[str]) -> Table:
    """A row a picture; of several prompts the one most similar to the image stands out."""
    table = Table()
    table.add_column("Image", overflow="fold")
    table.add_column("Prompt", overflow="fold")
    table.add_column("Similarity", justify="right", no_wrap=True)
    table.add_column("Picture", overflow="fold")
    for each in explained:
        similarities = each.maps.similarity[0].tolist()
        for prompt, similarity, file in zip(prompts, similarities, each.files, strict=True):
            best = len(prompts) > 1 and similarity == max(similarities)
            cells = plain(each.given), plain(prompt), f"{similarity:.3f}", file.name
            table.add_row(*cells, style="bold" if best else None)
        table.add_section()
    return table
