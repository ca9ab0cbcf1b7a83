"""LLMServingSim's `requests.jsonl`, recorded inside vLLM: one line a request.

The send is stamped by the wall's clock and all else by the engine's: the two are set together by the request that was
taken in fastest, as if that had taken no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simbatch.profiler.validating.recorded import Floats, Recorded, in_order
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.workload.bench.document import Document, Model, Tokens, checked


def is_row(value: Any) -> bool:
    """Whether it is such a line."""
    return isinstance(value, dict) and "queued_ts" in value


class _Row(Model):
    """A line of LLMServingSim's requests.jsonl; times in s."""

    request_id: str
    input_toks: Tokens
    output_toks: Tokens
    arrival_time: float  # by the wall's clock; all others by a monotonic one
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


def read(lines: Sequence[Document]) -> Recorded:
    """The run; UserError with its line for what is malformed."""
    rows = []
    for line in lines:
        row: _Row = checked(_Row, line.value, line.place)
        if not row.queued_ts <= row.scheduled_ts <= row.first_token_ts <= row.last_token_ts:
            raise UserError(Problem(line.place, "its times must not fall from queued_ts to last_token_ts"))
        rows.append(row)

    def column(name: str) -> Floats:
        return np.array([getattr(row, name) for row in rows], dtype=np.float64)

    queued, sent = column("queued_ts"), column("arrival_time")
    outputs = column("output_toks").astype(np.int64)
    return in_order(
        Recorded(
            kind="LLMServingSim",
            request_id=np.array([row.request_id for row in rows], dtype=np.object_),
            sent_s=sent + (queued - sent).min(),
            first_token_s=column("first_token_ts"),
            finish_s=column("last_token_ts"),
            num_prompt_tokens=column("input_toks").astype(np.int64),
            num_output_tokens=outputs,
            error=np.where(outputs == 0, "no tokens", "").astype(np.object_),
            taken_in_s=queued,
            scheduled_s=column("scheduled_ts"),
        )
    )
