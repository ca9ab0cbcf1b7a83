"""One real run, in the form that a simulation has: the same metrics, curves and pictures serve both.

Where a recorder was in its server: when requests were taken in, and which steps were done. What is compared of runs
beside a simulation's: the steps of the real engine (`step_figures`) and the turns of sessions (`turn_figures`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records.lines import RecordedRequest, RecordedStep, durations_s
from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.cost.host import WindowCost
from simbatch.sim.cost.model import CostModel, Features, step_ps, sums_of
from simbatch.sim.engine.record import NEVER_PS, SEGMENT_DTYPE, RequestColumns, RunRecord
from simbatch.sim.metrics.columns import RunFacts
from simbatch.sim.metrics.registry import Metric
from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.turns import Turns

if TYPE_CHECKING:
    from simbatch.sim.report.result import Result

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RealRun:
    """A real run or a simulated one; `taken_in_ps` is when the engine took each request in, None where nobody says.

    Times count from the moment at which the client starts.
    """

    record: RunRecord
    facts: RunFacts
    taken_in_ps: Ints | None
    itl_s: list[list[float]] | None = None  # per request, between its tokens
    admission_s: Sequence[float] = ()  # what taking each request in took on the host
    untold: Mapping[str, str] = field(default_factory=dict)  # figures that its record does not tell, and why
    lines: Sequence[RecordedStep | RecordedRequest] = ()  # what a recorder in its server wrote

    @cached_property
    def result(self) -> Result:
        """Its figures as a client counts them, from the send of a request on."""
        from simbatch.sim.report.result import Result

        return Result(self.record, self.facts)

    def value(self, metric: Metric) -> float | None:
        """One figure; None where it was not measured or is not told."""
        return None if any(name in metric.key for name in self.untold) else metric.of(self.result.summary)

    @property
    def has_gaps(self) -> bool:
        """Whether the gaps between tokens are known."""
        return len(self.record.gaps) > 0

    @property
    def has_queue(self) -> bool:
        """Whether it is known when requests began to run."""
        return bool((self.record.requests.scheduled_ps >= 0).any())

    @property
    def has_steps(self) -> bool:
        """Whether the engine's steps are known."""
        return len(self.record.segments) > 0

    @cached_property
    def by_engine(self) -> Result | None:
        """Its figures as the engine counts them, from when it took a request in."""
        from simbatch.sim.report.result import Result

        if self.taken_in_ps is None:
            return None
        requests = replace(
            self.record.requests, arrival_ps=self.taken_in_ps, client_first_token_ps=None, client_finish_ps=None
        )
        return Result(replace(self.record, requests=requests, client_overhead_ps=0), self.facts)


@dataclass(frozen=True)
class ToldRun:
    """A real run of which the totals alone are known, by the keys of `vllm bench serve`."""

    totals: Mapping[str, float]
    untold: Mapping[str, str] = field(default_factory=dict)
    by_engine: None = None
    has_queue = has_steps = False

    def value(self, metric: Metric) -> float | None:
        """One figure; None where it is not among the totals."""
        return None if any(name in metric.key for name in self.untold) else self.totals.get(metric.key)

    @property
    def has_gaps(self) -> bool:
        """Whether the totals have gaps between tokens."""
        return any(key.endswith("_itl_ms") for key in self.totals)


AnyRun = RealRun | ToldRun


def simulated_run(result: Result) -> RealRun:
    """A simulation that kept its steps: a request is taken in when the step in progress ends, or at once when idle.

    With host times the simulation says when.
    """
    requests, steps = result.record.requests, result.record.steps or []
    arrival_ps, queued_ps = requests.arrival_ps, requests.queued_ps
    if queued_ps is not None:
        return RealRun(result.record, result.facts, np.where(queued_ps < 0, arrival_ps, queued_ps))
    starts = np.array([step.start_ps for step in steps], dtype=np.int64)
    ends = np.array([step.end_ps for step in steps], dtype=np.int64)
    following = np.searchsorted(ends, arrival_ps)
    inside = np.minimum(following, max(len(ends) - 1, 0))
    is_busy = (following < len(ends)) & (starts[inside] < arrival_ps) if len(ends) else np.zeros(len(arrival_ps), bool)
    taken_in_ps = np.where(is_busy, ends[inside], arrival_ps) if len(ends) else arrival_ps
    return RealRun(result.record, result.facts, taken_in_ps)


NAME = re.compile(r"\bsb-(\d+)\b")  # of a request: what the client called it, inside of vLLM's own id
Lines = Sequence[RecordedStep | RecordedRequest]


def name_of(index: int) -> str:
    """What a request is called on its way through the server."""
    return f"sb-{index}"


def with_steps(run: RealRun, lines: Lines, indices: Sequence[int], origin_s: float) -> RealRun:
    """The run with a recorder's steps; `indices` name its requests, `origin_s` is time 0 on the recorder's clock."""
    taken_in = {
        int(found[1]): line
        for line in lines
        if isinstance(line, RecordedRequest) and (found := NAME.search(line.request_id))
    }
    took_s = [line.end_s - line.begin_s for line in taken_in.values()]
    at_ps = [_ps(taken_in[i].end_s - origin_s) if i in taken_in else NEVER_PS for i in indices]
    steps = [line for line in lines if isinstance(line, RecordedStep)]
    record = replace(
        run.record,
        segments=_segments(lines, origin_s),
        num_preemptions=sum(step.num_preempted for step in steps),
        requests=replace(run.record.requests, queued_ps=np.array(at_ps, dtype=np.int64)),
    )
    return replace(run, record=record, taken_in_ps=record.requests.queued_ps, lines=lines, admission_s=took_s)


def features(step: RecordedStep, windows: WindowCost | None = None) -> Features:
    """What a step computed; decodes are taken to have as much context each, where windows ask."""
    prefills = ((tokens, computed, False) for computed, tokens in step.prefills)
    in_window = 0 if windows is None else windows.alike(step.num_decodes, step.context_tokens)
    return Features(*sums_of(prefills, step.num_decodes, step.context_tokens, windows, in_window))


def _segments(lines: Lines, origin_s: float) -> NDArray[Any]:
    """Steps as segments of a `RunRecord`; all gaps between tokens are kept one by one, so none is regular."""
    rows = []
    for step, took_s in durations_s(lines):
        counts = features(step)
        computed = (counts.num_decodes, 0, counts.decode_context, counts.prefill_tokens, counts.num_prefills)
        after = (counts.prefill_attention, step.num_running, step.num_waiting, max(0, step.num_free_blocks))
        rows.append((_ps(step.done_s - took_s - origin_s), 1, _ps(took_s), 0, 0, 0, *computed, *after))
    return np.array(rows, dtype=SEGMENT_DTYPE)


def _ps(time_s: float) -> int:
    return round(time_s * PS_PER_S)


def seen_outside(
    requests: RequestColumns, gaps_s: Iterable[NDArray[np.float64]], config: EngineConfig, turns: Turns | None = None
) -> RunRecord:
    """A run of such an engine of which only requests and the gaps between their tokens (s) are known, and no steps."""
    return RunRecord(
        requests=requests,
        segments=np.zeros(0, dtype=SEGMENT_DTYPE),
        gaps=np.round(np.concatenate([np.zeros(0), *gaps_s]) * PS_PER_S).astype(np.int64),
        num_preemptions=0,
        end_ps=int(requests.finish_ps.max(initial=0)),
        num_gpu_blocks=config.num_gpu_blocks,
        block_size=config.block_size,
        client_overhead_ps=0,
        event_loop_cpu_s=0.0,
        turns=turns,
    )


def step_figures(runs: Sequence[RealRun], cost: CostModel) -> list[dict[str, Any]]:
    """Per regime: how many steps, what they took on average and what the profile says of them, ms."""
    found: dict[str, list[tuple[float, int]]] = {"decode-only": [], "with prefills": []}
    for run in runs:
        for step, took_s in durations_s(run.lines):
            pair = took_s * PS_PER_S, step_ps(cost, features(step, cost.windows))
            found["with prefills" if step.prefills else "decode-only"].append(pair)
    return [_regime(regime, np.array(pairs, dtype=np.float64)) for regime, pairs in found.items() if pairs]


def _regime(regime: str, pairs: NDArray[np.float64]) -> dict[str, Any]:
    real_ms, profile_ms = pairs.mean(axis=0) / PS_PER_MS
    figures = {"real_ms": float(real_ms), "profile_ms": float(profile_ms), "error": float(profile_ms / real_ms - 1)}
    return {"regime": regime, "num_steps": len(pairs), **figures}


def turn_figures(real: Sequence[RealRun], simulated: RealRun) -> list[dict[str, Any]]:
    """A row a turn of sessions (0: the first): the mean TTFT, ms, and the share of prompts from the prefix cache.

    Each is the median of the `real` runs beside the `simulated` one; None where nothing was measured. No rows without
    sessions, or where a real run's requests are not known.
    """
    own, theirs = SessionFigures.of(simulated.record), [SessionFigures.of(run.record) for run in real]
    known = [figures for figures in theirs if figures is not None]
    if own is None or not known or len(known) < len(theirs):
        return []
    tells = any(run.record.requests.num_cached_tokens.any() for run in real)
    every = [{row["turn"]: row for row in figures.by_turn()} for figures in known]
    rows = []
    for row in own.by_turn():
        beside = [by_turn[row["turn"]] for by_turn in every if row["turn"] in by_turn]
        both = {
            key: {"real": _median([each[key] for each in beside]), "simulated": row[key]}
            for key in ("mean_ttft_ms", "cached_tokens_share")
        }
        if not tells:
            both["cached_tokens_share"]["real"] = None
        rows.append({name: row[name] for name in ("turn", "last_turn", "num_requests")} | both)
    return rows


def _median(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None
