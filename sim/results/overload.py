"""When a run says less than it seems to: overload, rejections, preemptions, a host for free, steps nobody measured."""

from __future__ import annotations

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import FINISHED, REFUSED, REJECTED, UNFINISHED, RunRecord
from simbatch.sim.results.columns import let_in
from simbatch.sim.results.curves import computed_tokens, used_blocks, waiting
from simbatch.sim.results.facts import RunFacts
from simbatch.sim.results.metrics import duration_ps
from simbatch.sim.results.step_function import Curve
from simbatch.sim.statistics.drift import NUM_PERIODS, keeps_growing

MIN_BACKLOG = 10
MIN_BACKLOG_SHARE = 0.05
GROWTH = 1.25  # a queue that grows linearly has a mean 7/5 as long in its last quarter as in the third
MIN_SHARE_IN_RANGE = 0.99
MIN_PREEMPTIONS = 300  # in all, and a request: fewer cost little, and come and go with the seed
MIN_PREEMPTIONS_PER_REQUEST = 0.1
FULL = 0.99  # of the KV cache
MAX_REQUESTS_PER_S = 1000  # one process that takes HTTP, tokenises and streams: about 1 ms a request
MIN_HOSTED = 100  # requests: fewer at once are over before a host could fall behind


def warnings_of(record: RunRecord, facts: RunFacts) -> list[str]:
    """Plain sentences, the gravest first."""
    status = record.requests.status
    num_rejected, num_refused, num_unfinished = (int((status == s).sum()) for s in (REJECTED, REFUSED, UNFINISHED))
    warnings = []
    if is_overloaded(record):
        warnings.append(_overload_text(record))
    if num_unfinished:
        warnings.append(f"{num_unfinished:,} of {len(status):,} requests never finished: the engine was stuck.")
    if num_rejected:
        warnings.append(f"{num_rejected:,} of {len(status):,} requests were rejected; see the reasons.")
    if num_refused:
        warnings.append(
            f"{num_refused:,} of {len(status):,} requests were refused by the front end (503); see the reasons."
        )
    if _is_thrashing(record):
        warnings.append(_preemption_text(record))
    if facts.has_free_host and _requests_per_s(record) > MAX_REQUESTS_PER_S:
        warnings.append(
            f"{_requests_per_s(record):,.0f} requests a second were served, and this profile has no times of the host "
            f"(HTTP, tokenising, scheduling): one front end serves some {MAX_REQUESTS_PER_S:,}. These figures are the "
            "GPU's, and no single server would reach them."
        )
    if record.num_truncated:
        cut = f"{record.num_truncated:,} of {len(status):,} requests"
        warnings.append(f"{cut} had their output cut, as vLLM does where prompt and output reach max_model_len.")
    share = facts.share_in_range
    if share is not None and share < MIN_SHARE_IN_RANGE:
        outside = f"{100 * (1 - share):.1f} % of the steps are outside what the profile measured"
        warnings.append(f"{outside}: their times are extrapolated.")
    if facts.profile_is_estimate:
        warnings.append("The profile is an estimate: nobody measured this model on this GPU.")
    if facts.without_effect:
        keys = ", ".join(f"engine.{key}" for key in facts.without_effect)
        lacking = "the profile has no `host` or `front_end` section that says what it costs"
        warnings.append(f"Without effect: {keys}; {lacking}.")
    return [*warnings, *facts.profile_caveats]


def _is_thrashing(record: RunRecord) -> bool:
    """Whether preemptions are many, and many a request."""
    least = max(MIN_PREEMPTIONS, MIN_PREEMPTIONS_PER_REQUEST * len(record.requests))
    return record.num_preemptions >= least


def _preemption_text(record: RunRecord) -> str:
    """How many, what they cost, and what to do."""
    count, share = record.num_preemptions, record.num_recomputed_tokens / max(1, computed_tokens(record))
    is_full = used_blocks(record).max >= FULL * record.num_usable_blocks
    mend = (
        "Lower engine.max_num_seqs, or give it more KV blocks." if is_full else "It is the policy that preempts them."
    )
    return (
        f"Requests lost their KV blocks {count:,} times, {count / len(record.requests):.2g} times each on average, and "
        f"{100 * share:.1f} % of all tokens were computed again. {mend}"
    )


def _requests_per_s(record: RunRecord) -> float:
    """Served from the first second to the last; 0 for a handful."""
    num_done = int((record.requests.status == FINISHED).sum())
    return num_done / (duration_ps(record) / PS_PER_S) if num_done >= MIN_HOSTED else 0.0


def is_overloaded(record: RunRecord) -> bool:
    """Whether the queue kept growing for as long as requests arrived.

    When the last request arrives, at least 10 wait for their first step, and the queue grew in one of two ways. Fast:
    5 % of all wait, and in the last quarter of the arrivals the queue was on average at least 1.25 times as long as in
    any earlier quarter. Or slowly and all the time (a long run a little above what the system can do): of its means
    over 20 equal periods, the growth from one to the next is above zero on average, beyond doubt (1 %, t test).
    """
    arrivals = record.requests.arrival_ps[let_in(record.requests)]
    if len(arrivals) < MIN_BACKLOG:
        return False
    begin, end = int(arrivals.min()), int(arrivals.max())
    if end - begin < 4:
        return False
    queue = waiting(record)
    backlog = _at(queue, end)
    if backlog < MIN_BACKLOG:
        return False
    if backlog >= MIN_BACKLOG_SHARE * len(arrivals):
        *earlier, last = queue.mean_per_bin(np.linspace(begin, end, 5).astype(np.int64)).tolist()
        if last >= GROWTH * max(earlier):
            return True
    if end - begin <= NUM_PERIODS:
        return False
    return keeps_growing(queue.mean_per_bin(np.linspace(begin, end, NUM_PERIODS + 1).astype(np.int64)))


def _at(curve: Curve, moment: int) -> int:
    position = int(np.searchsorted(curve.times, moment, side="right"))
    return int(curve.values[position - 1]) if position else 0


def _overload_text(record: RunRecord) -> str:
    """How fast requests came and went, while they came."""
    requests = record.requests
    accepted = requests.arrival_ps[let_in(requests)]
    begin, end = int(accepted.min()), int(accepted.max())
    period_s = (end - begin) / PS_PER_S
    finish = requests.finish_ps[requests.status == FINISHED]
    left = int(((finish >= begin) & (finish <= end)).sum())
    return (
        f"Overloaded: the queue kept growing. Requests arrived at {(len(accepted) - 1) / period_s:.2f}/s and left at "
        f"{left / period_s:.2f}/s, and {_at(waiting(record), end):,} were waiting when the last one arrived. "
        "Latencies say how long the run was, not what this system can do: lower the rate."
    )
