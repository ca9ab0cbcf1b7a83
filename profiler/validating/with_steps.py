"""A client's run beside what its server's recorder wrote: when requests were taken in, which steps were done."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fitting.durations import durations_s
from simbatch.profiler.fitting.recorded_lines import RecordedRequest, RecordedStep
from simbatch.profiler.validating.real_run import Run
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.model import Features, features_of
from simbatch.sim.engine.record import NEVER_PS, SEGMENT_DTYPE

NAME = re.compile(r"\bsb-(\d+)\b")  # of a request: what the client called it, inside of vLLM's own id
Lines = Sequence[RecordedStep | RecordedRequest]


def name_of(index: int) -> str:
    """What a request is called on its way through the server."""
    return f"sb-{index}"


def with_steps(run: Run, lines: Lines, indices: Sequence[int], origin_s: float) -> Run:
    """The same run with its steps; `indices` name its requests, `origin_s` is its time 0 on the recorder's clock."""
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


def features(step: RecordedStep) -> Features:
    """What a step computed."""
    prefills = ((tokens, computed, False) for computed, tokens in step.prefills)
    return features_of(prefills, step.num_decodes, step.context_tokens)


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
