"""The figures of one run, each computed when it is asked for: those of `vllm bench serve`, and ours of the engine.

A `Metric` is one figure of a summary: what it is called, how it is read, how it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.engine.record import FINISHED, RunRecord
from simbatch.sim.metrics import curves
from simbatch.sim.metrics.columns import RunFacts, let_in
from simbatch.sim.metrics.curves import output_tokens_per_second
from simbatch.sim.metrics.groups import mean_or_none, normalised_latencies_ms
from simbatch.sim.metrics.latencies import (
    Bools,
    Number,
    describe,
    duration_ps,
    latencies_ms,
    ratio,
    within_slo,
)
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.text import number, percent, plus_minus


class RunFigures:
    """What the metrics of the registry ask of a run; shares are of 1, None where nothing was measured.

    `gaps` gives the statistics of inter-token latency, which are found beside the others.
    """

    def __init__(self, record: RunRecord, facts: RunFacts, gaps: Callable[[], dict[str, Number]]) -> None:
        self.record, self.facts, self._gaps = record, facts, gaps

    @cached_property
    def done(self) -> Bools:
        """Who finished."""
        done: Bools = self.record.requests.status == FINISHED
        return done

    @cached_property
    def sessions(self) -> SessionFigures | None:
        """What sessions felt; None where requests are not turns of sessions."""
        return SessionFigures.of(self.record)

    @cached_property
    def duration_ps(self) -> int:
        """From 0 to the last response."""
        return duration_ps(self.record)

    def duration_s(self) -> float:
        """From 0 to the last response, in seconds."""
        return self.duration_ps / PS_PER_S

    def num_completed(self) -> int:
        """Requests that finished."""
        return int(self.done.sum())

    def num_failed(self) -> int:
        """Requests that did not: rejected, refused, unfinished."""
        return int((~self.done).sum())

    def num_input_tokens(self) -> int:
        """Prompt tokens of the finished requests."""
        return int(self.record.requests.num_prompt_tokens[self.done].sum())

    def num_output_tokens(self) -> int:
        """Output tokens of the finished requests."""
        return int(self.record.requests.num_output_tokens[self.done].sum())

    def request_throughput(self) -> float | None:
        """Finished requests per second."""
        return ratio(self.num_completed(), self.duration_s())

    def request_goodput(self) -> float | None:
        """Requests within every limit per second; None without an SLO."""
        slo = self.facts.slo
        return ratio(int(within_slo(self.record, slo).sum()), self.duration_s()) if slo.limits() else None

    def session_goodput(self) -> float | None:
        """Sessions within every limit on sessions per second; None without sessions, or without such a limit."""
        limits = self.facts.slo.session_limits()
        return ratio(self.sessions.num_within(limits), self.duration_s()) if self.sessions and limits else None

    def session_slo_share(self) -> dict[str, Number]:
        """Of all sessions, those within all limits and within each; empty without sessions, or without such a limit."""
        limits = self.facts.slo.session_limits()
        if self.sessions is None or not limits:
            return {}
        asked = {"all": limits, **{name: {name: limit} for name, limit in limits.items()}}
        total = self.sessions.num_sessions()
        return {name: ratio(self.sessions.num_within(each), total) for name, each in asked.items()}

    def output_throughput(self) -> float | None:
        """Output tokens per second."""
        return ratio(self.num_output_tokens(), self.duration_s())

    def total_token_throughput(self) -> float | None:
        """Prompt and output tokens per second."""
        return ratio(self.num_input_tokens() + self.num_output_tokens(), self.duration_s())

    def max_output_tokens_per_s(self) -> float:
        """The most in one second of the clock, but for tokens that end a recomputation: their time is nowhere."""
        return float(output_tokens_per_second(self.record).max(initial=0.0))

    def max_concurrent_requests(self) -> int:
        """The most in the system at once."""
        return curves.concurrency(self.record).max

    def latencies(self, name: str) -> dict[str, Number]:
        """Mean, median, deviation and percentiles (ms) of `ttft`, `tpot`, `itl` or `e2el`."""
        return self._latencies[name]

    def mean_normalised_latency_ms(self) -> float | None:
        """Of the finished requests, E2EL per output token."""
        return mean_or_none(normalised_latencies_ms(self.record))

    def mean_waiting(self) -> float | None:
        """Requests that arrived and were not yet scheduled for the first time, over time (Little's law)."""
        requests = self.record.requests
        waits = let_in(requests)
        never = waits & (requests.scheduled_ps < 0)
        never_ps = np.maximum(self.record.end_ps - requests.arrival_ps[never], 0)
        total_s = (self._wait_ps / PS_PER_S).sum() + (never_ps / PS_PER_S).sum()
        return ratio(float(total_s), self.duration_s())

    def max_waiting(self) -> int:
        """The most of them at once."""
        return curves.waiting(self.record).max

    def waits(self) -> dict[str, Number]:
        """Mean, median, deviation and percentiles (ms) of the time from arrival to the first step."""
        return self._waits

    def mean_batch(self) -> float | None:
        """Requests per step, decodes and prefills together; over steps."""
        return ratio(curves.totals(self.record).num_requests, self.record.num_steps)

    def max_batch(self) -> int:
        """The most in a step."""
        return curves.totals(self.record).max_requests

    def mean_kv_use(self) -> float | None:
        """Share of the usable blocks that is taken, over time."""
        return ratio(curves.mean_used_blocks(self.record, self.duration_ps), self.record.num_usable_blocks)

    def peak_kv_use(self) -> float | None:
        """The most of it."""
        return ratio(curves.used_blocks(self.record).max, self.record.num_usable_blocks)

    def num_preemptions(self) -> int:
        """How often a request lost its blocks."""
        return self.record.num_preemptions

    def num_recomputed_tokens(self) -> int:
        """What preemptions cost: tokens computed again."""
        return self.record.num_recomputed_tokens

    def recomputed_tokens_share(self) -> float | None:
        """Their share of all tokens computed."""
        return ratio(self.record.num_recomputed_tokens, curves.totals(self.record).num_tokens)

    def mean_concurrent_requests(self) -> float | None:
        """Requests in the system on average, over time: the finished ones, from send to response."""
        return ratio(float(self._spans["e2el"].sum()), self.duration_ps / PS_PER_MS)

    def num_steps(self) -> int:
        """Steps of the engine."""
        return self.record.num_steps

    def device_busy_share(self) -> float | None:
        """Share of `duration` in which the device worked; of a cluster, the mean of its devices."""
        return ratio(curves.busy_ps(self.record), self.duration_ps * self.record.num_replicas)

    def cached_tokens_share(self) -> float | None:
        """Prompt tokens found in the prefix cache when first scheduled, of all prompt tokens scheduled."""
        requests = self.record.requests
        # a client knows of a first token alone
        started = (requests.scheduled_ps >= 0) | (requests.first_token_ps >= 0)
        cached = int(requests.num_cached_tokens[started].sum())
        return ratio(cached, int(requests.num_prompt_tokens[started].sum()))

    @cached_property
    def _spans(self) -> dict[str, NDArray[np.float64]]:
        return latencies_ms(self.record, self.done)

    @cached_property
    def _latencies(self) -> dict[str, dict[str, Number]]:
        return {name: describe(values) for name, values in self._spans.items()} | {"itl": self._gaps()}

    @cached_property
    def _wait_ps(self) -> NDArray[np.int64]:
        requests = self.record.requests
        started = let_in(requests) & (requests.scheduled_ps >= 0)
        return requests.scheduled_ps[started] - requests.arrival_ps[started]

    @cached_property
    def _waits(self) -> dict[str, Number]:
        return describe(self._wait_ps / PS_PER_MS)


LOWER, HIGHER, STEADY = "lower", "higher", "simbatch.steady_state"


@dataclass(frozen=True)
class Metric:
    """One figure of a summary; `kind` is number, share, count, ms, or index (of fairness, 0 to 1).

    `better` is None where neither end is; `goal` is the end that a search makes for, which may be there all the same.
    `heading` is the label where a column is narrow.
    """

    key: str  # as in summary.json, dots between the levels
    label: str
    better: str | None = None
    kind: str = "number"
    compute: Callable[[RunFigures], Number] | None = None
    is_compared: bool = False
    is_reported: bool = False
    heading: str = ""
    goal: str | None = None
    path: tuple[str, ...] = ()  # the levels one by one, where names in them may have dots

    @property
    def decimals(self) -> int:
        """Shown behind the point."""
        return {"count": 0, "ms": 1, "index": 3}.get(self.kind, 2)

    @property
    def is_share(self) -> bool:
        """Shown in percent."""
        return self.kind == "share"

    @property
    def scale(self) -> int:
        """Times which it is drawn: shares as percents."""
        return 100 if self.is_share else 1

    @property
    def unit(self) -> str:
        """What an axis of it is called, for `scale` times the figure."""
        return f"{self.title} (%)" if self.is_share else self.label

    @property
    def bounds(self) -> tuple[float, float]:
        """What values it can have: shares and Jain's index 0 to 1; times, counts and rates are not below 0."""
        return 0.0, 1.0 if self.kind in ("share", "index") else inf

    def text(self, value: float | None, decimals: int = 0) -> str:
        """As people read it, with so many decimals at least: `97.35 %`, `1,204.5`, `-` for what was not measured."""
        return percent(value) if self.is_share else number(value, max(self.decimals, decimals))

    def text_with(self, mean: float | None, low: float | None, high: float | None, decimals: int = 0) -> str:
        """A mean and its interval, `215.1 ± 9.8`; the mean alone where there is none."""
        text = self.text(mean, decimals)
        if mean is None or low is None or high is None:
            return text
        return f"{text} {plus_minus(mean, low, high, max(self.decimals, decimals), self.scale)}"

    def named(self) -> dict[str, str | None]:
        """What compare.json says of it."""
        return {"key": self.key, "label": self.label, "better": self.better}

    @property
    def title(self) -> str:
        """For a picture, whose axis has the unit of a time."""
        return self.label.removesuffix(" (ms)")

    @property
    def aim(self) -> str | None:
        """Which end a search makes for; None where the figure cannot be searched for."""
        return self.goal or self.better

    @property
    def is_steady(self) -> bool:
        """A claim about the steady state rather than a figure of the run."""
        return self.key.startswith(STEADY)

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """The figure in a summary; None when it has none."""
        value = value_at(summary, *(self.path or (self.key,)))
        return None if value is None else float(value) if isinstance(value, float) else int(value)


def value_at(summary: Mapping[str, Any], *path: str) -> Any:
    """What stands in a summary below these names; of a single one the dots are levels. None where there is nothing."""
    value: Any = summary
    for part in path if len(path) > 1 else path[0].split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
