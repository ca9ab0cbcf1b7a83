"""The recorded batches again, by the engine's rule and fitted times: how far each gap between updates is off.

A stretch begins where the thread had nothing to do, at the recorded schedule(), and goes on by itself from there.
Launches are drawn from their spread, and a gap's prediction is the mean over the draws: the longer of two noisy times
is longer than the longer of their means. What no model can beat is how far gaps lie from the mean of those alike: the
same kinds of step here and next, decodes and tokens within a tenth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.fit.recorder.moments import Moments
from simbatch.profiler.records import Floats, Ints, predict_s
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.host import RATIO_SHIFT, HostTimes, LaunchTimes
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.sections import HostSection

DRAWS = 16
ALIKE = 0.1  # of decodes and tokens, in logarithms
LEAST_ALIKE = 5


class UpdateGaps(NamedTuple):
    """Real and predicted gaps between the updates of one run, s; only those inside a stretch."""

    real_s: Floats
    predicted_s: Floats
    like: Ints  # the same number: steps alike


class GapErrors(NamedTuple):
    """Of gaps, ms, and of their sum, as a share."""

    number: int
    mean_ms: float
    error_ms: float  # mean |error|
    noise_ms: float  # what no model can beat
    total: float


def gaps_of(run: Moments, cost: CostModel, host: HostSection, seed: int = 0) -> UpdateGaps:
    """Predict the gaps of a run along its batches."""
    device_s = predict_s(cost, run.steps)
    launch_s, update_s = launches_s(run, host, seed), _updates_s(run, host)
    updates = _updates(run, device_s, launch_s, update_s, host.lag_s, host.tail_s)
    inside = ~run.is_idle
    inside[1:] &= np.diff(run.updated_s) > 0
    inside[0] = False
    real = np.diff(run.updated_s, prepend=run.updated_s[0])
    predicted = np.diff(updates, axis=0, prepend=updates[:1]).mean(axis=1)
    return UpdateGaps(real[inside], predicted[inside], _alike(run)[inside])


def errors_of(gaps: list[UpdateGaps]) -> GapErrors:
    """Of all runs together."""
    real, ours = (np.concatenate([getattr(each, name) for each in gaps]) for name in ("real_s", "predicted_s"))
    error, total = np.abs(ours - real).mean(), ours.sum() / real.sum() - 1
    noise = _noise([(each.real_s, each.like) for each in gaps])
    return GapErrors(len(real), 1e3 * float(real.mean()), 1e3 * float(error), 1e3 * noise, float(total))


def launches_s(run: Moments, host: HostSection, seed: int) -> Floats:
    """How long launches take, s: [step, draw]."""
    times, number = host.times() or HostTimes(), len(run)
    steps = run.steps
    seqs, tokens = steps.num_decodes + steps.num_prefills, steps.num_tokens
    mean = np.zeros(number)
    rng, ratios = np.random.default_rng(seed), np.ones((number, DRAWS))
    for kind, (name, launch) in enumerate(
        (("graph", times.graph), ("piecewise", times.piecewise), ("none", times.none))
    ):
        rows = run.kind == kind
        mean[rows] = _launch_s(launch, seqs, steps.num_prefills, tokens)[rows]
        spread = getattr(host.spread, name)
        if spread is not None:
            table = np.array(spread.table()) / 2.0**RATIO_SHIFT
            ratios[rows] = rng.choice(table, (int(rows.sum()), DRAWS))
    return np.asarray(mean[:, None] * ratios)


def _launch_s(launch: LaunchTimes, seqs: Ints, prefills: Ints, tokens: Ints) -> Floats:
    picoseconds = launch.base_ps + launch.per_seq_ps * seqs
    return (picoseconds + launch.per_prefill_ps * prefills + launch.per_token_ps * tokens) / PS_PER_S


def _updates_s(run: Moments, host: HostSection) -> Floats:
    seqs = run.steps.num_decodes + run.steps.num_prefills
    return np.asarray(host.update.base_s + host.update.per_seq_s * seqs)


def _updates(run: Moments, device_s: Floats, launch_s: Floats, update_s: Floats, lag_s: float, tail_s: float) -> Floats:
    """U of every step, [step, draw]."""
    found = np.empty_like(launch_s)
    follows = np.append(run.in_flight[1:] > 0, False)  # whether the next one is launched first
    nobody = np.full(launch_s.shape[1], -np.inf)
    older = before = launched = done = nobody  # U of the last two steps, L and D of the last one
    for k in range(len(run)):
        if run.is_idle[k]:
            begin, done = np.full(launch_s.shape[1], run.schedule_s[k]), nobody
        else:
            begin = np.maximum(older, launched) if run.in_flight[k] else before
        launched = begin + launch_s[k]
        if k and follows[k - 1]:
            found[k - 1] = np.maximum(done, launched) + update_s[k - 1]
        done = np.maximum(np.maximum(done, begin + lag_s) + device_s[k], launched + tail_s)
        found[k] = np.maximum(done, launched) + update_s[k]  # where nothing follows
        older, before = (found[k - 1] if k else nobody), found[k]
    return found


def _alike(run: Moments) -> Ints:
    """A number for steps of the same kinds, decodes and tokens, here and next, within a tenth."""
    steps = run.steps
    of_step = [run.kind, _band(steps.num_decodes), _band(steps.prefill_tokens)]
    following = [np.append(column[1:], 0) for column in of_step]
    _, like = np.unique(np.stack([*of_step, *following]), axis=1, return_inverse=True)
    return np.asarray(like, dtype=np.int64).ravel()


def _band(counts: Ints) -> Ints:
    return np.round(np.log1p(counts) / ALIKE).astype(np.int64)


def _noise(parts: list[tuple[Floats, Any]]) -> float:
    """Mean |gap - mean of its like|, s, made good for the smallness of groups."""
    deviations = []
    for real, like in parts:
        for number in np.unique(like):
            times = real[like == number]
            if len(times) >= LEAST_ALIKE:
                scale = np.sqrt(len(times) / (len(times) - 1))
                deviations.append(scale * np.abs(times - times.mean()))
    return float(np.concatenate(deviations).mean()) if deviations else float("nan")
