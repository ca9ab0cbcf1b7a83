"""GuideLLM's reports (benchmarks.json): several runs, each with its requests.

Read: vllm-project/guidellm v0.3.1 (benchmark/benchmark.py), v0.5.4 and @ ee7a7745 after v0.7.3
(schemas/request_stats.py, schemas/info.py, benchmark/schemas). A report has the first and the last token's time, not
those between.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, Lenient, checked, count_of, number_at
from simbatch.sim.workload.bench.run import BenchRun, Lasted, Load, Time, Tokens, objects, rate_of, untold_of

GUIDELLM = "GuideLLM"
NO_GAPS = "a GuideLLM report has the first and the last token of a request, not those between"
NO_FIRST = "the report has no time of the first token: the responses were not streamed"


class _Timings(Lenient):
    last_token_iteration: Time | None = None


class _Info(Lenient):
    timings: _Timings = _Timings()


class _Request(Lenient):
    prompt_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    request_start_time: Time | None = None
    start_time: Time | None = None  # to v0.3
    request_latency: Lasted | None = None
    time_to_first_token_ms: Lasted | None = None
    first_token_time: Time | None = None  # to v0.3
    last_token_time: Time | None = None  # to v0.3
    info: _Info = _Info()

    def times(self) -> tuple[float, float | None, float | None]:
        """Sent (s), TTFT (s), E2EL (s) to the last token, as vLLM counts it, else to the response's end."""
        sent = self.request_start_time if self.request_start_time is not None else self.start_time
        if sent is None:
            return np.nan, None, None
        ttft = None if self.time_to_first_token_ms is None else self.time_to_first_token_ms / 1000
        if ttft is None and self.first_token_time is not None:
            ttft = self.first_token_time - sent
        last = self.last_token_time if self.last_token_time is not None else self.info.timings.last_token_iteration
        return sent, ttft, self.request_latency if last is None else last - sent


def is_report(value: Any) -> bool:
    """Whether it is a report of any version."""
    runs = value.get("benchmarks") if isinstance(value, dict) else None
    return isinstance(runs, list) and all(isinstance(run, dict) and "requests" in run for run in runs) and bool(runs)


def read(document: JsonValue) -> list[BenchRun]:
    """Every run of a report; UserError for what is malformed in it."""
    runs = document.value["benchmarks"]
    places = [document.place if len(runs) == 1 else f"{document.place} benchmarks[{i}]" for i in range(len(runs))]
    return [_run(run, place) for run, place in zip(runs, places, strict=True)]


def _run(run: dict[str, Any], place: str) -> BenchRun:
    listed = {kind: _listed(run, kind, place) for kind in ("successful", "errored", "incomplete")}
    requests: list[_Request] = [
        checked(_Request, row, f"{place} requests.successful[{i}]") for i, row in enumerate(listed["successful"])
    ]
    _refuse_samples(run, len(requests), place)
    times = [request.times() for request in requests]
    whole = [
        bool(r.prompt_tokens is not None and r.output_tokens and e2el is not None)
        for r, (_, _, e2el) in zip(requests, times, strict=True)
    ]
    if not any(whole):
        rule = "none of its requests has a start, a latency and its numbers of tokens"
        raise UserError(Problem(place, rule, mend="run guidellm with a streaming backend that reports usage"))
    has_first = all(ttft is not None for (_, ttft, _), is_whole in zip(times, whole, strict=True) if is_whole)
    lost = [
        (len(requests) - sum(whole), "have no times or token counts in the report"),
        (len(listed["errored"]), "failed"),
    ]
    lost.append((len(listed["incomplete"]), "were cut off when the run's time was up"))
    kept = [(r, t) for r, t, is_whole in zip(requests, times, whole, strict=True) if is_whole]
    return BenchRun(
        tool=GUIDELLM,
        place=place,
        load=_load(run),
        num_prompt_tokens=np.array([r.prompt_tokens for r, _ in kept], dtype=np.int64),
        num_output_tokens=np.array([r.output_tokens for r, _ in kept], dtype=np.int64),
        error=objects([""] * len(kept)),
        e2el_s=np.array([t[2] for _, t in kept], dtype=np.float64),
        ttft_s=np.array([t[1] for _, t in kept], dtype=np.float64) if has_first else None,
        sent_s=np.array([t[0] for _, t in kept]),
        untold=untold_of(NO_GAPS, "" if has_first else NO_FIRST),
        notes=tuple(f"{n:,} requests {what}: left out on both sides" for n, what in lost if n),
    )


def _listed(run: dict[str, Any], kind: str, place: str) -> list[Any]:
    requests = run["requests"]
    rows = requests.get(kind) if isinstance(requests, dict) else None
    if rows is not None and not isinstance(rows, list):
        raise UserError(Problem(f"{place} requests.{kind}", "must be a list", rows))
    return rows or []


def _refuse_samples(run: dict[str, Any], listed: int, place: str) -> None:
    """A report may list a sample of the requests: the others loaded the server and are not known."""
    total = number_at(run, "request_totals", "successful") or number_at(run, "metrics", "request_totals", "successful")
    if total is not None and total > listed:
        rule = (
            f"lists {listed:,} of the {total:,.0f} requests that ended: the others loaded the server and are not known"
        )
        raise UserError(Problem(place, rule, mend="run guidellm without a sample size"))


def _load(run: dict[str, Any]) -> Load:
    settings = run.get("config") or run.get("args") or {}
    strategy = settings.get("strategy") if isinstance(settings, dict) else None
    if not isinstance(strategy, dict):
        return Load()
    kind, limit = strategy.get("type_"), strategy.get("max_concurrency")
    if kind == "synchronous":
        return Load(np.inf, max_concurrency=1)
    if kind == "concurrent":
        limit = strategy.get("streams")
    limit = count_of(limit)
    is_at_once = kind == "concurrent" or (kind == "throughput" and limit is not None)
    return Load(np.inf if is_at_once else rate_of(strategy.get("rate")), max_concurrency=limit)
