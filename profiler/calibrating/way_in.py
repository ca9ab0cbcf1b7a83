"""From a request's sending to the schedule() that takes it: what the front end does, by the client's clock.

The step that begins a prompt (k) was scheduled when step k-2 was taken in, and the step before it when step k-3 was: in
between the request came through, if that step had room for it. So its way in lies between two moments that the streams
tell. Work of one thread (a request each, a token each, stretched by the streams that the thread sends) makes a cohort
stand in a line; the rest delays everybody alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simbatch.sim.streams import Batches, Steps
from simbatch.sim.streams.streams import Floats, Ints

PER_REQUEST_S = (0.0, 0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.0045, 0.0065, 0.009)
PER_TOKEN_S = (0.0, 1e-6, 2.5e-6, 5e-6)
# Where bounds do not tell: work as on the server whose front end was told best (docs/accuracy.md, first look).
USUAL = 0.0005, 2.5e-6
UNUSUAL = 0.05  # how much a miss grows for work that is e times as long or short
MAX_BUSY = 0.95
MOST = 5000  # requests a run that are looked at
RESOLVED_S = 0.0005
CAP_S = 0.05  # of a miss: a standstill says nothing of the way in


class WayIn(NamedTuple):
    """What the front end takes, s, and how far outside of their bounds requests are on average."""

    per_request_s: float
    per_prompt_token_s: float
    delay_s: float
    miss_s: float
    num_requests: int


class _Bounds(NamedTuple):
    """One run's requests in the order of sending, and the bounds of those that have any; s after the sending."""

    sent_s: Floats
    prompt: Floats
    stretch: Floats
    chosen: Ints
    low_s: Floats
    high_s: Floats


def fit_way_in(runs: Sequence[tuple[Steps, Batches]], chunk_s: float, lone_s: float) -> WayIn:
    """The figures that break the fewest bounds; `lone_s` is a lone request's way in, where there are no bounds."""
    bounds = [_bounds(steps, batches, chunk_s) for steps, batches in runs]
    best = WayIn(0.0, 0.0, 0.0, np.inf, sum(len(each.chosen) for each in bounds))
    if not best.num_requests:
        return WayIn(*USUAL, max(0.0, lone_s - USUAL[0]), 0.0, 0)
    prompt = float(np.mean(np.concatenate([each.prompt for each in bounds])))
    for per_request_s in PER_REQUEST_S:
        for per_token_s in PER_TOKEN_S:
            through = [_through(each, per_request_s, per_token_s)[each.chosen] for each in bounds]
            low = np.concatenate([each.low_s - t for each, t in zip(bounds, through, strict=True)])
            high = np.concatenate([each.high_s - t for each, t in zip(bounds, through, strict=True)])
            delay_s, miss_s = _delay(low, high)
            miss_s = (miss_s + RESOLVED_S) * (1 + UNUSUAL * _unusual(per_request_s, per_token_s, prompt))
            if miss_s < best.miss_s:
                best = WayIn(per_request_s, per_token_s, delay_s, miss_s, best.num_requests)
    return best


def _unusual(per_request_s: float, per_token_s: float, prompt: float) -> float:
    """How far work is from the usual, and how it is divided."""
    usual, token = USUAL[0] + USUAL[1] * prompt, (per_token_s + 1e-6) / (USUAL[1] + 1e-6)
    return abs(np.log((per_request_s + per_token_s * prompt + 1e-4) / usual)) + 0.2 * abs(np.log(token))


def _bounds(steps: Steps, batches: Batches, chunk_s: float) -> _Bounds:
    streams = steps.streams
    begun = batches.begun[:MOST]
    room = np.append(0, batches.max_num_batched_tokens * (1 + batches.num_hidden[:-1]) - batches.prefill_tokens[:-1])
    is_busy = np.append(False, batches.num_decodes[:-1] > 0) & (batches.num_decodes > 0)
    chosen = np.flatnonzero(is_busy[begun] & (begun >= 3) & (batches.num_hidden[begun] == 0))
    k = begun[chosen]
    sent_s = streams.sent_s[: len(begun)]
    low = np.where(room[k] > batches.num_decodes[k] + 1, steps.begin_s[k - 3] - sent_s[chosen], -np.inf)
    before = np.searchsorted(steps.begin_s, sent_s) - 1
    gaps = np.diff(steps.begin_s, prepend=steps.begin_s[0] - 1)
    busy = np.where(before > 0, chunk_s * steps.num_seen[before] / np.maximum(gaps[before], 1e-9), 0)
    stretch = 1 / (1 - np.minimum(busy, MAX_BUSY))
    prompt = streams.num_prompt_tokens[: len(begun)].astype(np.float64)
    return _Bounds(sent_s, prompt, stretch, chosen, low, steps.begin_s[k - 2] - sent_s[chosen])


def _through(bounds: _Bounds, per_request_s: float, per_token_s: float) -> Floats:
    """How long each request takes through one thread, its line included."""
    work = (per_request_s + per_token_s * bounds.prompt) * bounds.stretch
    free, through = -np.inf, []
    for sent_s, work_s in zip(bounds.sent_s.tolist(), work.tolist(), strict=True):
        free = max(free, sent_s) + work_s
        through.append(free - sent_s)
    return np.array(through)


def _delay(low: Floats, high: Floats) -> tuple[float, float]:
    """The delay, 0 or more, with the least mean miss, of the bounds themselves and some between."""
    ends = np.concatenate([low[np.isfinite(low)], high, [0.0]])
    tried = np.unique(np.quantile(ends[ends >= 0], np.linspace(0, 1, 200)))
    miss = np.minimum(np.maximum(low[:, None] - tried, 0) + np.maximum(tried - high[:, None], 0), CAP_S).mean(axis=0)
    near = tried[miss <= miss.min() + 1e-6]
    return float(near.mean()), float(miss.min())
