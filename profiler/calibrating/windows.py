"""Episodes of several runs side by side, so that they can be predicted together, place by place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.calibrating.columns import Columns
from simbatch.sim.streams.streams import Ints

MOST_STEPS, MOST_EPISODES = 60, 800  # longer ones are cut, more are left out evenly


class Windows(NamedTuple):
    """Episodes side by side: [episode, place], padded; and per place whether it is one."""

    steps: Ints
    run: Ints
    is_step: NDArray[np.bool_]


def windows_of(runs: Sequence[Columns]) -> Windows:
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
    longest = max((len(steps) for _, steps in rows), default=0)
    table = np.zeros((len(rows), longest), dtype=np.int64)
    is_step = np.zeros((len(rows), longest), dtype=bool)
    for row, (_, steps) in enumerate(rows):
        table[row, : len(steps)], is_step[row, : len(steps)] = steps, True
    return Windows(table, np.array([number for number, _ in rows], dtype=np.int64), is_step)
