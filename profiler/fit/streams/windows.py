"""Episodes side by side, and how sure a solution of them is.

The residuals of an episode hang together (one slow launch moves all that comes behind it), and those of noisy launches
are the larger ones: the errors are of the scatter from episode to episode (a sandwich, clustered by episode: Liang and
Zeger 1986), with the priors' own beside it. Few episodes fit themselves too well: each counts by what it would be off
if it had been left out (CR3: Bell and McCaffrey 2002), and an error of so few is as wide as Student's t with as many
degrees as the episodes that tell a value are worth (theirs, by Satterthwaite). By the mean residual alone errors were
up to half as large as they are, and by 24 requests' own residuals half again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fit.streams.steps import StepColumns, basis
from simbatch.sim.streams import Floats, Ints

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

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


NORMAL, CONFIDENCE = 1.96, 0.975  # so many standard errors on both sides are 19 of 20
OWN = 1e-8  # of an episode's directions: what it alone tells cannot be told without it


class Scatter(NamedTuple):
    """What moves the knots' times and the host's, s: [value, episode], [value, prior], and [episode, value, value]."""

    episodes: Floats
    held: Floats
    worth: Floats  # the squares of what equal noise in an episode would move

    def errors(self, rows: Floats) -> Floats:
        """Standard errors of sums of the values, a row each: 1.96 times them hold 19 of 20."""
        from scipy.special import stdtrit

        number = max(1, self.episodes.shape[1])
        of_episodes = ((rows @ self.episodes) ** 2).sum(axis=1) * (number - 1) / number
        variance = of_episodes + ((rows @ self.held) ** 2).sum(axis=1)
        shares = np.einsum("ri,gij,rj->rg", rows, self.worth, rows)
        degrees = np.maximum(1.0, shares.sum(axis=1) ** 2 / np.maximum((shares**2).sum(axis=1), 1e-300))
        degrees = degrees * (variance / np.maximum(of_episodes, 1e-30)) ** 2
        return np.asarray(np.sqrt(variance) * stdtrit(np.minimum(degrees, 1e6), CONFIDENCE) / NORMAL)


def scatter_of(found: OptimizeResult, is_step: NDArray[np.bool_], num_lone: int, num_knots: int) -> Scatter:
    """Of the knots' times and the host's. `is_step` is [episode, place]."""
    of_row = _episodes(is_step, num_lone)
    whole = np.eye(len(found.x))
    whole[:num_knots, :num_knots] = np.tril(np.ones((num_knots, num_knots)))  # knots' times are sums of increments
    inverse = np.linalg.pinv(found.jac.T @ found.jac)
    moves = whole @ inverse
    number = int(of_row.max(initial=-1)) + 1
    episodes = np.zeros((len(found.x), number))
    worth = np.zeros((number, len(found.x), len(found.x)))
    for episode in range(number):
        rows = np.flatnonzero(of_row == episode)
        own = found.jac[rows]
        without = np.linalg.pinv(np.eye(len(rows)) - own @ inverse @ own.T, rcond=OWN) @ own @ moves.T
        episodes[:, episode] = without.T @ found.fun[rows]
        worth[episode] = without.T @ without
    return Scatter(episodes, moves @ found.jac[len(of_row) :].T, worth)


def _episodes(is_step: NDArray[np.bool_], num_lone: int) -> Ints:
    """Of each residual but the priors' the episode, or the lone request."""
    length = is_step.sum(axis=1)
    blocks = [np.flatnonzero(length > begin) for begin in range(0, is_step.shape[1], BLOCK)]
    return np.concatenate([np.nonzero(is_step)[0], *blocks, len(length) + np.arange(num_lone)])


def share_at(tokens: Floats, knots: Ints, time_s: Floats, scatter: Scatter) -> Floats:
    """Standard error over value of the device's time in steps of so many tokens, between knots and beyond."""
    rows = basis(tokens, knots)
    beside = np.zeros((len(rows), len(scatter.episodes) - rows.shape[1]))
    return np.asarray(scatter.errors(np.hstack([rows, beside])) / np.maximum(rows @ time_s, 1e-9))
