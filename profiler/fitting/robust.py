"""Least squares for measured steps: noisy by a share of their time, with spikes, and their total must come out right.

1. Weights are the inverse of the prediction, found by iterating. Weights by the inverse of the measured time count a
   slow repeat less than a fast one, which bends totals down (up to 5 % on a replay).
2. A spike is winsorised: for the shape it counts as no further from its prediction than `SPIKE` deviations.
3. Then all coefficients are scaled so that the sum of predictions is the sum of measured times, spikes included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fitting.steps import Floats

ITERATIONS = 10
SPIKE = 3.5  # robust standard deviations
MIN_DEVIATION = 1e-4  # of the prediction: below that nothing is a spike
MAD_TO_SIGMA = 1.4826  # of a normal distribution


def solve_robust(columns: NDArray[Any], measured_s: Floats, lowest: Floats | None = None) -> Floats:
    """Coefficients, none below `lowest` (0 by default) before the last scaling."""
    base = np.zeros(columns.shape[1]) if lowest is None else lowest
    weights, target = 1 / measured_s, np.ones(len(measured_s))
    found = base
    for _ in range(ITERATIONS):
        found = base + non_negative(columns * weights[:, None], target - (columns @ base) * weights)
        predicted_s = np.maximum(columns @ found, measured_s.min() / 100)
        weights, target = 1 / predicted_s, winsorised(measured_s / predicted_s)
    return np.asarray(found * (measured_s.sum() / (columns @ found).sum()), dtype=np.float64)


def winsorised(ratios: Floats) -> Floats:
    """Ratios of measured to predicted times, none further from their median than `SPIKE` deviations."""
    middle = float(np.median(ratios))
    deviation = max(MAD_TO_SIGMA * float(np.median(np.abs(ratios - middle))), MIN_DEVIATION)
    return np.clip(ratios, middle - SPIKE * deviation, middle + SPIKE * deviation)


def non_negative(columns: NDArray[Any], target: Floats) -> Floats:
    """Least squares without negative coefficients."""
    from scipy.optimize import nnls

    size = np.maximum(np.linalg.norm(columns, axis=0), np.finfo(float).tiny)
    found, _ = nnls(columns / size, target, maxiter=100 * columns.shape[1])
    return np.asarray(found / size, dtype=np.float64)
