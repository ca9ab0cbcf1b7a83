"""From a request's sending to the schedule() that takes it: what the front end does, by the client's clock.

The step that begins a prompt (k) was scheduled when step k-2 was taken in (k-1 where scheduling is synchronous), and
the step before it a step earlier: in between the request came through, if that step had room for it. So its way in lies
between two moments that the streams tell. Work of one thread, done in turns between the chunks that the thread sends
(`sim/engine/front_end`: the same rules here, request by request), makes a cohort come through late and together; the
rest delays everybody alike. Work, its part per token and what a chunk takes are moved one after the other until fewer
bounds cannot be broken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simbatch.sim.streams import Floats, Ints, RebuiltSteps
from simbatch.sim.streams.steps import StepBatches

PER_REQUEST_S = (0.0, 0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.0045, 0.0065, 0.009)
PER_TOKEN_S = (0.0, 5e-7, 1e-6, 2e-6, 3e-6, 5e-6)
CHUNK_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the time between a step's chunks at the client, which has its part in it
SWEEPS = 3
HELD = 0.75  # of the thread is the chunks' while they are sent
# Where bounds do not tell: work as on a real vLLM server over a virtual GPU (docs/accuracy.md)
USUAL = 0.002, 1e-6
USUAL_SHARE = (
    0.25  # where streams of 100 and more are told (public servers, docs/accuracy.md), the client's part is large
)
UNUSUAL = 0.05  # how much a miss grows for work that is e times as long or short
FIRST_DELAY_S, ROUNDS = 0.01, 2  # when chunks were sent, by the client's clock, hangs on the delay, and it on them
MOST = 2000  # requests a run that are looked at
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


class WaitBounds(NamedTuple):
    """One run's requests in the order of sending, and the bounds of those that have any; s after the sending."""

    sent_s: Floats
    prompt: Floats
    update_s: Floats  # when the chunks of each step come to the client, and how many
    num_chunks: Floats
    chosen: Ints
    low_s: Floats
    high_s: Floats


def fit_way_in(
    runs: Sequence[tuple[RebuiltSteps, StepBatches]], chunk_s: float, lone_s: float, *, is_async: bool = True
) -> WayIn:
    """The figures that break the fewest bounds; `lone_s` is a lone request's way in, where there are no bounds."""
    return fit_bounds([_bounds(steps, batches, 2 if is_async else 1) for steps, batches in runs], chunk_s, lone_s)


def fit_bounds(bounds: Sequence[WaitBounds], chunk_s: float, lone_s: float) -> WayIn:
    """The figures that break the fewest of these bounds."""
    number = sum(len(each.chosen) for each in bounds)
    if not number:
        return WayIn(*USUAL, max(0.0, lone_s - USUAL[0]), chunk_s, 0.0, 0)
    prompt = float(np.mean(np.concatenate([each.prompt for each in bounds])))
    grids = PER_REQUEST_S, PER_TOKEN_S, CHUNK_SHARES if chunk_s > 0 else (1.0,)
    tried: dict[tuple[float, ...], WayIn] = {}

    def miss_s(work: tuple[float, ...]) -> float:
        if work not in tried:
            tried[work] = _missed(bounds, prompt, chunk_s, number, *work)
        return tried[work].miss_s

    for share in (grids[-1][0], grids[-1][-1]):  # quick chunks with much work, and the other way round
        best: tuple[float, ...] = (*USUAL, share)
        for _ in range(SWEEPS):
            for place, grid in enumerate(grids):
                best = min(((*best[:place], value, *best[place + 1 :]) for value in grid), key=miss_s)
    return min(tried.values(), key=lambda each: each.miss_s)


def _missed(
    bounds: Sequence[WaitBounds],
    prompt: float,
    chunk_s: float,
    number: int,
    request_s: float,
    token_s: float,
    share: float,
) -> WayIn:
    """With the delay that goes best with this work, and what it misses."""
    delay_s = FIRST_DELAY_S
    for _ in range(ROUNDS):
        through = [_through(each, request_s, token_s, share * chunk_s, delay_s)[each.chosen] for each in bounds]
        low = np.concatenate([each.low_s - t for each, t in zip(bounds, through, strict=True)])
        high = np.concatenate([each.high_s - t for each, t in zip(bounds, through, strict=True)])
        delay_s, miss_s = _delay(low, high)
    miss_s = (miss_s + RESOLVED_S) * (1 + UNUSUAL * _unusual(request_s, token_s, share, prompt))
    return WayIn(request_s, token_s, delay_s, share * chunk_s, miss_s, number)


def _unusual(request_s: float, token_s: float, share: float, prompt: float) -> float:
    """How far work is from the usual, how it is divided, and how far from the streams' own the chunks are."""
    usual, token = USUAL[0] + USUAL[1] * prompt, (token_s + 1e-6) / (USUAL[1] + 1e-6)
    far = abs(np.log((request_s + token_s * prompt + 1e-4) / usual))
    return float(far + 0.2 * abs(np.log(token)) + abs(np.log(share / USUAL_SHARE)))


def _bounds(steps: RebuiltSteps, batches: StepBatches, ahead: int) -> WaitBounds:
    """Of the requests that came to a busy engine, which schedules `ahead` steps before it takes in."""
    streams = steps.streams
    begun = batches.begun[:MOST]
    room = np.append(0, batches.max_num_batched_tokens * (1 + batches.num_hidden[:-1]) - batches.prefill_tokens[:-1])
    is_busy = np.append(False, batches.num_decodes[:-1] > 0) & (batches.num_decodes > 0)
    chosen = np.flatnonzero(is_busy[begun] & (begun >= 3) & (batches.num_hidden[begun] == 0))
    k = begun[chosen]
    sent_s = streams.sent_s[: len(begun)]
    low = np.where(room[k] > batches.num_decodes[k] + 1, steps.begin_s[k - ahead - 1] - sent_s[chosen], -np.inf)
    prompt = streams.num_prompt_tokens[: len(begun)].astype(np.float64)
    seen = slice(0, int(begun.max()) + 1)
    num_chunks = steps.num_seen[seen].astype(np.float64)
    return WaitBounds(
        sent_s, prompt, steps.begin_s[seen], num_chunks, chosen, low, steps.begin_s[k - ahead] - sent_s[chosen]
    )


def _through(bounds: WaitBounds, request_s: float, token_s: float, chunk_s: float, delay_s: float) -> Floats:
    """How long each request takes through one thread, its line and the chunks that are sent meanwhile included."""
    update_s, work_s = bounds.update_s - delay_s, chunk_s * bounds.num_chunks
    taken_s, hold_s = np.cumsum(work_s), np.cumsum(work_s / HELD)  # of all steps until the k-th
    held_s = np.maximum.accumulate(update_s - hold_s + work_s / HELD) + hold_s
    updated = update_s - taken_s + HELD * (held_s - update_s)  # the clock of turns when the k-th step is taken in
    k = np.searchsorted(update_s, bounds.sent_s, side="right") - 1
    turned_s = bounds.sent_s - taken_s[k] + HELD * np.maximum(0, held_s[k] - bounds.sent_s)
    turned_s = np.where(k < 0, bounds.sent_s, turned_s)
    ended_s = _two_turns(turned_s, (request_s + token_s * bounds.prompt) / 2)
    k = np.searchsorted(updated, ended_s) - 1
    at_s = ended_s + taken_s[k]
    at_s = np.where(k < 0, ended_s, at_s - np.maximum(0, held_s[k] - at_s) * HELD / (1 - HELD))
    return np.asarray(at_s - bounds.sent_s)


def _two_turns(sent_s: Floats, turn_s: Floats) -> Floats:
    """When the last turns end, where each lines up again after its first."""
    ended, line, free = np.zeros(len(sent_s)), deque[tuple[float, int]](), 0.0
    turns = turn_s.tolist()
    for i, at in enumerate([*sent_s.tolist(), np.inf]):
        while line and line[0][0] <= at:
            _, j = line.popleft()
            ended[j] = free = free + turns[j]
        if i < len(turns):
            free = max(free, at) + turns[i]
            line.append((free, i))
    return ended


def _delay(low: Floats, high: Floats) -> tuple[float, float]:
    """The delay, 0 or more, with the least mean miss, of the bounds themselves and some between."""
    ends = np.concatenate([low[np.isfinite(low)], high, [0.0]])
    tried = np.unique(np.quantile(ends[ends >= 0], np.linspace(0, 1, 200)))
    miss = np.minimum(np.maximum(low[:, None] - tried, 0) + np.maximum(tried - high[:, None], 0), CAP_S).mean(axis=0)
    near = tried[miss <= miss.min() + 1e-6]
    return float(near.mean()), float(miss.min())
