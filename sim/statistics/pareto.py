"""The Pareto set (what nothing beats in one goal without losing in another), and its knee."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


def pareto_front(values: ArrayLike, maximise: Sequence[bool]) -> list[int]:
    """Which rows of `values` (rows: candidates, columns: goals) are dominated by no other, in their order.

    A row is dominated when another is at least as good in every goal and better in one. Figures are compared exactly;
    rows that are equal do not dominate each other, so ties stay together.
    """
    table = np.asarray(values, dtype=np.float64).reshape(-1, len(maximise))
    if np.isnan(table).any():
        raise ValueError("a candidate without a figure cannot be compared")
    table = np.where(maximise, table, -table)
    return [i for i, row in enumerate(table) if not _is_dominated(row, table)]


def _is_dominated(row: np.ndarray, table: np.ndarray) -> bool:
    return bool(((table >= row).all(axis=1) & (table > row).any(axis=1)).any())


MIN_POINTS = 3
ROUNDING = 1e-12
RULE = (
    "of the points that no other beats in both figures the one farthest above the straight line between the ends, on "
    "linear axes scaled to 0 .. 1 between them"
)


@dataclass(frozen=True)
class Knee:
    """Which point it is, and how far it stands out: 0 on a straight line, near 1 at a right angle."""

    index: int
    distance: float


def find_knee(gain: Sequence[float], cost: Sequence[float]) -> Knee | None:
    """By `RULE`: the point with the largest scaled gain minus scaled cost, of equals the cheapest.

    Both figures are scaled to 0 .. 1 between the ends of the Pareto set (more `gain`, less `cost`). The axes are
    linear, as throughput over latency is usually drawn. None with fewer than three different points in the set, or when
    none is above the line. The rule is Kneedle's for a whole curve: V. Satopää, J. Albrecht, D. Irwin, B. Raghavan,
    Finding a "Kneedle" in a Haystack, ICDCS Workshops 2011.
    """
    front = pareto_front(list(zip(gain, cost, strict=True)), (True, False))
    if len({(gain[i], cost[i]) for i in front}) < MIN_POINTS:
        return None
    y, x = (np.array([figures[i] for i in front], dtype=np.float64) for figures in (gain, cost))
    y, x = ((values - values.min()) / np.ptp(values) for values in (y, x))
    above = y - x
    highest = float(above.max())
    if highest <= ROUNDING:
        return None
    equals = np.flatnonzero(above >= highest - ROUNDING)
    best = int(equals[np.argmin(x[equals])])
    return Knee(front[best], float(above[best]))
