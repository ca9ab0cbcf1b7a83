"""The Pareto set: what nothing else beats in one goal without losing in another."""

from __future__ import annotations

from collections.abc import Sequence

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
