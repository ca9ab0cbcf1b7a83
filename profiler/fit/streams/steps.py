"""A run's rebuilt steps as columns of numbers, and what those of decodes alone say.

They are told between other such steps, which neither a launch of prefills nor a prefill on the device touches: the time
from one to the next is their own, the device's, or the host's where that is longer. Steps alike (number of decodes,
context within a tenth) are taken together by their mean; the knots are least squares over those cells, and over the sum
of each run.

A context's price is read off batches that stay the same while their contexts grow: t = f(n) + price * context +
drift * (context / n), with f of every run and number its own, and one drift of steps with their age, which real servers
have at small batches. What that leaves open is held near what other models have of their prefill's price; the
cells, in which rarer numbers come with longer contexts, may only lower it.

How far off that may be beyond chance is seen where batches disagree: with three or more, by their own slopes, and at
most by `SYSTEMATIC`, as where two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from simbatch.sim.streams import Floats, Ints, RebuiltSteps
from simbatch.sim.streams.steps import StepBatches


@dataclass(frozen=True)
class Lone:
    """Requests that came to an idle engine alone: the step that ended their prompt, and their first token."""

    step: Ints
    ttft_s: Floats
    prompt: Floats


@dataclass(frozen=True)
class StepColumns:
    """One entry a step; tokens of prefills, times of updates by the client's clock."""

    update_s: Floats
    num_decodes: Floats
    context: Floats
    tokens: Floats
    attention: Floats
    num_prefills: Floats
    num_hidden: Floats
    lone: Lone

    def __len__(self) -> int:
        return len(self.update_s)

    @cached_property
    def gaps_s(self) -> Floats:
        """From the step before; of the first one none."""
        return np.diff(self.update_s, prepend=np.nan)

    @cached_property
    def settled(self) -> NDArray[np.bool_]:
        """Decode-only steps with nothing else two steps before them, nor in the next one."""
        other = (self.tokens > 0) | (self.num_decodes == 0)
        alone = ~other
        for shift in (1, 2):
            alone[shift:] &= ~other[:-shift]
        alone[:-1] &= ~other[1:]
        alone[:3] = alone[-1:] = False
        return np.asarray(alone)

    def part(self, begin: int, end: int) -> StepColumns:
        """Steps `begin` to `end` alone."""
        columns = {f.name: getattr(self, f.name)[begin:end] for f in fields(self) if f.name != "lone"}
        chosen = (self.lone.step > begin) & (self.lone.step < end)
        lone = Lone(self.lone.step[chosen] - begin, self.lone.ttft_s[chosen], self.lone.prompt[chosen])
        return StepColumns(**columns, lone=lone)


def columns_of(steps: RebuiltSteps, batches: StepBatches) -> StepColumns:
    """Of one run."""
    streams = steps.streams
    of_step = np.full(len(steps), -1)
    of_step[steps.first] = np.arange(len(streams))
    alone = np.flatnonzero((steps.num_first == 1) & (batches.num_decodes == 0) & (batches.prefill_tokens > 0))
    alone = alone[alone > 0]
    alone = alone[streams.sent_s[of_step[alone]] >= steps.end_s[alone - 1]]
    requests = of_step[alone]
    columns = {
        "num_decodes": batches.num_decodes,
        "context": batches.decode_context,
        "tokens": batches.prefill_tokens,
        "attention": batches.prefill_attention,
        "num_prefills": batches.num_prefills,
        "num_hidden": batches.num_hidden,
    }
    return StepColumns(
        update_s=steps.begin_s,
        **{name: column.astype(np.float64) for name, column in columns.items()},
        lone=Lone(
            alone,
            steps.begin_s[alone] - streams.sent_s[requests],
            streams.num_prompt_tokens[requests].astype(np.float64),
        ),
    )


def joined(runs: list[StepColumns]) -> tuple[StepColumns, Ints]:
    """All runs one after the other, and where each begins."""
    begins = np.cumsum([0, *(len(run) for run in runs)])
    columns = {
        f.name: np.concatenate([getattr(run, f.name) for run in runs]) for f in fields(StepColumns) if f.name != "lone"
    }
    step = np.concatenate([run.lone.step + begin for run, begin in zip(runs, begins, strict=False)]).astype(np.int64)
    ttft_s, prompt = (np.concatenate([getattr(run.lone, name) for run in runs]) for name in ("ttft_s", "prompt"))
    return StepColumns(**columns, lone=Lone(step, ttft_s, prompt)), begins


KNOT_RATIO = 1.6  # between neighbouring knots, at least


def knots_of(counts: Floats, least: float = 1, few: int = 1) -> Ints:
    """Smallest count, one that `few` reach, and one of every band between with at least so many of them.

    Counts above the last knot go on along the line: three steps of a cohort's begin are no knot.
    """
    low, high = float(counts.min()), float(np.sort(counts)[-min(len(counts), few)])
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


MANY, ODD = 50, 3.5  # steps of one number of decodes; robust standard deviations
PRIOR_SD, SYSTEMATIC, LEAST = 0.6, 0.3, 0.2  # of the prior; of what was found, at most; of the prior, at least
CELL_STEPS, CELL_SHARE = 10, 0.005  # at least so many steps, and of a run's such a share
CELL_SD, RUN_SD = 0.03, 0.01  # of a cell's mean, and of a run's, however many steps it has
TRIM = 0.02


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


def _mean(times_s: Floats, least: float = CELL_SD) -> tuple[float, float]:
    """Without standstills; and how well it is known, at best to such a share."""
    kept = times_s[_is_usual(times_s)]
    mean = float(kept.mean())
    return mean, float(np.hypot(least * mean, kept.std() / np.sqrt(len(kept))))


def _is_usual(times_s: Floats) -> NDArray[np.bool_]:
    return np.asarray(times_s <= max(np.quantile(times_s, 1 - TRIM), 1.5 * np.median(times_s)))


class Price(NamedTuple):
    """Of a token of context, s, and its standard error."""

    price_s: float
    error_s: float
    is_told: bool  # the traffic says more than the prior


def price_of(runs: Sequence[StepColumns], prior_s: float) -> Price:
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
    systematic = min(SYSTEMATIC, _scatter(rows, solved))
    error_s = float(np.sqrt(variance + (systematic * solved[0]) ** 2 + (systematic * solved[1] / largest) ** 2))
    if not 0 < error_s < np.inf:
        return prior
    weights = np.array([1 / error_s**2, 1 / prior.error_s**2])
    price_s = float(weights @ [solved[0], prior_s] / weights.sum())
    return Price(max(price_s, LEAST * prior_s), float(weights.sum() ** -0.5), bool(error_s < prior.error_s))


def _scatter(rows: Sequence[tuple[Floats, Floats]], solved: Floats) -> float:
    """How far the batches' own slopes are from what all of them say, over the price; two batches cannot disagree."""
    if len(rows) <= len(solved):
        return np.inf
    left = [(columns[:, 0], times_s - columns @ solved) for columns, times_s in rows]
    slopes = [context @ rest_s / (context @ context) for context, rest_s in left]
    return float(np.sqrt(np.mean(np.square(slopes))) / abs(solved[0]))


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


def fit_decodes(runs: Sequence[StepColumns], cells: Cells, price: Price) -> tuple[Ints, Floats, float]:
    """Knots, their times without context, s, and a context token's price, of cells alike and of the sum of each run.

    Of 12,374 steps 11,971 had ten decodes, 209 nine and 88 seven: a cell each, but the run is what the first ones took.
    Such rare cells are slow for other reasons and stand at longer contexts: they may lower the price, and not raise it.
    """
    knots = knots_of(cells.num_decodes)
    rising = np.tril(np.ones((len(knots), len(knots))))  # times are sums of increments, none of them negative
    sums = np.array([_sum_of(run, knots) for run in runs if run.settled.any()])
    steps = np.vstack([basis(cells.num_decodes, knots), sums[:, :-3]]) @ rising
    context, time_s, error_s = np.hstack([(cells.context, cells.time_s, cells.error_s), sums[:, -3:].T])
    held = np.append(np.zeros(len(knots)), 1 / price.error_s)
    columns = np.vstack([np.column_stack([steps, context]) / error_s[:, None], held])
    solved, _ = nnls(columns, np.append(time_s / error_s, price.price_s / price.error_s))
    price_s = min(float(solved[-1]), price.price_s)
    increments, _ = nnls(steps / error_s[:, None], (time_s - price_s * context) / error_s)
    return knots, rising @ increments, price_s


def _sum_of(run: StepColumns, knots: Ints) -> Floats:
    """Means over a run's steps of decodes alone: knots' shares, context, time and how well that is known."""
    chosen = np.flatnonzero(run.settled)
    chosen = chosen[_is_usual(run.gaps_s[chosen])]
    shares = basis(run.num_decodes[chosen], knots).mean(axis=0)
    return np.array([*shares, run.context[chosen].mean(), *_mean(run.gaps_s[chosen], RUN_SD)])
