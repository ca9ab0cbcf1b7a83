"""From a request's sending to the schedule() that takes it: what the front end does, by the client's clock.

The step that begins a prompt (k) was scheduled when step k-2 was taken in (k-1 where scheduling is synchronous), and
the step before it a step earlier: in between the request came through, if that step had room for it. So its way in lies
between two moments that the streams tell. Work of one thread (a request each, a token each, stretched by the streams
that the thread sends) makes a cohort stand in a line; the rest delays everybody alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from simbatch.sim.streams import Batches, Steps
from simbatch.sim.streams.streams import Floats, Ints

PER_REQUEST_S = (0.0, 0.00025, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.0045, 0.0065, 0.009)
PER_TOKEN_S = (0.0, 1e-6, 2.5e-6, 5e-6)
CHUNK_SHARES = (0.25, 0.5, 0.75, 1.0)  # of what the streams show, in which the client has its part
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
    chunk_s: float  # to send a chunk
    miss_s: float
    num_requests: int


class Bounds(NamedTuple):
    """One run's requests in the order of sending, and the bounds of those that have any; s after the sending."""

    sent_s: Floats
    prompt: Floats
    busy: Floats  # the share of the thread's time that the streams take
    chosen: Ints
    low_s: Floats
    high_s: Floats


def fit_way_in(runs: Sequence[tuple[Steps, Batches]], chunk_s: float, lone_s: float, *, is_async: bool = True) -> WayIn:
    """The figures that break the fewest bounds; `lone_s` is a lone request's way in, where there are no bounds."""
    return fit_bounds(
        [_bounds(steps, batches, chunk_s, 2 if is_async else 1) for steps, batches in runs], chunk_s, lone_s
    )


def fit_bounds(bounds: Sequence[Bounds], chunk_s: float, lone_s: float) -> WayIn:
    """The same of bounds that are known."""
    number = sum(len(each.chosen) for each in bounds)
    if not number:
        return WayIn(*USUAL, max(0.0, lone_s - USUAL[0]), chunk_s, 0.0, 0)
    prompt = float(np.mean(np.concatenate([each.prompt for each in bounds])))
    tried = [
        _missed(bounds, prompt, chunk_s, number, *work)
        for work in product(PER_REQUEST_S, PER_TOKEN_S, CHUNK_SHARES if chunk_s > 0 else (1.0,))
    ]
    return min(tried, key=lambda each: each.miss_s)


def _missed(
    bounds: Sequence[Bounds],
    prompt: float,
    chunk_s: float,
    number: int,
    request_s: float,
    token_s: float,
    share: float,
) -> WayIn:
    """With the delay that goes best with this work, and what it misses."""
    through = [_through(each, request_s, token_s, share)[each.chosen] for each in bounds]
    low = np.concatenate([each.low_s - t for each, t in zip(bounds, through, strict=True)])
    high = np.concatenate([each.high_s - t for each, t in zip(bounds, through, strict=True)])
    delay_s, miss_s = _delay(low, high)
    miss_s = (miss_s + RESOLVED_S) * (1 + UNUSUAL * _unusual(request_s, token_s, share, prompt))
    return WayIn(request_s, token_s, delay_s, share * chunk_s, miss_s, number)


def _unusual(request_s: float, token_s: float, share: float, prompt: float) -> float:
    """How far work is from the usual, how it is divided, and how far from the streams' own the chunks are."""
    usual, token = USUAL[0] + USUAL[1] * prompt, (token_s + 1e-6) / (USUAL[1] + 1e-6)
    far = abs(np.log((request_s + token_s * prompt + 1e-4) / usual))
    return float(far + 0.2 * abs(np.log(token)) + 0.5 * abs(np.log(share)))


def _bounds(steps: Steps, batches: Batches, chunk_s: float, ahead: int) -> Bounds:
    """Of the requests that came to a busy engine, which schedules `ahead` steps before it takes in."""
    streams = steps.streams
    begun = batches.begun[:MOST]
    room = np.append(0, batches.max_num_batched_tokens * (1 + batches.num_hidden[:-1]) - batches.prefill_tokens[:-1])
    is_busy = np.append(False, batches.num_decodes[:-1] > 0) & (batches.num_decodes > 0)
    chosen = np.flatnonzero(is_busy[begun] & (begun >= 3) & (batches.num_hidden[begun] == 0))
    k = begun[chosen]
    sent_s = streams.sent_s[: len(begun)]
    low = np.where(room[k] > batches.num_decodes[k] + 1, steps.begin_s[k - ahead - 1] - sent_s[chosen], -np.inf)
    before = np.searchsorted(steps.begin_s, sent_s) - 1
    gaps = np.diff(steps.begin_s, prepend=steps.begin_s[0] - 1)
    busy = np.where(before > 0, chunk_s * steps.num_seen[before] / np.maximum(gaps[before], 1e-9), 0)
    prompt = streams.num_prompt_tokens[: len(begun)].astype(np.float64)
    return Bounds(sent_s, prompt, busy, chosen, low, steps.begin_s[k - ahead] - sent_s[chosen])


def _through(bounds: Bounds, request_s: float, token_s: float, share: float) -> Floats:
    """How long each request takes through one thread, its line included."""
    work = (request_s + token_s * bounds.prompt) / (1 - np.minimum(share * bounds.busy, MAX_BUSY))
    done = np.cumsum(work)
    return np.asarray(np.maximum.accumulate(bounds.sent_s - (done - work)) + done - bounds.sent_s)


def _delay(low: Floats, high: Floats) -> tuple[float, float]:
    """The delay, 0 or more, with the least mean miss, of the bounds themselves and some between."""
    ends = np.concatenate([low[np.isfinite(low)], high, [0.0]])
    tried = np.unique(np.quantile(ends[ends >= 0], np.linspace(0, 1, 200)))
    miss = np.minimum(np.maximum(low[:, None] - tried, 0) + np.maximum(tried - high[:, None], 0), CAP_S).mean(axis=0)
    near = tried[miss <= miss.min() + 1e-6]
    return float(near.mean()), float(miss.min())
