"""Reports of kubernetes-sigs/inference-perf: a stage's totals, a whole run's, and its requests one by one.

Read: inference_perf/reportgen/base.py and apis/base.py of v0.2.0 and @ 7de5ef2e after v0.6.1, and the demos' results
@ 305ea4b4. Times are in s. The requests' report does not say which stage a request was of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, Lenient, checked, count_of, number_at
from simbatch.sim.workload.bench.run import (
    BenchRun,
    BenchTotals,
    Load,
    Time,
    Tokens,
    gaps_told,
    objects,
    rate_of,
    untold_of,
)

INFERENCE_PERF = "inference-perf"
NO_FIRST = "the report has no times of tokens: the responses were not streamed"
NO_ITL = "inference-perf gives the tokens of one chunk one time, so most of its gaps are 0"
BEHIND = 0.95  # of the rate asked for: below it the client itself held requests back
_LATENCIES = {"ttft": "time_to_first_token", "tpot": "time_per_output_token", "e2el": "request_latency"}
_STATISTICS = {"mean": "mean", "median": "median", "p90": "p90", "p95": "p95", "p99": "p99"}


class _Response(Lenient):
    output_tokens: Tokens | None = None
    output_token_times: list[Time] | None = None
    server_usage: dict[str, Any] | None = None


class _Info(Lenient):
    input_tokens: Tokens
    output_tokens: Tokens | None = None  # to v0.5 here, later in response_metrics
    output_token_times: list[Time] | None = None
    response_metrics: _Response | None = None

    def outputs(self) -> tuple[int, list[float]]:
        """How many tokens came, by the server where it says so, and when."""
        response = self.response_metrics or _Response()
        told = (response.server_usage or {}).get("completion_tokens")
        tokens = told if type(told) is int else response.output_tokens or self.output_tokens or 0
        return tokens, response.output_token_times or self.output_token_times or []


class _Request(Lenient):
    start_time: Time
    end_time: Time
    info: _Info | None = None
    error: Any = None


def is_stage(value: Any) -> bool:
    """Whether it is a stage_N or summary_lifecycle_metrics.json."""
    return isinstance(value, dict) and {"load_summary", "successes"} <= value.keys()


def are_requests(value: Any) -> bool:
    """Whether it is a per_request_lifecycle_metrics.json."""
    keys = {"start_time", "end_time", "info"}
    return (
        isinstance(value, list) and bool(value) and all(isinstance(row, dict) and keys <= row.keys() for row in value)
    )


def read_requests(document: JsonValue) -> BenchRun:
    """A run with its requests, all stages together; UserError for what is malformed in them."""
    place = document.place
    rows: list[_Request] = [checked(_Request, row, f"{place} [{i}]") for i, row in enumerate(document.value)]
    kept = [row for row in rows if row.error is None and row.info is not None]
    if not kept:
        raise UserError(Problem(place, "none of its requests ended well", len(rows)))
    outputs = [row.info.outputs() for row in kept if row.info is not None]
    times = [t for _, t in outputs]
    tokens = np.array([n for n, _ in outputs], dtype=np.int64)
    has_times = all(times)
    # to the last token, as vLLM counts; the response ends a little later
    last = np.array([t[-1] if has_times else row.end_time for row, t in zip(kept, times, strict=True)])
    sent = np.array([row.start_time for row in kept])
    gaps = objects([np.diff(t) for t in times]) if has_times else None
    why = NO_FIRST if gaps is None else gaps_told(gaps, tokens) or (NO_ITL if _in_chunks(gaps) else "")
    failed = len(rows) - len(kept)
    return BenchRun(
        tool=INFERENCE_PERF,
        place=place,
        load=Load(),
        num_prompt_tokens=np.array([row.info.input_tokens for row in kept if row.info is not None], dtype=np.int64),
        num_output_tokens=tokens,
        error=objects(["" if n else "no tokens" for n in tokens]),
        e2el_s=last - sent,
        ttft_s=np.array([t[0] for t in times]) - sent if has_times else None,
        sent_s=sent,
        gaps_s=gaps,
        untold=untold_of(why, "" if has_times else NO_FIRST),
        notes=(f"{failed:,} of {len(rows):,} requests failed in the recorded run: left out",) if failed else (),
    )


def _in_chunks(gaps: Any) -> bool:
    """Whether many tokens share their chunk's time."""
    pooled = np.concatenate([np.zeros(0), *gaps])
    return len(pooled) > 0 and float((pooled == 0).mean()) > 0.02


def read_stage(document: JsonValue) -> BenchTotals:
    """A stage's totals, at the rate that its client really sent."""
    value, place = document.value, document.place
    load, notes = _load(value["load_summary"])
    ended = value["successes"] if isinstance(value["successes"], dict) else {}
    totals = {}
    for name, metric in _LATENCIES.items():
        for statistic, theirs in _STATISTICS.items():
            if (number := number_at(ended, "latency", metric, theirs)) is not None:
                totals[f"{statistic}_{name}_ms"] = 1000 * number
    for key, theirs in (("request_throughput", "requests_per_sec"), ("output_throughput", "output_tokens_per_sec")):
        if (number := number_at(ended, "throughput", theirs)) is not None:
            totals[key] = number
    if not any(key.endswith("_ms") for key in totals):
        raise UserError(Problem(place, "has no latency of a request that ended well"))
    count = ended.get("count")
    prompt, output = (
        next((found for key in keys if (found := number_at(ended, key, "mean")) is not None), None)
        for keys in (("prompt_len", "prompt_tokens"), ("output_len", "output_tokens"))
    )
    untold = {"itl": NO_ITL} | {name: NO_FIRST for name in ("ttft", "tpot") if f"mean_{name}_ms" not in totals}
    failed = number_at(value, "failures", "count")
    notes += [f"{int(failed):,} requests failed in it"] if failed else []
    return BenchTotals(
        INFERENCE_PERF,
        place,
        load,
        totals,
        count if type(count) is int else None,
        prompt,
        output,
        untold=untold,
        notes=tuple(notes),
    )


def _load(summary: Any) -> tuple[Load, list[str]]:
    if not isinstance(summary, dict):
        return Load(), []
    if limit := count_of(summary.get("concurrency")):
        return Load(np.inf, max_concurrency=limit), []
    asked, achieved = rate_of(summary.get("requested_rate")), rate_of(summary.get("achieved_rate"))
    if asked and achieved and achieved < BEHIND * asked:
        note = f"its client was to send {asked:.3g} requests a second and sent {achieved:.3g}: simulated at these"
        return Load(achieved), [note]
    return Load(asked), []
