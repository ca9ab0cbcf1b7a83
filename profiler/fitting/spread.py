"""The spread of measured steps round what a fit predicts that never saw them, as quantiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from simbatch.profiler.fitting.forms import Measured
from simbatch.profiler.fitting.steps import Floats

TAIL = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07)
SHARES = (*TAIL, *(round(0.1 + 0.05 * i, 2) for i in range(17)), *(round(1 - share, 3) for share in reversed(TAIL)))
DIGITS = 6


def noise_of(data: Measured, held_out_s: Floats) -> dict[str, Any]:
    """Quantiles of measured over held-out prediction for decodes and for steps with prefills, their means scaled to 1.

    Nothing is cut off: the slowest step is the last quantile, and shares lie close together towards both ends.
    """
    ratios, is_decode = data.time_s / held_out_s, data.regime("decode")
    return {"decode": noise_quantiles(ratios[is_decode]), "mixed": noise_quantiles(ratios[~is_decode])}


def noise_quantiles(ratios: Floats) -> dict[str, list[float]]:
    """Quantiles of ratios, their mean scaled to 1."""
    values = np.quantile(ratios, SHARES)
    mean = float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(SHARES)))
    return {"share": list(SHARES), "ratio": [round(float(value / mean), DIGITS) for value in values]}
