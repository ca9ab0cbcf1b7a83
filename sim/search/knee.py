"""The knee of a trade-off: where the next bit of throughput begins to cost much more latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 3
ROUNDING = 1e-12


@dataclass(frozen=True)
class Knee:
    """Which point it is, and how far it stands out: 0 on a straight line, near 1 at a right angle."""

    index: int
    distance: float


def find_knee(gain: Sequence[float], cost: Sequence[float]) -> Knee | None:
    """The point of a front (more `gain` costs more `cost`) that is farthest above the chord between its ends.

    Both axes are logarithmic where all figures are positive, since what matters is by which factor they change, and
    scaled to 0 .. 1 between the ends; the knee has the largest scaled gain minus scaled cost, of equals the cheapest.
    None with fewer than three different points, or when none is above the chord.
    The rule is Kneedle's for a whole curve: V. Satopää, J. Albrecht, D. Irwin, B. Raghavan, Finding a "Kneedle" in a
    Haystack, ICDCS Workshops 2011.
    """
    y, x = _scaled(gain), _scaled(cost)
    if y is None or x is None or len({*zip(gain, cost, strict=True)}) < MIN_POINTS:
        return None
    above = y - x
    highest = float(above.max())
    if highest <= ROUNDING:
        return None
    equals = np.flatnonzero(above >= highest - ROUNDING)
    index = int(equals[np.argmin(x[equals])])
    return Knee(index, float(above[index]))


def _scaled(figures: Sequence[float]) -> NDArray[np.float64] | None:
    """From 0 to 1; None when all are the same."""
    values = np.asarray(figures, dtype=np.float64)
    if not len(values) or values.min() == values.max():
        return None
    values = np.log(values) if values.min() > 0 else values
    scaled: NDArray[np.float64] = (values - values.min()) / (values.max() - values.min())
    return scaled
