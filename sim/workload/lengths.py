"""Prompt and output lengths of synthetic workloads."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from simbatch.sim.workload.length_model import Empirical, Fixed, Geometric, Length, Lognormal, Uniform
from simbatch.sim.workload.section import MAX_TOKENS

Ints = npt.NDArray[np.int64]
Draw = Callable[[np.random.Generator, int], Ints]
LengthOf = Literal["num_prompt_tokens", "num_output_tokens"]


def length_draw(length: Length, *, folder: Path, of: LengthOf) -> Draw:
    """A function that draws so many lengths (int64, at least 1); an empirical one reads its trace first."""
    match length:
        case Fixed():
            fixed = int(length.mean)
            return lambda _, n: np.full(n, fixed, dtype=np.int64)
        case Uniform():
            return _uniform(length)
        case Lognormal():
            # mean m and variance (cv*m)^2 of exp(N(mu, sigma^2)), solved for mu and sigma^2
            variance = math.log1p(length.cv**2)
            mu, sigma = math.log(length.mean) - variance / 2, math.sqrt(variance)
            return lambda rng, n: _whole(rng.lognormal(mu, sigma, n), length.min, length.max)
        case Geometric():
            p = 1 / length.mean
            return lambda rng, n: np.clip(rng.geometric(p, n), length.min or 1, length.max or MAX_TOKENS)
        case Empirical():
            return _empirical(length, folder, of)


def _uniform(length: Uniform) -> Draw:
    low, high = length.min, length.max
    if length.cv is None or length.mean is None:
        return lambda rng, n: rng.integers(low or 1, high or MAX_TOKENS, n, endpoint=True)
    middle, half = length.mean, math.sqrt(3) * length.cv * length.mean
    return lambda rng, n: _whole(rng.uniform(middle - half, middle + half, n), low, high)


def _whole(values: npt.NDArray[np.float64], low: int | None, high: int | None) -> Ints:
    return np.clip(np.rint(values), low or 1, high or MAX_TOKENS).astype(np.int64)


def _empirical(length: Empirical, folder: Path, of: LengthOf) -> Draw:
    from simbatch.sim.workload.trace_model import Trace
    from simbatch.sim.workload.traces import open_trace

    trace = Trace(path=length.path, format=length.format, limit=length.limit, on_empty=length.on_empty)
    place = "workload.prompt_len" if of == "num_prompt_tokens" else "workload.output_len"
    counts: Counter[int] = Counter()
    for chunk in open_trace(trace, folder=folder, place=place).chunks():
        counts.update(getattr(chunk, of))
    values = np.array(sorted(counts), dtype=np.int64)
    ends = np.cumsum(
        [counts[int(value)] for value in values]
    )  # value i is rows ends[i-1]..ends[i]-1 of the sorted trace
    low, high = length.min or 1, length.max or MAX_TOKENS

    def draw(rng: np.random.Generator, n: int) -> Ints:
        rows = rng.integers(0, ends[-1], n)
        return np.clip(values[np.searchsorted(ends, rows, side="right")], low, high)

    return draw
