"""How sure a solution of episodes is.

The residuals of an episode hang together (one slow launch moves all that comes behind it), and those of noisy launches
are the larger ones: the errors are of the scatter from episode to episode (a sandwich, clustered by episode: Liang and
Zeger 1986), with the priors' own beside it. By the mean residual alone they were up to half as large as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fit.streams.columns import BLOCK, basis
from simbatch.sim.streams import Floats, Ints

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult


def covariance_of(found: OptimizeResult, is_step: NDArray[np.bool_], num_lone: int, num_knots: int) -> Floats:
    """Of the knots' times and the host's, s^2; [value, value]. `is_step` is [episode, place]."""
    episode = _episodes(is_step, num_lone)
    scores = np.zeros((int(episode.max(initial=-1)) + 1, len(found.x)))
    np.add.at(scores, episode, (found.fun[:, None] * found.jac)[: len(episode)])
    held = found.jac[len(episode) :]
    inverse = np.linalg.pinv(found.jac.T @ found.jac)
    whole = np.eye(len(found.x))
    whole[:num_knots, :num_knots] = np.tril(np.ones((num_knots, num_knots)))  # knots' times are sums of increments
    covariance = whole @ inverse @ (scores.T @ scores + held.T @ held) @ inverse @ whole.T
    return np.asarray(covariance)


def _episodes(is_step: NDArray[np.bool_], num_lone: int) -> Ints:
    """Of each residual but the priors' the episode, or the lone request."""
    length = is_step.sum(axis=1)
    blocks = [np.flatnonzero(length > begin) for begin in range(0, is_step.shape[1], BLOCK)]
    return np.concatenate([np.nonzero(is_step)[0], *blocks, len(length) + np.arange(num_lone)])


def share_at(tokens: Floats, knots: Ints, time_s: Floats, covariance: Floats) -> Floats:
    """Standard error over value of the device's time in steps of so many tokens, between knots and beyond."""
    rows, number = basis(tokens, knots), len(knots)
    error_s = np.sqrt(np.maximum(0.0, np.einsum("ij,jk,ik->i", rows, covariance[:number, :number], rows)))
    return np.asarray(error_s / np.maximum(rows @ time_s, 1e-9))
