"""Reading measured tables: CSV columns with places in errors, and values on complete grids."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.errors import Problem, UserError

Floats = NDArray[np.float64]


def read_columns(path: Path, texts: Sequence[str], numbers: Sequence[str]) -> tuple[list[list[str]], list[Floats]]:
    """Columns of a CSV file by name, text and numbers apart.

    Raises UserError for a missing file or column, and for a number that is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}")) from None
    missing = [name for name in (*texts, *numbers) if name not in header]
    if missing or not rows:
        rule = f"columns missing: {', '.join(missing)}" if missing else "no rows"
        raise UserError(Problem(str(path), rule, list(header)))
    words = [[row[name] for row in rows] for name in texts]
    return words, [np.array([_number(path, line, name, row) for line, row in enumerate(rows, 2)]) for name in numbers]


def _number(path: Path, line: int, name: str, row: Mapping[str, str]) -> float:
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(Problem(f"{path}:{line} {name}", "must be a finite number", row[name]))
    return value


def on_grid(path: Path, axes: Sequence[Floats], points: Sequence[Floats], values: Floats) -> Floats:
    """The values at every point of a grid.

    Points off the grid are left out. Raises UserError when a point of the grid was not measured.
    """
    inside = np.logical_and.reduce([np.isin(point, axis) for axis, point in zip(axes, points, strict=True)])
    where = tuple(np.searchsorted(axis, point[inside]) for axis, point in zip(axes, points, strict=True))
    table = np.full([len(axis) for axis in axes], np.nan)
    table[where] = values[inside]
    holes = np.argwhere(np.isnan(table))
    if len(holes):
        first = tuple(float(axis[i]) for axis, i in zip(axes, holes[0], strict=True))
        raise UserError(Problem(str(path), f"{len(holes)} points of the grid were not measured", first))
    return table


def best_axes(points: Sequence[Floats]) -> list[Floats]:
    """The axes of the grid that the points fill: all their values if complete, else those on the doubling ladder.

    A finer ladder laid over a doubling one shares only its ends with it, and leaves holes between the two.
    """
    axes = [np.unique(point) for point in points]
    filled = len(set(zip(*points, strict=True)))
    if filled == len(list(itertools.product(*axes))):
        return axes
    return [axis[(axis == 0) | (np.log2(np.maximum(axis, 1)) % 1 == 0)] for axis in axes]
