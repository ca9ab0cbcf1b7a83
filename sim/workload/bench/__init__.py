"""What the clients of benchmarks write down: which client wrote a file, the runs in it, and when requests were sent.

A client with a limit on requests in flight sends one when another one ends, so how fast the server was decides when:
its simulation must let each request go when fewer are in flight there, not at the recorded time.

1. Times of sending stand in the file, or are made again: all at once, or vLLM's random gaps (numpy's seed 0, gamma,
   scaled to n / rate; in older versions not scaled, the first request at 0), each held back until a place is free.
2. Gaps drawn again must end when the file says that its run ended (`duration`), and the streams must keep step with one
   another under them; else they are refused.
3. Simulated are the times as planned: of a closed loop the first `max_concurrency` as recorded and the others as soon
   as a place is free; of a rate under a limit the gaps drawn again; else the recorded times.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, json_values
from simbatch.sim.workload.bench import aiperf, guidellm, inference_perf
from simbatch.sim.workload.bench.run import (
    BenchRun,
    BenchTotals,
    Floats,
    Ints,
    Load,
    is_vllm,
    keys_of,
    read_text,
    read_vllm,
)

RESULT_TOOLS = (
    "vllm bench serve",
    "SGLang's bench_serving",
    "GuideLLM's benchmarks.json",
    "aiperf's profile_export.jsonl",
    "inference-perf's lifecycle metrics",
)
Results = list[BenchRun | BenchTotals]

_READERS: tuple[tuple[Callable[[Any], bool], Callable[[JsonValue], Any]], ...] = (
    (guidellm.is_report, guidellm.read),
    (inference_perf.is_stage, inference_perf.read_stage),
    (inference_perf.are_requests, inference_perf.read_requests),
    (aiperf.is_summary, aiperf.read_summary),
    (is_vllm, read_vllm),  # last: others have keys of its names
)


def read_results(path: Path) -> Results:
    """The runs of a benchmark's result, in the file's order; UserError that says what is wrong with it."""
    return results_of(path, list(json_values(path, read_text(path))))


def results_of(path: Path, read: Sequence[JsonValue]) -> Results:
    """The runs in values that were read already, in their order."""
    if not read:
        raise UserError(Problem(str(path), "is empty", mend="name a benchmark's result"))
    if all(aiperf.is_record(document.value) for document in read):
        return [aiperf.read(path, read)]
    found: Results = []
    for document in read:
        for part in _parts(document):
            reader = next((reader for fits, reader in _READERS if fits(part.value)), None)
            if reader is None:
                raise UserError(unknown(part))
            runs = reader(part)
            found += runs if isinstance(runs, list) else [runs]
    return found


def is_result(read: Sequence[JsonValue]) -> bool:
    """Whether a known client wrote the first of these values."""
    first = read[0]
    return aiperf.is_record(first.value) or any(fits(part.value) for part in _parts(first) for fits, _ in _READERS)


def unknown(document: JsonValue) -> Problem:
    """What to say of a value that no known client wrote."""
    rule = f"is no benchmark's result that is known: it has {keys_of(document.value)}"
    return Problem(document.place, rule, mend=f"known are {', '.join(RESULT_TOOLS)}")


def _parts(document: JsonValue) -> list[JsonValue]:
    """A list of results is as good as a line each."""
    value = document.value
    if isinstance(value, list) and value and not inference_perf.are_requests(value):
        return [JsonValue(f"{document.place} [{i}]", part) for i, part in enumerate(value)]
    return [document]


def is_detailed(document: JsonValue) -> bool:
    """Whether a known client wrote it, with the requests and their latencies."""
    first = _parts(document)[0].value
    if isinstance(first, dict) and {"input_lens", "ttfts"} <= first.keys():
        return True
    return any(fits(first) for fits in (guidellm.is_report, aiperf.is_record, inference_perf.are_requests))


__all__ = ["RESULT_TOOLS", "BenchRun", "BenchTotals", "Load", "read_results"]


CLOSED = "a closed loop (max_concurrency): each request is sent when fewer are in flight, in the recorded run's order"
SEED = 0  # the default of `vllm bench serve --seed`
MAX_OFF_S, MAX_OFF = 0.05, 0.002  # a run made again may end so much off the file's duration: s, and share of it
IN_STEP = 0.8  # of the streams: under wrong times it is 0.03 to 0.11, under the right ones 0.99 to 1
MAX_LATE_S = 0.05  # and be sent so late, where the file says when it was
FOLLOWED = 0.95  # share of sends that follow an end at once: a closed loop
MAX_SOON_S, SOON = 0.05, 0.1  # that is at once: s, and share of a request's time
ROUNDED_S = 1e-3  # files round: a send may stand before the end that let it go
HELD = 0.01  # share of sends that follow an end at once: below it the limit held nothing back
MAX_FAILED = 0.02  # share of failed requests: how long each of them took a place is not known
MAX_PAUSED = 0.02  # of the duration, that a closed loop made again may end off it
OVER_TIME = ("duration", "throughput", "concurrent_requests")
LOOPS, MIN_LOOP = 2, 10  # as many times the places, and requests at least, to know a closed loop by its sends


@dataclass(frozen=True)
class Sending:
    """By request, in the file's order, s: `planned_s` None where the times of sending are the plan."""

    sent_s: Floats
    planned_s: Floats | None = None
    max_concurrency: int | None = None
    is_closed: bool = False
    notes: tuple[str, ...] = ()
    untold: Mapping[str, str] = field(default_factory=dict)  # figures that say nothing of such a run, and why


def sending_of(run: BenchRun, *, max_concurrency: int | None = None, is_closed: bool = False) -> Sending:
    """How the run was sent; `max_concurrency` and `is_closed` say what its user knows and the file does not.

    UserError where the times of sending are neither in the file nor can be made again.
    """
    load = run.load
    if load.max_concurrency is None and max_concurrency is not None:
        rate = np.inf if is_closed and load.request_rate is None else load.request_rate
        load = replace(load, max_concurrency=max_concurrency, request_rate=rate)
    return _rebuilt(run, load) if run.sent_s is None else _recorded(run, run.sent_s, load)


def _recorded(run: BenchRun, sent_s: Floats, load: Load) -> Sending:
    limit = load.max_concurrency
    if limit is None:
        limit = _places(sent_s, run.e2el_s)
        if limit is None or load.request_rate is not None:
            return Sending(sent_s)
        note = (
            f"the file does not say so, but every send followed an end, {limit:,} in flight: a closed loop, and "
            "simulated as one"
        )
        return Sending(sent_s, None, limit, is_closed=True, notes=(note,))
    followed = _followed(sent_s, run.e2el_s, limit)
    if load.request_rate == np.inf or (load.request_rate is None and followed >= FOLLOWED):
        return Sending(sent_s, None, limit, is_closed=True, notes=(CLOSED,))
    if followed <= HELD:
        return Sending(sent_s, None, limit)
    order: Ints = np.argsort(sent_s, kind="stable").astype(np.int64)
    for planned_s in _drawn(load, len(run)):
        made = _held(planned_s, run.e2el_s[order], limit)
        if np.percentile(np.abs(made - made[0] - (sent_s[order] - sent_s[order[0]])), 95) <= MAX_LATE_S:
            ordered = np.empty_like(planned_s)
            ordered[order] = planned_s + (sent_s[order[0]] - made[0])
            note = f"the gaps of {load} are drawn again as its client drew them, so nothing is held back twice"
            return Sending(sent_s, ordered, limit, notes=(note,))
    note = (
        f"its client held requests back ({load}), and when they would have come is not in the file: here none comes "
        "earlier than there, so a faster server does not show"
    )
    return Sending(sent_s, None, limit, notes=(note,))


def _followed(sent_s: Floats, e2el_s: Floats, limit: int) -> float:
    """The share of the sends beyond the first `limit` that came at once after an end, each after one of its own."""
    sent, ended = np.sort(sent_s)[limit:], np.sort(sent_s + e2el_s)[: max(0, len(sent_s) - limit)]
    if not len(sent):
        return 0.0
    soon_s = min(MAX_SOON_S, SOON * float(np.median(e2el_s)))
    return float(((sent - ended >= -ROUNDED_S) & (sent - ended <= soon_s)).mean())


def _places(sent_s: Floats, e2el_s: Floats) -> int | None:
    """How many places a closed loop has by its sends alone; None where it does not look like one."""
    begun = np.arange(1, len(sent_s) + 1)
    ended = np.searchsorted(np.sort(sent_s + e2el_s) - ROUNDED_S, np.sort(sent_s), side="right")
    limit = int((begun - ended).max(initial=0))
    if len(sent_s) < max(LOOPS * limit, MIN_LOOP):
        return None
    return limit if _followed(sent_s, e2el_s, limit) >= FOLLOWED else None


def _drawn(load: Load, n: int) -> Iterator[Floats]:
    """The plans that vLLM's client may have had with its default seed: the newer versions', and the older ones'."""
    rate, shape = load.request_rate, load.burstiness
    if load.gaps != "vllm" or rate is None or not np.isfinite(rate):
        return
    is_even = np.isinf(shape)
    gaps = np.full(n, 1 / rate) if is_even else np.random.RandomState(SEED).gamma(shape, 1 / (rate * shape), n)
    summed = np.cumsum(gaps)
    if not 0 < summed[-1] < np.inf:
        return
    yield summed * (n / rate / summed[-1])
    yield np.concatenate([[0.0], summed[:-1]])


def _held(planned_s: Floats, e2el_s: Floats, limit: int | None) -> Floats:
    """When each is sent if at most `limit` are in flight: first come, first served, as an asyncio semaphore."""
    if limit is None:
        return planned_s
    places = [0.0] * min(limit, len(planned_s))
    sent = np.empty_like(planned_s)
    for i, (planned, took) in enumerate(zip(planned_s.tolist(), e2el_s.tolist(), strict=True)):
        sent[i] = max(planned, places[0])
        heapq.heapreplace(places, float(sent[i]) + took)
    return sent


def _rebuilt(run: BenchRun, load: Load) -> Sending:
    place, limit, rate = run.place, load.max_concurrency, load.request_rate
    mend = "record it again with a client that writes start_times (vllm bench serve does)"
    missing = "does not say when its requests were sent"
    if rate is None:
        raise UserError(Problem(place, f"{missing}, nor at which rate", mend=mend))
    failed = float((run.error != "").mean())
    if limit is not None and failed > MAX_FAILED:
        rule = f"{missing}, and {failed:.0%} of them failed: how long each held its place is not known"
        raise UserError(Problem(place, rule, mend=mend))
    if rate == np.inf:
        sent = _held(np.zeros(len(run)), run.e2el_s, limit)
        note = f"the file does not say when requests were sent: by its load ({load}), each as soon as a place is free"
        paused = _paused(run, sent)
        untold = dict.fromkeys(OVER_TIME, paused) if paused else {}
        return Sending(sent, None, limit, is_closed=limit is not None, notes=(note,), untold=untold)
    if load.gaps is None:
        rule = f"{missing}, and its client's random gaps cannot be drawn again"
        raise UserError(Problem(place, rule, f"{rate:g} req/s", mend))
    return _drawn_again(run, load, missing, mend)


def _drawn_again(run: BenchRun, load: Load, missing: str, mend: str) -> Sending:
    duration = run.totals.get("duration")
    plans = [(planned, _held(planned, run.e2el_s, load.max_concurrency)) for planned in _drawn(load, len(run))]
    if duration is None or not plans:
        rule = f"{missing}, nor how long the run lasted, by which gaps drawn again could be checked"
        raise UserError(Problem(run.place, rule, mend=mend))
    off_s, planned, sent = min(
        ((abs(float((sent + run.e2el_s).max()) - duration), planned, sent) for planned, sent in plans),
        key=lambda p: p[0],
    )
    if off_s > MAX_OFF_S + MAX_OFF * duration:
        rule = (
            f"{missing}, and the gaps that `vllm bench serve` draws with its default seed end {off_s:.2f} s off its "
            f"duration of {duration:.2f} s: another seed, version or client"
        )
        raise UserError(Problem(run.place, rule, mend=mend))
    in_step = _in_step(run, sent)
    if in_step < IN_STEP:
        rule = (
            f"{missing}, and with the gaps that `vllm bench serve` draws with its default seed {in_step:.0%} of the "
            "streams keep step with the others: another seed, or a server whose steps cannot be told"
        )
        raise UserError(Problem(run.place, rule, mend=mend))
    note = (
        f"the file does not say when requests were sent: the gaps of {load} are drawn again with the client's default "
        f"seed; they end {1000 * off_s:.0f} ms off its duration, and {in_step:.0%} of the streams keep step under them"
    )
    return Sending(sent, planned, load.max_concurrency, notes=(note,))


def _in_step(run: BenchRun, sent_s: Floats) -> float:
    """The share of the requests whose tokens come with those of the others: hardly any under wrong times of sending."""
    from simbatch.sim.streams import Streams, rebuild_steps
    from simbatch.sim.streams.judge import judge

    if run.gaps_s is None or run.ttft_s is None:
        return 0.0
    got = np.flatnonzero((run.error == "") & (run.num_output_tokens > 0))
    columns = (run.num_prompt_tokens[got], run.num_output_tokens[got])
    return judge(rebuild_steps(Streams.of(sent_s[got], run.ttft_s[got], run.gaps_s[got], *columns))).share_regular


def _paused(run: BenchRun, sent_s: Floats) -> str:
    """Why what counts over time cannot be compared; empty where it can."""
    duration, end = run.totals.get("duration"), float((sent_s + run.e2el_s).max())
    if duration is None or abs(end - duration) <= MAX_OFF_S + MAX_PAUSED * duration:
        return ""
    return (
        f"by the latencies in the file it ends after {end:.2f} s, by its duration after {duration:.2f} s: its client "
        "paused in between, when is not known"
    )
