"""Recorded runs in one form: a benchmark client's result, LLMServingSim's `requests.jsonl`; of one file or of folders.

A client knows its own clock alone. Times are counted from the first send. LLMServingSim stamps the send by the
wall's clock and all else by the engine's: the two are set together by the request that was taken in fastest, as if that
had taken no time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records.real_run import seen_outside
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import FINISHED, RequestColumns, RunRecord
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.json_values import JsonValue, Lenient, checked, json_values
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.workload.arrivals import MAX_TIME_S
from simbatch.sim.workload.bench import BenchRun, BenchTotals, results_of, sending_of
from simbatch.sim.workload.bench.aiperf import SUMMARY_FILE
from simbatch.sim.workload.bench.run import Tokens, read_text

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    planned_s: Floats | None = None  # when each would have been sent with nothing to hold it back; None: as it was
    max_concurrency: int | None = None
    is_closed: bool = False  # sent as soon as a place was free
    place: str = ""
    load: str = "as recorded"  # how it was sent, in words
    model: str | None = None
    untold: Mapping[str, str] = field(default_factory=dict)  # figures that the file does not tell, and why
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sent_s)

    def take(self, chosen: NDArray[Any]) -> Recorded:
        """These requests alone, by a mask or by their indices."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: c[chosen] for k, c in columns.items() if isinstance(c, np.ndarray)})

    def arrivals_s(self) -> Floats:
        """When a simulation sends each, unless a limit holds it back longer."""
        if not self.is_closed or self.max_concurrency is None:
            return self.sent_s if self.planned_s is None else np.maximum(self.planned_s, 0)
        begun = self.sent_s[: self.max_concurrency]  # the client sends them one after the other, for some ms
        return np.concatenate([begun, np.full(len(self) - len(begun), begun[-1])])

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
        return seen_outside(requests, () if self.gaps_s is None else self.gaps_s, config)


AnyRecorded = Recorded | BenchRun | BenchTotals


def read_recorded(path: Path) -> Recorded:
    """The one run of a file, with its requests; UserError for totals, and for several runs."""
    runs = read_runs(path)
    if len(runs) > 1:
        raise UserError(Problem(str(path), f"has {len(runs)} runs", mend="name a file with one"))
    if isinstance(runs[0], BenchTotals):
        rule = "has a run's totals only, not its requests"
        raise UserError(Problem(str(path), rule, mend="run vllm bench serve with --save-result --save-detailed"))
    return runs[0] if isinstance(runs[0], Recorded) else of_bench(runs[0])


def of_bench(run: BenchRun, *, max_concurrency: int | None = None, is_closed: bool = False) -> Recorded:
    """A benchmark's run; `max_concurrency` and `is_closed` say what the scenario knows of how it was sent."""
    sending = sending_of(run, max_concurrency=max_concurrency, is_closed=is_closed)
    ttft = run.e2el_s if run.ttft_s is None else run.ttft_s
    recorded = Recorded(
        kind=run.tool,
        place=run.place,
        request_id=None,
        sent_s=sending.sent_s,
        planned_s=sending.planned_s,
        first_token_s=sending.sent_s + ttft,
        finish_s=sending.sent_s + run.e2el_s,
        num_prompt_tokens=run.num_prompt_tokens,
        num_output_tokens=run.num_output_tokens,
        error=run.error,
        gaps_s=run.gaps_s,
        max_concurrency=None if sending.max_concurrency is None else min(sending.max_concurrency, len(run)),
        is_closed=sending.is_closed,
        load=str(replace(run.load, max_concurrency=sending.max_concurrency)),
        model=run.model,
        untold={**run.untold, **sending.untold},
        notes=(*run.notes, *sending.notes),
    )
    return in_order(recorded)


def in_order(recorded: Recorded) -> Recorded:
    """By the time of the send, which becomes 0 for the first one that did not fail."""
    ordered = recorded.take(np.argsort(recorded.sent_s, kind="stable"))
    first_s = float(ordered.sent_s[ordered.error == ""].min(initial=np.inf))
    if not np.isfinite(first_s):
        raise UserError(Problem(recorded.place or "--recorded", f"all of its requests failed: {ordered.error[0]}"))
    backwards = np.flatnonzero((ordered.first_token_s < ordered.sent_s) | (ordered.finish_s < ordered.first_token_s))
    if len(backwards) or float(ordered.finish_s.max()) - first_s > MAX_TIME_S:
        number = int(backwards[0]) if len(backwards) else int(ordered.finish_s.argmax())
        rule = f"request {number} (in order of sending) ends before it begins, or after more than 106 days"
        raise UserError(Problem(recorded.place or "--recorded", rule, mend="record it again"))
    times = ("sent_s", "planned_s", "first_token_s", "finish_s", "taken_in_s", "scheduled_s")
    given = {name: getattr(ordered, name) for name in times if getattr(ordered, name) is not None}
    return replace(ordered, **{name: column - first_s for name, column in given.items()})


def is_llmservingsim(value: Any) -> bool:
    """Whether it is such a line."""
    return isinstance(value, dict) and "queued_ts" in value


class _Row(Lenient):
    """A line of LLMServingSim's requests.jsonl; times in s."""

    request_id: str
    input_toks: Tokens
    output_toks: Tokens
    arrival_time: float  # by the wall's clock; all others by a monotonic one
    queued_ts: float
    scheduled_ts: float
    first_token_ts: float
    last_token_ts: float


def read_llmservingsim(lines: Sequence[JsonValue]) -> Recorded:
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


ENDINGS = (".json", ".jsonl")
MAX_REASON = 200  # characters that are shown of why a file was passed over


class Named(NamedTuple):
    """A recorded run, what it is called, and its file's name."""

    name: str
    file: str
    run: AnyRecorded


@dataclass(frozen=True)
class GatheredRuns:
    """The runs, and the files of the folders that were passed over with the reason."""

    runs: Sequence[Named]
    passed_over: Sequence[tuple[str, str]] = ()


def gather(paths: Sequence[Path]) -> GatheredRuns:
    """Everything in these files and folders; UserError for a file that was named and cannot be read."""
    runs, passed_over = list[Named](), list[tuple[str, str]]()
    for path in paths:
        if not path.is_dir():
            runs += _named(path.stem if len(paths) > 1 else "", path)
            continue
        before = len(runs)
        for file, twice in _files(path):
            name = str(file.relative_to(path).with_suffix(""))
            try:
                runs += [] if twice else _named(name, file)
            except UserError as error:
                twice = error.problems[0].rule
            if twice:
                passed_over.append((str(file.relative_to(path)), twice[:MAX_REASON]))
        if len(runs) == before:
            found = "; ".join(f"{name}: {why}" for name, why in passed_over[:3]) or "no .json or .jsonl in it"
            raise UserError(Problem(f"--recorded {path}", f"has no benchmark's result ({found})"))
    return GatheredRuns(runs, passed_over)


def read_runs(path: Path) -> list[AnyRecorded]:
    """The runs of a file; UserError with its place for what is malformed or no known result."""
    if not path.is_file():
        raise UserError(Problem(f"--recorded {path}", "cannot be read: there is no such file"))
    read = list(json_values(path, read_text(path)))
    if read and all(is_llmservingsim(document.value) for document in read):
        return [read_llmservingsim(read)]
    return list(results_of(path, read))


def _named(name: str, path: Path) -> list[Named]:
    found = read_runs(path)
    numbers = [""] if len(found) == 1 else [f"run {i}" for i in range(1, len(found) + 1)]
    names = [" ".join(part for part in (name, number) if part) or path.stem for number in numbers]
    return [Named(each, path.name, run) for each, run in zip(names, found, strict=True)]


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """The files that may be results, and why one of them says what another one says better."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in ENDINGS and file.is_file())
    there = {(file.parent, file.name) for file in files}
    for file in files:
        beside = {name for parent, name in there if parent == file.parent}
        yield file, _twice(file.name, beside)


def _twice(name: str, beside: set[str]) -> str:
    if name == SUMMARY_FILE and "profile_export.jsonl" in beside:
        return "profile_export.jsonl has its requests"
    if name.endswith("_lifecycle_metrics.json") and not name.startswith("per_request"):
        if "per_request_lifecycle_metrics.json" in beside:
            return "per_request_lifecycle_metrics.json has its requests"
        if name.startswith("summary") and any(other.startswith("stage_") for other in beside):
            return "its stages are there one by one"
    return ""
