"""Run records for the tests of the results: who was in which step is said by hand, the record follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simbatch.sim.engine.record import (
    FINISHED,
    REFUSED,
    REJECTED,
    SEGMENT_DTYPE,
    TOKEN_DTYPE,
    UNFINISHED,
    RequestColumns,
    RunRecord,
    StepRow,
)
from simbatch.sim.metrics.columns import RunFacts
from simbatch.sim.report.result import Result
from simbatch.sim.scheduler.config import NEWEST

MS = 10**9  # ps
S = 10**12


@dataclass
class Toy:
    """A request that was in the given steps: a prefill in the first, one token at the end of each."""

    arrival_ps: int
    steps: list[int]
    num_prompt_tokens: int = 10
    priority: int = 0
    status: int = FINISHED
    num_cached_tokens: int = 0
    tenant: str | None = None
    queued_ps: int = -1  # in a run where host and front end take time


@dataclass
class Step:
    """A step on the device; where host and front end take time, also when its tokens exist (U) and leave (V)."""

    start_ps: int
    duration_ps: int
    updated_ps: int = -1
    sent_ps: int = -1

    @property
    def end_ps(self) -> int:
        return self.start_ps + self.duration_ps

    @property
    def tokens_ps(self) -> int:
        return self.end_ps if self.updated_ps < 0 else self.updated_ps

    @property
    def leaves_ps(self) -> int:
        return self.tokens_ps if self.sent_ps < 0 else self.sent_ps


def back_to_back(durations_ps: list[int], start_ps: int = 0) -> list[Step]:
    steps = []
    for duration in durations_ps:
        steps.append(Step(start_ps, duration))
        start_ps += duration
    return steps


def token_times(steps: list[Step], toy: Toy) -> list[int]:
    """When a request's tokens leave the server."""
    return [steps[k].leaves_ps for k in toy.steps]


def build(
    toys: list[Toy],
    steps: list[Step],
    *,
    merge: bool = True,
    client_overhead_ps: int = 0,
    num_gpu_blocks: int = 101,
    keep_steps: bool = False,
    **fields: Any,
) -> RunRecord:
    """The record of a run; with `merge`, decode-only steps in arithmetic progression are one segment."""
    rows: list[dict[str, int]] = []
    sent_rows: list[dict[str, int]] = []
    gaps: list[int] = []
    is_timed = any(step.updated_ps >= 0 for step in steps)
    for k in range(len(steps)):
        row = _row(toys, steps, k, gaps, num_gpu_blocks)
        sent = _sent_row(toys, steps, k)
        if merge and rows and _continues(rows[-1], row, is_timed):
            _extend(rows[-1], row)
            rows[-1]["free_blocks"] = row["free_blocks"]
        else:
            rows.append(row)
        if merge and sent_rows and _continues(sent_rows[-1], sent, False):
            _extend(sent_rows[-1], sent)
        else:
            sent_rows.append(sent)
    return RunRecord(
        requests=_columns(toys, steps, client_overhead_ps if is_timed else None),
        segments=np.array([tuple(row[name] for name in SEGMENT_DTYPE.names) for row in rows], dtype=SEGMENT_DTYPE),
        tokens=_token_rows(sent_rows) if is_timed else None,
        gaps=np.array(gaps, dtype=np.int64),
        num_preemptions=fields.pop("num_preemptions", 0),
        num_recomputed_tokens=fields.pop("num_recomputed_tokens", 0),
        end_ps=max((step.tokens_ps for step in steps), default=0),
        front_end_late_ps=fields.pop("front_end_late_ps", 0),
        num_gpu_blocks=num_gpu_blocks,
        block_size=16,
        client_overhead_ps=client_overhead_ps,
        event_loop_cpu_s=0.25,
        steps=[_step_row(toys, steps, k) for k in range(len(steps))] if keep_steps else None,
    )


def facts(**changes: Any) -> RunFacts:
    toy = {"scenario_name": "toy", "scenario": {}, "policy": "vllm", "profile": "inline"}
    return RunFacts(**{**toy, "engine": {"vllm_version": NEWEST}, **changes})


def _row(toys: list[Toy], steps: list[Step], k: int, gaps: list[int], num_gpu_blocks: int) -> dict[str, int]:
    inside = [toy for toy in toys if k in toy.steps]
    prefills = [toy for toy in inside if toy.steps[0] == k]
    num_regular = 0
    for toy in inside:
        if toy not in prefills:
            before = toy.steps[toy.steps.index(k) - 1]
            if _is_regular(steps, before, k):
                num_regular += 1
            else:
                gaps.append(steps[k].leaves_ps - steps[before].leaves_ps)
    tokens = sum(toy.num_prompt_tokens for toy in prefills)
    return {
        "start_ps": steps[k].start_ps,
        "num_steps": 1,
        "duration_ps": steps[k].duration_ps,
        "slope_ps": 0,
        "period_ps": 0,
        "period_slope_ps": 0,
        "num_decodes": len(inside) - len(prefills),
        "num_regular": num_regular,
        "decode_context": 0,
        "prefill_tokens": tokens,
        "num_prefills": len(prefills),
        "prefill_attention": tokens * tokens,
        "num_running": len(inside),
        "num_waiting": 0,
        "free_blocks": num_gpu_blocks - 1 - 10 * len(inside),
    }


def _is_regular(steps: list[Step], before: int, k: int) -> bool:
    """Whether a gap between tokens is that of step k: with times of their own, if its step follows the other."""
    return before == k - 1 if steps[k].updated_ps >= 0 else steps[before].end_ps == steps[k].start_ps


def _sent_row(toys: list[Toy], steps: list[Step], k: int) -> dict[str, int]:
    """When a step's tokens leave, counted from those of the step before."""
    before_ps = steps[k - 1].leaves_ps if k else 0
    decodes = [toy.steps[toy.steps.index(k) - 1] for toy in toys if k in toy.steps and toy.steps[0] != k]
    return {
        "start_ps": before_ps,
        "num_steps": 1,
        "duration_ps": steps[k].leaves_ps - before_ps,
        "slope_ps": 0,
        "num_decodes": len(decodes),
        "num_regular": sum(_is_regular(steps, before, k) for before in decodes),
        "num_prefills": sum(k in toy.steps for toy in toys) - len(decodes),
    }


def _token_rows(rows: list[dict[str, int]]) -> np.ndarray[Any, np.dtype[np.void]]:
    return np.array([tuple(row[name] for name in TOKEN_DTYPE.names) for row in rows], dtype=TOKEN_DTYPE)


def _continues(last: dict[str, int], row: dict[str, int], is_timed: bool) -> bool:
    n = last["num_steps"]
    end = last["start_ps"] + n * last["duration_ps"] + last["slope_ps"] * n * (n - 1) // 2
    if is_timed:  # a pause with nobody in flight is no host's turn
        if not row["num_decodes"]:
            return False
        end = last["start_ps"] + n * last["period_ps"] if n > 1 else row["start_ps"]
    same = all(last[key] == row[key] for key in ("num_decodes", "num_regular"))
    expected = last["duration_ps"] + n * last["slope_ps"]
    is_progression = row["duration_ps"] == expected if n > 1 else row["duration_ps"] >= last["duration_ps"]
    decodes_only = not last["num_prefills"] and not row["num_prefills"]
    return same and decodes_only and end == row["start_ps"] and is_progression


def _extend(last: dict[str, int], row: dict[str, int]) -> None:
    if last["num_steps"] == 1:
        last["slope_ps"] = row["duration_ps"] - last["duration_ps"]
        if row["start_ps"] != last["start_ps"] + last["duration_ps"]:
            last["period_ps"] = row["start_ps"] - last["start_ps"]
    last["num_steps"] += 1


def _columns(toys: list[Toy], steps: list[Step], network_ps: int | None) -> RequestColumns:
    """`network_ps` where host and front end take time: the client's columns are then given, not derived."""
    last = [toy.steps[-1] if toy.status == FINISHED else -1 for toy in toys]
    first = [toy.steps[0] if toy.steps else -1 for toy in toys]

    def column(values: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(values, dtype=np.int64)

    client = {}
    if network_ps is not None:
        client = {
            "queued_ps": column([toy.queued_ps for toy in toys]),
            "client_first_token_ps": column([steps[k].leaves_ps + network_ps if k >= 0 else -1 for k in first]),
            "client_finish_ps": column([steps[k].leaves_ps + network_ps if k >= 0 else -1 for k in last]),
        }
    return RequestColumns(
        arrival_ps=column([toy.arrival_ps for toy in toys]),
        scheduled_ps=column([steps[k].start_ps if k >= 0 else -1 for k in first]),
        first_token_ps=column([steps[k].tokens_ps if k >= 0 else -1 for k in first]),
        finish_ps=column([steps[k].tokens_ps if k >= 0 else -1 for k in last]),
        num_prompt_tokens=column([toy.num_prompt_tokens for toy in toys]),
        num_output_tokens=column([len(toy.steps) for toy in toys]),
        num_cached_tokens=column([toy.num_cached_tokens for toy in toys]),
        num_preemptions=column([0 for _ in toys]),
        priority=column([toy.priority for toy in toys]),
        status=np.array([toy.status for toy in toys], dtype=np.int8),
        tenant=[toy.tenant for toy in toys] if any(toy.tenant for toy in toys) else None,
        reason={i: _reason(toy) for i, toy in enumerate(toys) if toy.status in (REJECTED, REFUSED)},
        **client,
    )


def _reason(toy: Toy) -> str:
    return (
        f"prompt of {toy.num_prompt_tokens} tokens"
        if toy.status == REJECTED
        else "max_num_queued_reqs: 4 in the server"
    )


def _step_row(toys: list[Toy], steps: list[Step], k: int) -> StepRow:
    inside = [i for i, toy in enumerate(toys) if k in toy.steps]
    return StepRow(
        step=k,
        start_ps=steps[k].start_ps,
        end_ps=steps[k].end_ps,
        scheduled=[(i, 1, toys[i].num_prompt_tokens) for i in inside],
        preempted=[],
        finished=[i for i in inside if toys[i].steps[-1] == k and toys[i].status != UNFINISHED],
        free_blocks=100 - 10 * len(inside),
        num_running=len(inside),
        num_waiting=0,
        updated_ps=steps[k].updated_ps,
    )


def ours(record, **changes):
    return Result(record, facts(**changes)).summary["simbatch"]
