"""Run records for the tests of the results: who was in which step is said by hand, the record follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simbatch.sim.engine.record import (
    FINISHED,
    REJECTED,
    SEGMENT_DTYPE,
    UNFINISHED,
    RequestColumns,
    RunRecord,
    StepRow,
)
from simbatch.sim.results import RunFacts

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


@dataclass
class Step:
    start_ps: int
    duration_ps: int

    @property
    def end_ps(self) -> int:
        return self.start_ps + self.duration_ps


def back_to_back(durations_ps: list[int], start_ps: int = 0) -> list[Step]:
    steps = []
    for duration in durations_ps:
        steps.append(Step(start_ps, duration))
        start_ps += duration
    return steps


def token_times(steps: list[Step], toy: Toy) -> list[int]:
    return [steps[k].end_ps for k in toy.steps]


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
    gaps: list[int] = []
    for k, step in enumerate(steps):
        row = _row(toys, steps, k, gaps, num_gpu_blocks)
        if merge and rows and _continues(rows[-1], row):
            last = rows[-1]
            if last["num_steps"] == 1:
                last["slope_ps"] = step.duration_ps - last["duration_ps"]
            last["num_steps"] += 1
            last["free_blocks"] = row["free_blocks"]
        else:
            rows.append(row)
    return RunRecord(
        requests=_columns(toys, steps),
        segments=np.array([tuple(row.values()) for row in rows], dtype=SEGMENT_DTYPE),
        gaps=np.array(gaps, dtype=np.int64),
        num_preemptions=fields.pop("num_preemptions", 0),
        num_recomputed_tokens=fields.pop("num_recomputed_tokens", 0),
        end_ps=max((step.end_ps for step in steps), default=0),
        num_gpu_blocks=num_gpu_blocks,
        block_size=16,
        client_overhead_ps=client_overhead_ps,
        event_loop_cpu_s=0.25,
        steps=[_step_row(toys, steps, k) for k in range(len(steps))] if keep_steps else None,
    )


def facts(**changes: Any) -> RunFacts:
    return RunFacts(**{"scenario_name": "toy", "scenario": {}, "policy": "vllm", "profile": "inline", **changes})


def _row(toys: list[Toy], steps: list[Step], k: int, gaps: list[int], num_gpu_blocks: int) -> dict[str, int]:
    inside = [toy for toy in toys if k in toy.steps]
    prefills = [toy for toy in inside if toy.steps[0] == k]
    num_regular = 0
    for toy in inside:
        if toy not in prefills:
            before = steps[toy.steps[toy.steps.index(k) - 1]]
            if before.end_ps == steps[k].start_ps:
                num_regular += 1
            else:
                gaps.append(steps[k].end_ps - before.end_ps)
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


def _continues(last: dict[str, int], row: dict[str, int]) -> bool:
    n = last["num_steps"]
    end = last["start_ps"] + n * last["duration_ps"] + last["slope_ps"] * n * (n - 1) // 2
    same = all(last[key] == row[key] for key in ("num_decodes", "num_regular"))
    expected = last["duration_ps"] + n * last["slope_ps"]
    is_progression = row["duration_ps"] == expected if n > 1 else row["duration_ps"] >= last["duration_ps"]
    decodes_only = not last["num_prefills"] and not row["num_prefills"]
    return same and decodes_only and end == row["start_ps"] and is_progression


def _columns(toys: list[Toy], steps: list[Step]) -> RequestColumns:
    def column(values: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(values, dtype=np.int64)

    return RequestColumns(
        arrival_ps=column([toy.arrival_ps for toy in toys]),
        scheduled_ps=column([steps[toy.steps[0]].start_ps if toy.steps else -1 for toy in toys]),
        first_token_ps=column([steps[toy.steps[0]].end_ps if toy.steps else -1 for toy in toys]),
        finish_ps=column([steps[toy.steps[-1]].end_ps if toy.status == FINISHED else -1 for toy in toys]),
        num_prompt_tokens=column([toy.num_prompt_tokens for toy in toys]),
        num_output_tokens=column([len(toy.steps) for toy in toys]),
        num_cached_tokens=column([toy.num_cached_tokens for toy in toys]),
        num_preemptions=column([0 for _ in toys]),
        priority=column([toy.priority for toy in toys]),
        status=np.array([toy.status for toy in toys], dtype=np.int8),
        tenant=[toy.tenant for toy in toys] if any(toy.tenant for toy in toys) else None,
        reason={i: f"prompt of {toy.num_prompt_tokens} tokens" for i, toy in enumerate(toys) if toy.status == REJECTED},
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
    )
