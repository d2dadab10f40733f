"""``clipcam explain``: draw one map for each image and prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from rich.table import Table
from torch import Tensor
from upath import UPath

from clipcam_lightning.cam.explain import explain_clip
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import Contrast, LogSoftmax
from clipcam_lightning.cli.models import ModelSource, load_clip, read_model_source
from clipcam_lightning.cli.outputs import check_folder, writing
from clipcam_lightning.cli.settings import read_map_settings
from clipcam_lightning.cli.terminal import Output, sanitize, show_progress, warn
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.atomic import write_atomically
from clipcam_lightning.visualization.captioned import caption, magnify


@dataclass(frozen=True)
class ExplainedImage:
    """One image with its maps for all prompts.

    Attributes:
        path: the image's file, as typed.
        explanation: of this one image.
        files: the drawing for each prompt.
    """

    path: str
    explanation: Explanation
    files: tuple[UPath, ...]


def run(options: Any) -> int:
    """Map every image for every prompt, draw the maps and print the similarities.

    Returns:
        0.
    """
    check_folder(options.out)
    settings = read_map_settings(options)
    target = settings.target
    if isinstance(target, Contrast | LogSoftmax) and not len(target.negatives) and len(options.prompt) < 2:
        raise ConfigError(f"--target {target.name} compares prompts with each other; give at least two --prompt.")
    images, prompts = _read_probes(options.images, options.prompt)
    explained = list(_explain_images(options, read_model_source(options), settings, images, prompts))
    for image in explained:
        for prompt, state in zip(options.prompt, image.explanation.states[0], strict=True):
            if state.is_degenerate:
                warn(f"the map of {image.path} for {prompt!r} is {state}: {state.words}.")
    output = Output()
    output.print(_make_table(explained, options.prompt))
    count, explanation = len(images) * len(prompts), explained[0].explanation
    output.print(
        f"wrote {'1 image' if count == 1 else f'{count} images'} to {sanitize(str(options.out))}: "
        f"{_describe_settings(explanation)} at {', '.join(explanation.layers)}",
        soft_wrap=True,
    )
    return 0


def _read_probes(images: Sequence[str], prompts: Sequence[str]) -> tuple[ProbeSet, ProbeSet]:
    """Read the images and the prompts as one probe set each, whose names are unique and safe in a file name.

    Raises:
        ProbeError: an image cannot be read, or a prompt is empty.
    """
    places = [f"image {i}" for i in range(1, len(images) + 1)]
    image_set = ProbeSet([Probe(image, "any") for image in images], places=places)
    places = [f"prompt {i}" for i in range(1, len(prompts) + 1)]
    return image_set, ProbeSet([Probe(image_set[0].image, prompt) for prompt in prompts], places=places)


def _explain_images(
    options: Any, source: ModelSource, settings: MapSettings, images: ProbeSet, prompts: ProbeSet
) -> Iterator[ExplainedImage]:
    """Load the model, then map and draw the images one by one."""
    with show_progress() as progress:
        loading = progress.add_task("loading the model", total=None)
        clip = load_clip(source).clip
        progress.remove_task(loading)
        with evaluation_mode(clip.module), torch.no_grad():
            texts = clip.embed_texts(prompts.prompts)
        mapping = progress.add_task(f"mapping {len(images)} images", total=len(images))
        for image, path in zip(images, options.images, strict=True):
            pixels: Any = image.image
            explanation = explain_clip(clip, clip.preprocessing.image(pixels)[None], texts, settings)
            files = tuple(options.out / f"{image.name}--{prompt.name}.png" for prompt in prompts)
            _draw_maps(explanation, magnify(clip.preprocessing, pixels), prompts.prompts, files)
            yield ExplainedImage(path, explanation, files)
            progress.advance(mapping)


def _draw_maps(
    explanation: Explanation, pixels: UInt8[Tensor, "3 y x"], prompts: Sequence[str], files: Sequence[UPath]
) -> None:
    """Write one drawing for each prompt."""
    overlays, similarities = explanation.overlay(pixels[None])[0], explanation.similarity[0].tolist()
    for overlay, prompt, similarity, file in zip(overlays, prompts, similarities, files, strict=True):
        text = f"similarity {similarity:.3f} · {_describe_settings(explanation)}"
        with writing(file):
            write_atomically(file, caption(pixels, overlay, prompt, text))


def _describe_settings(explanation: Explanation) -> str:
    if explanation.target == "similarity":
        return explanation.method
    return f"{explanation.method} of {explanation.target}"


def _make_table(explained: Sequence[ExplainedImage], prompts: Sequence[str]) -> Table:
    """Tabulate one row per drawing, with the prompt most similar to its image in bold."""
    table = Table()
    table.add_column("Image", overflow="fold")
    table.add_column("Prompt", overflow="fold")
    table.add_column("Similarity", justify="right", no_wrap=True)
    table.add_column("File", overflow="fold")
    for image in explained:
        similarities = image.explanation.similarity[0].tolist()
        for prompt, similarity, file in zip(prompts, similarities, image.files, strict=True):
            is_best = len(prompts) > 1 and similarity == max(similarities)
            cells = sanitize(image.path), sanitize(prompt), f"{similarity:.3f}", file.name
            table.add_row(*cells, style="bold" if is_best else None)
        table.add_section()
    return table
