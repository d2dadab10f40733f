"""The results of the localisation benchmark, as a file and as tables."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.grading import mean_and_error
from benchmarks.localisation_maps import Setting
from clipcam_lightning.analysis.map_quality import Grades

BEST = 8  # settings of each tower in the table of the best


@dataclass(frozen=True)
class Row:
    """Results of one setting: means over scenes, objects and models.

    Attributes:
        world: of the scenes and the models.
        tower: how it makes its embedding.
        part: ``"choice"`` or ``"report"``.
        objects: per scene.
        method, layers, target: as in :class:`Setting`.
        scenes: how many; each model makes one map per object in them.
        pointing: share of the maps, 0 to 1, whose hottest pixel is on the object; a degenerate map is a miss.
        error: standard error of ``pointing`` over the scenes.
        by_seed: ``pointing`` of each model.
        energy: share of a map's mass on the object, 0 to 1; 0 if the map is degenerate.
        iou: overlap of the object with as many of the hottest pixels, 0 to 1.
        degenerate: share of the maps, 0 to 1, that are degenerate.
        deletion, insertion: area under the prompt's cosine while pixels are deleted from the image, or inserted into
            the mean colour, the hottest first; 0 is the cosine of the mean colour, 1 that of the whole image.
        parameter_randomization: correlation with the maps of a model whose parameters are random from the top down to
            each stage.
    """

    world: str
    tower: str
    part: str
    objects: int
    method: str
    layers: tuple[int, ...] | None
    target: str | None
    scenes: int
    pointing: float
    error: float
    by_seed: tuple[float, ...]
    energy: float
    iou: float
    degenerate: float
    deletion: float | None
    insertion: float | None
    parameter_randomization: tuple[float, ...] | None

    @property
    def setting(self) -> Setting:
        """How the maps were made."""
        return Setting(self.method, self.layers, self.target)


@dataclass
class Results:
    """Results of one setting; each list has one item per model.

    Attributes:
        grades: of the maps.
        areas: deletion and insertion.
        parameter_randomization: likeness to the maps of randomized models, stage by stage.
    """

    grades: list[Grades] = field(default_factory=list)
    areas: list[tuple[float, float]] = field(default_factory=list)
    parameter_randomization: list[list[float]] = field(default_factory=list)

    def over_scenes(self, name: str) -> tuple[float, float]:
        """Average one of the grades over the scenes.

        Each scene counts once: its maps of all objects and models are not independent. The error does not include how
        much the models differ.

        Returns:
            The mean and its standard error.
        """
        of_scenes = torch.stack([getattr(grades, name) for grades in self.grades]).nanmean(dim=(0, 2))
        return mean_and_error(of_scenes.tolist())

    def by_model(self, name: str) -> list[float]:
        """Average one of the grades for each model."""
        return [float(getattr(grades, name).nanmean()) for grades in self.grades]

    def likeness_after_randomization(self) -> float:
        """Average the likeness to the maps of models whose parameters are all random."""
        return fmean(stages[-1] for stages in self.parameter_randomization)

    def row(self, world: str, tower: str, part: str, objects: int, setting: Setting) -> Row:
        """Make the row of a setting."""
        pointing, error = self.over_scenes("pointing")
        deletion, insertion = _means(self.areas) or (None, None)
        return Row(
            world,
            tower,
            part,
            objects,
            *setting,
            scenes=len(self.grades[0].pointing),
            pointing=pointing,
            error=error,
            by_seed=tuple(self.by_model("pointing")),
            energy=self.over_scenes("energy")[0],
            iou=self.over_scenes("iou")[0],
            degenerate=self.over_scenes("degenerate")[0],
            deletion=deletion,
            insertion=insertion,
            parameter_randomization=_means(self.parameter_randomization),
        )


def print_tables(rows: Sequence[Row], objects: int) -> None:
    """Print Markdown tables: the default settings, the best settings of each tower, and all settings.

    Args:
        rows: of both parts.
        objects: per scene, in the first table.
    """
    console = Console(width=220, highlight=False)
    console.print(f"\nReported pointing accuracy, {objects} objects per scene, target similarity, default layers:\n")
    console.print(_methods_table([row for row in rows if row.objects == objects and row.part == "report"]))
    console.print("\nSettings with the highest share of occlusion's pointing accuracy, the worst of all chosen rows:\n")
    console.print(_best_table(rows))
    console.print("\nAll settings:\n")
    console.print(_table(rows, ("world", "tower", "part", "objects", "method", "layers", "target")))


def worst_shares(rows: Iterable[Row], tower: str, part: str) -> dict[Setting, float]:
    """Compare the pointing accuracy of each setting with that of occlusion, in the world and scenes where it is worst.

    Args:
        rows: of all worlds and numbers of objects.
        tower: which tower.
        part: ``"choice"`` or ``"report"``.

    Returns:
        The smallest share of occlusion's pointing accuracy, of settings that were measured everywhere.
    """
    own = [row for row in rows if (row.tower, row.part) == (tower, part)]
    reference = {
        (row.world, row.objects): row.pointing for row in own if row.setting == ("occlusion", None, "similarity")
    }
    shares: dict[Setting, list[float]] = defaultdict(list)
    for row in own:
        shares[row.setting].append(row.pointing / reference[row.world, row.objects])
    return {setting: min(each) for setting, each in shares.items() if len(each) == len(reference)}


def write(file: Path, head: dict[str, Any], rows: Iterable[Row]) -> None:
    """Write ``head`` and the rows as JSON, one line per row below the names of their columns."""
    lines = [json.dumps(_rounded(value)) for value in ([each.name for each in fields(Row)], *map(astuple, rows))]
    text = json.dumps(head, indent=2).removesuffix("\n}")
    file.write_text(f'{text},\n  "rows": [\n    ' + ",\n    ".join(lines) + "\n  ]\n}\n")


def _methods_table(rows: Sequence[Row]) -> Table:
    """Tabulate pointing accuracy by method, and by world and tower; and the highest correlation with a random model."""
    columns = [*dict.fromkeys((row.world, row.tower) for row in rows)]
    by_method: dict[str, dict[tuple[str, str], Row]] = defaultdict(dict)
    for row in rows:
        if _is_default(row):
            by_method[row.method][row.world, row.tower] = row
    table = Table(box=MARKDOWN)
    table.add_column("method")
    for world, tower in columns:
        table.add_column(f"{world}: {tower}", justify="right")
    table.add_column("parameter randomization", justify="right")
    for method, own in by_method.items():
        randomized = max(row.parameter_randomization[-1] for row in own.values() if row.parameter_randomization)
        cells = (f"{own[column].pointing:.2f}" if column in own else "-" for column in columns)
        table.add_row(method, *cells, f"{randomized:.2f}")
    return table


def _best_table(rows: Sequence[Row]) -> Table:
    """Tabulate the best settings of each tower by the part that is to choose by, and the part that is reported."""
    table = Table(box=MARKDOWN)
    for column in ("tower", "method", "layers", "target", "share, choice", "share, report"):
        table.add_column(column)
    for tower in dict.fromkeys(row.tower for row in rows):
        chosen, reported = (worst_shares(rows, tower, part) for part in ("choice", "report"))
        for setting in sorted(chosen, key=chosen.__getitem__, reverse=True)[:BEST]:
            table.add_row(tower, *map(_cell, setting), f"{chosen[setting]:.2f}", f"{reported[setting]:.2f}")
    return table


def _table(rows: Sequence[Row], keys: Sequence[str]) -> Table:
    table = Table(box=MARKDOWN)
    for key in keys:
        table.add_column(key)
    for column in ("pointing ± error", "energy", "IoU", "deletion", "insertion", "parameter randomization"):
        table.add_column(column, justify="right")
    for row in rows:
        randomized = row.parameter_randomization and row.parameter_randomization[-1]
        values = (row.energy, row.iou, row.deletion, row.insertion, randomized)
        table.add_row(
            *(_cell(getattr(row, key)) for key in keys),
            f"{row.pointing:.3f} ± {row.error:.3f}",
            *("" if value is None else f"{value:.2f}" for value in values),
        )
    return table


def _is_default(row: Row) -> bool:
    return row.target in ("similarity", None) and row.layers in (None, (-1,), (0,))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _means(values: Sequence[Sequence[float]]) -> tuple[float, ...] | None:
    """Average each column over the models."""
    return tuple(map(fmean, zip(*values, strict=True))) or None


def _rounded(value: Any) -> Any:
    """Round all floats in a nest to four digits; NaN becomes ``None``, since JSON has no NaN."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return [_rounded(each) for each in value] if isinstance(value, tuple | list) else value
