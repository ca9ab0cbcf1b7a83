"""Steps of decodes alone between other such steps: how long they last by their number, with a context's price.

Neither a launch of prefills nor a prefill on the device touches them, so the time from one to the next is their own:
the device's, or the host's where that is longer. Steps alike (number of decodes, context within a tenth) are taken
together by their mean; the knots are least squares over those cells.

A context's price is read off batches that stay the same while their contexts grow: t = f(n) + price * context +
drift * (context / n), with f of every run and number its own, and one drift of steps with their age, which real servers
have at small batches. What that leaves open is held near what other models have of their prefill's price.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from simbatch.profiler.fit.streams.columns import StepColumns
from simbatch.sim.streams.streams import Floats, Ints

KNOT_RATIO = 1.6  # between neighbouring knots, at least
CELL_STEPS, CELL_SHARE = 10, 0.005  # at least so many steps, and of a run's such a share
CELL_SD = 0.03  # of a cell's mean, however many steps it has
TRIM = 0.02
MANY, ODD = 50, 3.5  # steps of one number of decodes; robust standard deviations
PRIOR_SD, SYSTEMATIC, LEAST = 0.6, 0.3, 0.2  # of the prior; of what was found; of the prior, whatever was found


class Cells(NamedTuple):
    """Decode-only steps that are alike."""

    num_decodes: Floats
    context: Floats
    time_s: Floats
    error_s: Floats


def cells_of(runs: Sequence[StepColumns]) -> Cells:
    """The cells of all runs."""
    rows = []
    for run in runs:
        chosen = np.flatnonzero(run.settled)
        n, context = run.num_decodes[chosen], run.context[chosen]
        band = np.round(np.log(np.maximum(1.0, context / n)) / 0.1).astype(np.int64)
        keys, of_step = np.unique(np.stack([n, band]), axis=1, return_inverse=True)
        of_step = of_step.ravel()
        for cell in range(keys.shape[1]):
            members = chosen[of_step == cell]
            if len(members) >= max(CELL_STEPS, CELL_SHARE * len(chosen)):
                rows.append((keys[0, cell], run.context[members].mean(), *_mean(run.gaps_s[members])))
    return Cells(*np.array(rows, dtype=np.float64).reshape(len(rows), 4).T)


def _mean(times_s: Floats) -> tuple[float, float]:
    """Without standstills; and how well it is known."""
    kept = times_s[times_s <= max(np.quantile(times_s, 1 - TRIM), 1.5 * np.median(times_s))]
    mean = float(kept.mean())
    return mean, float(np.hypot(CELL_SD * mean, kept.std() / np.sqrt(len(kept))))


def knots_of(counts: Floats, least: float = 1) -> Ints:
    """Smallest and largest count, and one of every band between with at least so many of them."""
    low, high = float(counts.min()), float(counts.max())
    band = np.floor(np.log(counts / low) / np.log(KNOT_RATIO) + 1e-9)
    knots = [low]
    for number in np.unique(band).tolist():
        members = counts[band == number]
        middle = float(np.median(members))
        if len(members) >= least and middle >= KNOT_RATIO * knots[-1]:
            knots.append(middle)
    if high >= KNOT_RATIO * knots[-1] or len(knots) == 1:
        knots.append(high)
    else:
        knots[-1] = high
    return np.unique(np.round(knots).astype(np.int64))


class Price(NamedTuple):
    """Of a token of context, s, and its standard error."""

    price_s: float
    error_s: float
    is_told: bool  # the traffic says more than the prior


def context_price(runs: Sequence[StepColumns], prior_s: float) -> Price:
    """The price that growing contexts tell, and the prior, weighed by their errors."""
    rows = [part for run in runs for part in _growing(run)]
    prior = Price(prior_s, PRIOR_SD * prior_s, is_told=False)
    if not rows:
        return prior
    columns = np.concatenate([columns for columns, _ in rows])
    times_s = np.concatenate([times_s for _, times_s in rows])
    inverse = np.linalg.pinv(columns.T @ columns)
    solved = inverse @ columns.T @ times_s
    largest = max(float(run.num_decodes.max()) for run in runs)
    variance = float(((times_s - columns @ solved) ** 2).mean()) * inverse[0, 0]
    error_s = float(np.sqrt(variance + (SYSTEMATIC * solved[0]) ** 2 + (SYSTEMATIC * solved[1] / largest) ** 2))
    if not 0 < error_s < np.inf:
        return prior
    weights = np.array([1 / error_s**2, 1 / prior.error_s**2])
    price_s = float(weights @ [solved[0], prior_s] / weights.sum())
    return Price(max(price_s, LEAST * prior_s), float(weights.sum() ** -0.5), bool(error_s < prior.error_s))


def _growing(run: StepColumns) -> list[tuple[Floats, Floats]]:
    """By number of decodes: context and age, and times, all less their means; without the odd ones."""
    chosen, parts = np.flatnonzero(run.settled), []
    for number in np.unique(run.num_decodes[chosen]).tolist():
        members = chosen[run.num_decodes[chosen] == number]
        times_s, context = run.gaps_s[members], run.context[members]
        away = np.abs(times_s - np.median(times_s))
        kept = away <= ODD * 1.4826 * np.median(away)
        if kept.sum() >= MANY:
            columns = np.stack([context[kept], context[kept] / number], axis=1)
            parts.append((columns - columns.mean(axis=0), times_s[kept] - times_s[kept].mean()))
    return parts


def fit_decodes(cells: Cells, price: Price) -> tuple[Ints, Floats, float]:
    """Knots, their times without context, s, and a context token's price."""
    knots = knots_of(cells.num_decodes)
    steps = basis(cells.num_decodes, knots)
    rising = np.tril(np.ones((len(knots), len(knots))))  # times are sums of increments, none of them negative
    columns = np.column_stack([steps @ rising, cells.context]) / cells.error_s[:, None]
    held = np.append(np.zeros(len(knots)), 1 / price.error_s)
    solved, _ = nnls(np.vstack([columns, held]), np.append(cells.time_s / cells.error_s, price.price_s / price.error_s))
    return knots, rising @ solved[:-1], float(solved[-1])


def basis(counts: Floats, knots: Ints) -> Floats:
    """Linear between knots, constant below the first, and going on above the last."""
    if len(knots) == 1:
        return np.ones((len(counts), 1))
    right = np.clip(np.searchsorted(knots, counts), 1, len(knots) - 1)
    share = (np.maximum(counts, knots[0]) - knots[right - 1]) / (knots[right] - knots[right - 1])
    rows = np.zeros((len(counts), len(knots)))
    rows[np.arange(len(counts)), right - 1] = 1 - share
    rows[np.arange(len(counts)), right] = share
    return rows
