"""Real runs that others have recorded: `vllm bench serve --save-detailed`, and LLMServingSim's `requests.jsonl`.

The first knows the client's clock alone. The second stamps the send by the wall's clock and all else by the engine's:
the two are set together by the request that was taken in fastest, as if that had taken no time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.load import problems_of
from simbatch.sim.engine.record import FINISHED, SEGMENT_DTYPE, RequestColumns, RunRecord
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scheduler.config import EngineConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Tokens = Annotated[int, Field(ge=0, le=2**31)]
MAX_TOLD = 5  # mistakes of one file: the others are of the same kind
NO_GAPS = np.zeros(0)
T = TypeVar("T")


@dataclass(frozen=True)
class Recorded:
    """What a file says of its requests, in the order in which they were sent; times in s after the first send."""

    kind: str
    request_id: NDArray[np.object_] | None
    sent_s: Floats
    first_token_s: Floats
    finish_s: Floats
    num_prompt_tokens: Ints
    num_output_tokens: Ints
    error: NDArray[np.object_]  # why a request failed, empty where it did not
    taken_in_s: Floats | None = None
    scheduled_s: Floats | None = None
    gaps_s: NDArray[np.object_] | None = None  # per request, between its tokens
    max_concurrency: int | None = None  # of a closed loop

    def __len__(self) -> int:
        return len(self.sent_s)

    def take(self, chosen: NDArray[Any]) -> Recorded:
        """These requests alone, by a mask or by their indices."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: c[chosen] for k, c in columns.items() if isinstance(c, np.ndarray)})

    def record(self, start_s: float, config: EngineConfig) -> RunRecord:
        """As a run of such an engine, whose clock begins `start_s` before the first send; without steps."""
        n = len(self)

        def ps(times_s: Floats | None) -> Ints:
            if times_s is None:
                return np.full(n, -1, dtype=np.int64)
            return np.round((times_s + start_s) * PS_PER_S).astype(np.int64)

        requests = RequestColumns(
            arrival_ps=ps(self.sent_s),
            scheduled_ps=ps(self.scheduled_s),
            first_token_ps=ps(self.first_token_s),
            finish_ps=ps(self.finish_s),
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
            num_cached_tokens=np.zeros(n, dtype=np.int64),
            num_preemptions=np.zeros(n, dtype=np.int64),
            priority=np.zeros(n, dtype=np.int64),
            status=np.full(n, FINISHED, dtype=np.int8),
            request_id=None if self.request_id is None else self.request_id.tolist(),
        )
        gaps = np.concatenate([NO_GAPS, *self.gaps_s]) if self.gaps_s is not None else NO_GAPS
        return RunRecord(
            requests=requests,
            segments=np.zeros(0, dtype=SEGMENT_DTYPE),
            gaps=np.round(gaps * PS_PER_S).astype(np.int64),
            num_preemptions=0,
            end_ps=int(requests.finish_ps.max(initial=0)),
            num_gpu_blocks=config.num_gpu_blocks,
            block_size=config.block_size,
            client_overhead_ps=0,
            event_loop_cpu_s=0.0,
        )


def read_recorded(path: Path) -> Recorded:
    """Read a recorded run; raises UserError with file and line for what is malformed or neither of the two."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(Problem(f"--recorded {path}", f"cannot be read: {reason}")) from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and "queued_ts" in lines[0][1]:
        return _of_rows(path, lines)
    content = _json(text, str(path))
    if isinstance(content, dict) and "queued_ts" in content:
        return _of_rows(path, lines)
    if not isinstance(content, dict) or "start_times" not in content:
        rule = "is neither a result of `vllm bench serve` nor a requests.jsonl of LLMServingSim"
        if isinstance(content, dict) and "request_throughput" in content:
            rule = "has a run's totals only, not its requests"
        mend = "run vllm bench serve with --save-result --save-detailed"
        raise UserError(Problem(str(path), rule, mend=mend))
    return _of_bench(path, content)


class _Bench(BaseModel):
    """What vllm/benchmarks/serve.py writes with --save-detailed, one entry a request; times in s."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)

    start_times: list[float]
    ttfts: list[float]
    itls: list[list[float]]
    input_lens: list[Tokens]
    output_lens: list[Tokens]
    latencies: list[float] | None = None  # older versions do not write them
    errors: list[str | None] | None = None
    max_concurrency: int | None = None


class _Row(BaseModel):
    """A line of LLMServingSim's requests.jsonl; times in s."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)

    request_id: str
    input_toks: Tokens
    output_toks: Tokens
    arrival_time: float  # by the wall's clock; all others by a monotonic one
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


def _of_bench(path: Path, content: dict[str, Any]) -> Recorded:
    bench = _checked(lambda: _Bench.model_validate(content), str(path), _Bench)
    lengths = {name: len(column) for name, column in bench if isinstance(column, list)}
    if len(set(lengths.values())) != 1 or not bench.start_times:
        raise UserError(Problem(str(path), "its lists must be of one length, and not empty", lengths))
    errors = bench.errors or [""] * len(bench.start_times)
    error = [text or ("no tokens" if not n else "") for text, n in zip(errors, bench.output_lens, strict=True)]
    start, ttft = np.array(bench.start_times), np.array(bench.ttfts)
    gaps = np.empty(len(start), dtype=np.object_)
    gaps[:] = [np.array(itl, dtype=np.float64) for itl in bench.itls]
    latency = ttft + [gap.sum() for gap in gaps] if bench.latencies is None else np.array(bench.latencies)
    return _in_order(
        Recorded(
            kind="vllm bench serve",
            request_id=None,
            sent_s=start,
            first_token_s=start + ttft,
            finish_s=start + latency,
            num_prompt_tokens=np.array(bench.input_lens, dtype=np.int64),
            num_output_tokens=np.array(bench.output_lens, dtype=np.int64),
            error=np.array(error, dtype=np.object_),
            gaps_s=gaps,
            max_concurrency=bench.max_concurrency,
        )
    )


def _of_rows(path: Path, lines: list[tuple[int, str]]) -> Recorded:
    rows = []
    for number, line in lines:
        place = f"{path}:{number}"
        row = _checked(partial(_row, line, place), place, _Row)
        if not row.queued_ts <= row.scheduled_ts <= row.first_token_ts <= row.last_token_ts:
            raise UserError(Problem(place, "its times must not fall from queued_ts to last_token_ts"))
        rows.append(row)

    def column(name: str) -> Floats:
        return np.array([getattr(row, name) for row in rows], dtype=np.float64)

    queued, sent = column("queued_ts"), column("arrival_time")
    outputs = column("output_toks").astype(np.int64)
    return _in_order(
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


def _row(line: str, place: str) -> _Row:
    return _Row.model_validate(_json(line, place))


def _in_order(recorded: Recorded) -> Recorded:
    """By the time of the send, which becomes 0 for the first one that did not fail."""
    ordered = recorded.take(np.argsort(recorded.sent_s, kind="stable"))
    first_s = float(ordered.sent_s[ordered.error == ""].min(initial=np.inf))
    if not np.isfinite(first_s):
        raise UserError(Problem("--recorded", f"all of its requests failed: {ordered.error[0]}"))
    times = ("sent_s", "first_token_s", "finish_s", "taken_in_s", "scheduled_s")
    given = {name: getattr(ordered, name) for name in times if getattr(ordered, name) is not None}
    return replace(ordered, **{name: column - first_s for name, column in given.items()})


def _checked(validate: Callable[[], T], place: str, model: type[BaseModel]) -> T:
    try:
        return validate()
    except ValidationError as error:
        raise UserError(*problems_of(error, place, model.model_fields).problems[:MAX_TOLD]) from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(Problem(f"{place}:{error.lineno}:{error.colno}", f"not JSON: {error.msg}")) from None
