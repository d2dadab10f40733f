"""``clipcam explain``: draw the maps of each image for all prompts on one sheet."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.table import Table
from upath import UPath

from clipcam_lightning.cam.decoding import decode_rgb
from clipcam_lightning.cam.explain import explain_clip
from clipcam_lightning.cam.explained_images import ExplainedImages
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import Contrast, LogSoftmax
from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.cli.images import ImageFile, find_images
from clipcam_lightning.cli.models import ModelSource, load_clip, read_model_source
from clipcam_lightning.cli.outputs import check_folder, identify, writing
from clipcam_lightning.cli.settings import read_map_settings
from clipcam_lightning.cli.terminal import Output, sanitize, show_progress, warn
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.probes.names import name_probes
from clipcam_lightning.probes.probe import Probe


@dataclass(frozen=True)
class ExplainedImage:
    """One image with its maps for all prompts.

    Attributes:
        path: of the image.
        explanation: of this one image.
        sheet: the file with the maps.
    """

    path: UPath
    explanation: Explanation
    sheet: UPath


def run(options: Any) -> int:
    """Map every image for every prompt, draw a sheet per image and print the similarities.

    Returns:
        0.
    """
    check_folder(options.out)
    settings = read_map_settings(options)
    _check_prompts(options.prompt, settings)
    source, found = read_model_source(options), find_images(options.images)
    if found.note:
        warn(found.note)
    sheets = _name_sheets(found.files, options.out, (options.checkpoint, options.config))
    explained = []
    for image in _explain_images(source, settings, found.files, options.prompt, sheets):
        for prompt, state in zip(options.prompt, image.explanation.states[0], strict=True):
            if state.is_degenerate:
                warn(f"the map of {image.path} for {prompt!r} is {state}: {state.words}.")
        explained.append(replace(image, explanation=replace(image.explanation, images=None)))
    if not explained:
        raise ConfigError("none of the images can be read.")
    output = Output()
    output.print(_make_table(explained, options.prompt))
    output.print(
        f"wrote {'1 sheet' if len(explained) == 1 else f'{len(explained)} sheets'} to {sanitize(str(options.out))}: "
        f"{_describe_settings(explained[0].explanation)}",
        soft_wrap=True,
    )
    return 0


def _check_prompts(prompts: Sequence[str], settings: MapSettings) -> None:
    """Refuse prompts that cannot be mapped, before the model is loaded.

    Raises:
        ConfigError: a prompt is empty, or the target compares prompts and there is only one.
    """
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise ConfigError(f"prompt {number}: the prompt is empty; it must say what to look for.")
    target = settings.target
    if isinstance(target, Contrast | LogSoftmax) and not len(target.negatives) and len(prompts) < 2:
        raise ConfigError(f"--target {target.name} compares prompts with each other; give at least two --prompt.")


def _name_sheets(files: Sequence[ImageFile], folder: UPath, others: Iterable[UPath | None]) -> list[UPath]:
    """Name the sheet of each image after it, uniquely.

    Raises:
        ConfigError: a sheet would replace one of the images, or another input.
    """
    images = [file.path for file in files]
    names = name_probes([Probe(image, "image") for image in images], list(map(str, images)))
    sheets, inputs = [folder / f"{name}-maps.png" for name in names], {*map(identify, filter(None, (*images, *others)))}
    for sheet in sheets:
        if identify(sheet) in inputs:
            raise ConfigError(f"{sheet} is an input and would be replaced; give --out another folder.")
    return sheets


def _explain_images(
    source: ModelSource,
    settings: MapSettings,
    files: Sequence[ImageFile],
    prompts: Sequence[str],
    sheets: Sequence[UPath],
) -> Iterator[ExplainedImage]:
    """Load the model, then read, map and draw the images one by one."""
    with show_progress(time_left=True) as progress:
        loading = progress.add_task("loading the model", total=None)
        clip = load_clip(source).clip
        progress.remove_task(loading)
        with evaluation_mode(clip.module), torch.no_grad():
            texts = clip.embed_texts(prompts)
        mapping = progress.add_task("", total=len(files))
        for number, (file, sheet) in enumerate(zip(files, sheets, strict=True), start=1):
            progress.update(mapping, description=f"mapping image {number} of {len(files)}", completed=number - 1)
            try:
                pixels = decode_rgb(file.path)
            except ConfigError as error:
                if file.place:
                    raise ConfigError(f"{file.place}: {error}") from error
                warn(f"skipped, because {error}")
                continue
            explanation = replace(
                explain_clip(clip, clip.preprocessing.image(pixels)[None], texts, settings),
                prompts=(tuple(prompts),),
                images=ExplainedImages(pixels, clip.preprocessing, (file.path.name,)),
            )
            _write_sheet(explanation, sheet)
            yield ExplainedImage(file.path, explanation, sheet)


def _write_sheet(explanation: Explanation, sheet: UPath) -> None:
    content = io.BytesIO()
    explanation.draw().save(content, "PNG")
    with writing(sheet):
        write_atomically(sheet, content.getvalue())


def _describe_settings(explanation: Explanation) -> str:
    method = (
        explanation.method if explanation.target == "similarity" else f"{explanation.method} of {explanation.target}"
    )
    return f"{method} at {', '.join(explanation.layers)}"


def _make_table(explained: Sequence[ExplainedImage], prompts: Sequence[str]) -> Table:
    """Tabulate one row per map, with the prompt most similar to its image in bold."""
    table = Table()
    table.add_column("Image", overflow="fold")
    table.add_column("Prompt", overflow="fold")
    table.add_column("Similarity", justify="right", no_wrap=True)
    table.add_column("Sheet", overflow="fold")
    for image in explained:
        similarities = image.explanation.similarity[0].tolist()
        for prompt, similarity in zip(prompts, similarities, strict=True):
            is_best = len(prompts) > 1 and similarity == max(similarities)
            cells = sanitize(str(image.path)), sanitize(prompt), f"{similarity:.3f}", image.sheet.name
            table.add_row(*cells, style="bold" if is_best else None)
        table.add_section()
    return table
