"""A run as a timeline that ui.perfetto.dev and chrome://tracing open: `simbatch run FILE --perfetto trace.json.gz`.

The trace-event format of Chromium ("Trace Event Format", JSON object form). Every replica is a process: its host and
its device are threads whose slices are the steps; requests and KV use are counters. Its requests are a second process:
a slice each, with the time in the queue, in prefill and in decode below it, on the first row that is free then, so that
there are as many rows as requests were ever there at once.

Times are whole microseconds from the run's begin: Perfetto cuts fractions to nanoseconds, begin and duration each for
itself, and drops a slice that then ends after the next one's begin. It calls the thread that has its process's number
the main thread, so no thread has one; and it puts a counter's key behind its name.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import IO, Any

from simbatch.sim.engine.record import NEVER_PS, STATUS_NAMES, UNFINISHED, RunRecord, StepRow

PS_PER_US = 1_000_000
HOST, DEVICE = 1, 2  # of the threads of a replica's process
Event = dict[str, Any]


def write(path: Path, record: RunRecord, *, compressed: bool) -> None:
    """Write the run's timeline as JSON, through gzip where `compressed`.

    Steps and counters need a run with `steps=True`; of a run without, only its requests are written.
    """
    with _opened(path, compressed) as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        for i, event in enumerate(events(record)):
            file.write((",\n" if i else "") + json.dumps(event, ensure_ascii=False, separators=(",", ":")))
        file.write("\n]}\n")


def events(record: RunRecord) -> Iterator[Event]:
    """All events, replica by replica; within a thread in order of time."""
    steps: list[list[StepRow]] = [[] for _ in range(record.num_replicas)]
    for row in record.steps or []:
        steps[row.replica].append(row)
    before = 2 * record.num_replicas  # numbers of processes, which threads come after
    for replica, rows in enumerate(steps):
        label = f"replica {replica}" if record.replicas else "engine"
        yield _named("process_name", label, _process(replica))
        yield _named("thread_name", "host: launches", _process(replica), before + HOST)
        yield _named("thread_name", "device: steps", _process(replica), before + DEVICE)
        yield from _steps(rows, replica, before)
        yield from _counters(rows, replica, _usable_blocks(record, replica))
        yield _named("process_name", f"requests of {label}", _process(replica) + 1)
        yield from _requests(record, replica, before)


def _steps(rows: Sequence[StepRow], replica: int, before: int) -> Iterator[Event]:
    for row in rows:
        arguments = {
            "step": row.step,
            "requests": len(row.scheduled),
            "tokens": sum(num_tokens for _, num_tokens, _ in row.scheduled),
            "preempted": len(row.preempted),
            "finished": len(row.finished),
        }
        if row.schedule_ps != NEVER_PS:
            yield from _slice("launch", row.schedule_ps, row.launched_ps, _process(replica), before + HOST, arguments)
        yield from _slice(_kind(row), row.start_ps, row.end_ps, _process(replica), before + DEVICE, arguments)


def _kind(row: StepRow) -> str:
    """What a step does, as its slice is called: a prefill is an entry of more than a token, or a prompt's first one."""
    prefills = sum(num_tokens > 1 or not computed for _, num_tokens, computed in row.scheduled)
    return "decode" if not prefills else "prefill" if prefills == len(row.scheduled) else "mixed"


def _counters(rows: Sequence[StepRow], replica: int, usable_blocks: int) -> Iterator[Event]:
    for row in rows:
        at_ps = row.end_ps if row.updated_ps == NEVER_PS else row.updated_ps
        yield _counter("requests", row.start_ps, replica, running=row.num_running, waiting=row.num_waiting)
        used = round(100 * (1 - row.free_blocks / usable_blocks), 2)
        yield _counter("KV blocks in use,", at_ps, replica, **{"%": used})


def _requests(record: RunRecord, replica: int, before: int) -> Iterator[Event]:
    process = _process(replica) + 1
    requests = record.requests
    here = [i for i in range(len(requests)) if requests.replica is None or requests.replica[i] == replica]
    there = (i for i in here if _end_ps(record, i) > requests.arrival_ps[i])
    here = sorted(there, key=lambda i: int(requests.arrival_ps[i]))
    spans = [(int(requests.arrival_ps[i]), _end_ps(record, i)) for i in here]
    rows = [before + row for row in rows_of(spans)]
    for row in range(before + 1, max(rows, default=before) + 1):
        yield _named("thread_name", "row", process, row)
    for i, row, (begin_ps, end_ps) in zip(here, rows, spans, strict=True):
        name = requests.request_id[i] if requests.request_id is not None else f"request {i}"
        arguments = {
            "num_prompt_tokens": int(requests.num_prompt_tokens[i]),
            "num_output_tokens": int(requests.num_output_tokens[i]),
            "num_cached_tokens": int(requests.num_cached_tokens[i]),
            "num_preemptions": int(requests.num_preemptions[i]),
            "status": STATUS_NAMES[int(requests.status[i])],
        }
        yield from _slice(name, begin_ps, end_ps, process, row, arguments)
        moments = [begin_ps, int(requests.scheduled_ps[i]), int(requests.first_token_ps[i]), end_ps]
        for part, begin, end in zip(("queue", "prefill", "decode"), moments, moments[1:], strict=False):
            if begin == NEVER_PS:
                break
            until_ps = end_ps if end == NEVER_PS else min(end, end_ps)
            yield from _slice(part, begin, until_ps, process, row, {})


def rows_of(spans: Iterable[tuple[int, int]]) -> Iterator[int]:
    """For intervals [begin, end) in order of begin the first row, from 1, that is free: as few rows as are needed.

    (0, 5), (1, 3), (3, 4) lie on rows 1, 2, 2.
    """
    busy: list[tuple[int, int]] = []  # (end, row)
    free: list[int] = []
    for begin, end in spans:
        while busy and busy[0][0] <= begin:
            heappush(free, heappop(busy)[1])
        row = heappop(free) if free else len(busy) + 1
        heappush(busy, (end, row))
        yield row


def _end_ps(record: RunRecord, i: int) -> int:
    """When a request left; one that never did is there until the run's end, one that was turned away not at all."""
    finish_ps = int(record.requests.finish_ps[i])
    if finish_ps != NEVER_PS:
        return finish_ps
    return record.end_ps if record.requests.status[i] == UNFINISHED else NEVER_PS


def _usable_blocks(record: RunRecord, replica: int) -> int:
    return (record.replicas[replica].num_gpu_blocks if record.replicas else record.num_gpu_blocks) - 1


def _process(replica: int) -> int:
    """A replica's process; the next number is that of its requests. 0 is none in the format."""
    return 2 * replica + 1


def _slice(name: str, begin_ps: int, end_ps: int, process: int, thread: int, arguments: Event) -> Iterator[Event]:
    """One slice; none of what is over within its microsecond."""
    begin_us, end_us = int(begin_ps) // PS_PER_US, int(end_ps) // PS_PER_US
    if end_us > begin_us:
        times = {"ts": begin_us, "dur": end_us - begin_us}
        yield {"name": name, "ph": "X", **times, "pid": process, "tid": thread, "args": arguments}


def _counter(name: str, at_ps: int, replica: int, **values: float) -> Event:
    return {"name": name, "ph": "C", "ts": int(at_ps) // PS_PER_US, "pid": _process(replica), "args": values}


def _named(kind: str, name: str, process: int, thread: int = 0) -> Event:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _opened(path: Path, compressed: bool) -> IO[str]:
    if compressed:
        return gzip.open(path, "wt", encoding="utf-8", compresslevel=5)
    return path.open("w", encoding="utf-8")
