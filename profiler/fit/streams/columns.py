"""A run's rebuilt steps as columns of numbers, and its episodes side by side: what the parts of a fit look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


MOST_STEPS, MOST_EPISODES = 60, 800  # longer ones are cut, more are left out evenly
BLOCK = 12  # steps of an episode whose sum is compared


class Windows(NamedTuple):
    """Episodes side by side, the longest first: [episode, place], padded; and per place whether it is one."""

    steps: Ints
    run: Ints
    is_step: NDArray[np.bool_]


def windows_of(runs: Sequence[StepColumns]) -> Windows:
    """The episodes of all runs."""
    rows: list[tuple[int, Ints]] = []
    for number, run in enumerate(runs):
        touched = (run.tokens > 0) & (run.num_decodes > 0)
        near = touched.copy()
        near[:-1] |= touched[1:]
        near[1:] |= touched[:-1]
        near &= run.num_decodes > 0
        near[:3] = False
        edges = np.flatnonzero(np.diff(np.concatenate([[False], near, [False]]).astype(np.int8)))
        for begin, end in edges.reshape(-1, 2):
            cuts = range(begin, min(end, len(near) - 1), MOST_STEPS)
            rows += [(number, np.arange(cut, min(cut + MOST_STEPS, end, len(near) - 1))) for cut in cuts]
    rows = (
        [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, MOST_EPISODES).round().astype(int))] if rows else []
    )
    rows.sort(key=lambda row: -len(row[1]))
    longest = len(rows[0][1]) if rows else 0
    table = np.zeros((len(rows), longest), dtype=np.int64)
    is_step = np.zeros((len(rows), longest), dtype=bool)
    for row, (_, steps) in enumerate(rows):
        table[row, : len(steps)], is_step[row, : len(steps)] = steps, True
    return Windows(table, np.array([number for number, _ in rows], dtype=np.int64), is_step)


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
