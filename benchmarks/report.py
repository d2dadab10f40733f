"""Rows of figures of the localisation benchmark, as a file and as tables."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.grading import Grades, mean_and_error
from benchmarks.questions import Question


@dataclass(frozen=True)
class Row:
    """Figures of one question: means over scenes, objects and models.

    Attributes:
        layers: indices; ``None`` for the method's own choice.
        target: ``None`` where no target has a say.
        scenes: how many; a model's maps are as many times the objects.
        pointing: share of the maps, 0 to 1, whose hottest pixel is on the object; a degenerate map is a miss.
        error: standard error of ``pointing`` over the scenes.
        by_seed: ``pointing`` of each model.
        energy: share of a map's mass that is on the object, 0 to 1; maps without mass are left out.
        iou: overlap of the object with as many of the hottest pixels, 0 to 1.
        degenerate: share of the maps, 0 to 1, that say nothing.
        deletion, insertion: area under the prompt's cosine while pixels vanish into, or appear out of, the mean
            colour, the hottest first; 0 is the cosine of the mean colour, 1 that of the whole image.
        random: correlation with the maps of a model whose weights are random from the top down to each stage.
    """

    tower: str
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
    random: tuple[float, ...] | None


@dataclass
class Results:
    """What came out of one question; each list has an item a model.

    Attributes:
        grades: of the maps.
        areas: deletion and insertion.
        random: likeness to the maps of random models, stage by stage.
    """

    grades: list[Grades] = field(default_factory=list)
    areas: list[tuple[float, float]] = field(default_factory=list)
    random: list[list[float]] = field(default_factory=list)

    def figure(self, name: str) -> tuple[float, float]:
        """Mean of one of the grades, and its standard error over the scenes.

        A scene counts once: its maps, of whichever object and by whichever model, are not independent. How much the
        models differ is not in the error.
        """
        of_scenes = torch.stack([getattr(grades, name) for grades in self.grades]).nanmean(dim=(0, 2))
        return mean_and_error(of_scenes.tolist())

    def by_model(self, name: str) -> list[float]:
        """Mean of one of the grades for each model."""
        return [float(getattr(grades, name).nanmean()) for grades in self.grades]

    def likeness_to_random(self) -> float:
        """The likeness to the maps of models that are random from top to bottom."""
        return fmean(stages[-1] for stages in self.random)

    def row(self, tower: str, objects: int, question: Question) -> Row:
        """All figures."""
        pointing, error = self.figure("pointing")
        deletion, insertion = _means(self.areas) or (None, None)
        return Row(
            tower,
            objects,
            *question,
            scenes=len(self.grades[0].pointing),
            pointing=pointing,
            error=error,
            by_seed=tuple(self.by_model("pointing")),
            energy=self.figure("energy")[0],
            iou=self.figure("iou")[0],
            degenerate=self.figure("degenerate")[0],
            deletion=deletion,
            insertion=insertion,
            random=_means(self.random),
        )


def print_tables(rows: Sequence[Row], objects: int) -> None:
    """Print Markdown: the methods at their own layers with the target ``similarity``, then everything."""
    console = Console(width=150)
    short = [row for row in rows if row.objects == objects and _is_default(row)]
    console.print("\nTwo objects a scene, target similarity, default layers:\n", highlight=False)
    console.print(_table(short, ("tower", "method")))
    console.print("\nEverything:\n", highlight=False)
    console.print(_table(rows, ("tower", "objects", "method", "layers", "target")))


def write(file: Path, head: dict[str, Any], rows: Iterable[Row]) -> None:
    """Write ``head`` and the rows, one a line, below the names of their columns."""
    lines = [json.dumps(_rounded(value)) for value in ([each.name for each in fields(Row)], *map(astuple, rows))]
    text = json.dumps(head, indent=2).removesuffix("\n}")
    file.write_text(f'{text},\n  "rows": [\n    ' + ",\n    ".join(lines) + "\n  ]\n}\n")


def _table(rows: Sequence[Row], keys: Sequence[str]) -> Table:
    table = Table(box=MARKDOWN)
    for key in keys:
        table.add_column(key)
    for column in ("pointing ± error", "energy", "IoU", "deletion", "insertion", "random"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = (row.energy, row.iou, row.deletion, row.insertion, row.random and row.random[-1])
        table.add_row(
            *(_cell(getattr(row, key)) for key in keys),
            f"{row.pointing:.3f} ± {row.error:.3f}",
            *("" if figure is None else f"{figure:.2f}" for figure in figures),
        )
    return table


def _is_default(row: Row) -> bool:
    return row.target in ("similarity", None) and row.layers in (None, (-1,))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _means(values: Sequence[Sequence[float]]) -> tuple[float, ...] | None:
    """Column by column over the models."""
    return tuple(map(fmean, zip(*values, strict=True))) or None


def _rounded(value: Any) -> Any:
    """Floats with four digits wherever they are; ``None`` for NaN, which JSON has not."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return [_rounded(each) for each in value] if isinstance(value, tuple | list) else value
