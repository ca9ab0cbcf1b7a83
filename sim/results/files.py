"""A result on disk: every file is written beside its target, then renamed; what this run does not write goes away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simbatch.sim import is_compiled
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import STATUS_NAMES, RunRecord, StepRow, bounds
from simbatch.sim.files import origin, write_all, write_json
from simbatch.sim.metrics.columns import (
    COUNT_COLUMNS,
    LATER_TIME_COLUMNS,
    SESSION_COLUMNS,
    TENANT,
    TEXT_COLUMNS,
    TIME_COLUMNS,
    file_columns,
    named,
    replica_of,
    times_ps,
)
from simbatch.sim.scheduler.config import certificate_of

if TYPE_CHECKING:
    import pyarrow as pa

RUN_FILE = "run.json"
OWN_FILES = (
    "summary.json",
    "requests.parquet",
    "steps.parquet",
    "scenario.yaml",
    "latency.png",
    "timeline.png",
    "replicas.png",
    "sessions.png",
    "report.html",
)
Versions = Mapping[str, str] | Sequence[str]  # by name, or of all
Writers = Mapping[str, Callable[[Path], None]]  # what writes each file, by its name
STEPS_PER_ROW_GROUP = 20_000
MANY = 50_000  # numbers, from which on it pays to import pyarrow's functions
STEP_TIMES = ("schedule", "launched", "start", "end", "updated")


def write_result(
    folder: Path,
    writers: Mapping[str, Callable[[Path], None]],
    own: tuple[str, ...],
    versions: Versions,
    facts: Mapping[str, Any] | None = None,
    aside: Collection[str] = (),
) -> list[Path]:
    """`write_all` with run.json: how the result came to be, and `facts`; what else is in `own` goes away.

    `versions`: of the vLLM that was simulated, each of whose schedulers has a certificate or none.
    """
    content = {**origin(), **_scheduler(versions), **(facts or {})}
    return write_all(folder, {**writers, RUN_FILE: lambda path: write_json(path, content)}, own, aside)


def text_writer(make: Callable[[], str]) -> Callable[[Path], None]:
    """For `write_result`: a file of the text that `make` gives."""

    def write(path: Path) -> None:
        path.write_text(make(), encoding="utf-8")

    return write


def write_requests(path: Path, record: RunRecord) -> None:
    """The columns of CONTRACT's requests.parquet, in groups; times in float seconds, null where never."""
    import pyarrow.parquet as pq

    times = _times(record)
    schema = _requests_table(record, times, slice(0, 0)).schema
    # values worth a dictionary; the type stubs know only a bool
    unlike = {"parent", "delay"}
    more = {TENANT, *SESSION_COLUMNS} & {*schema.names} - unlike
    repeating: Any = [*COUNT_COLUMNS, *TEXT_COLUMNS, "replica", *more]
    with pq.ParquetWriter(path, schema, use_dictionary=repeating) as writer:
        for part in bounds(len(record.requests)):
            writer.write_table(_requests_table(record, times, part))


def requests_table(record: RunRecord) -> pa.Table:
    """The columns of requests.parquet in memory."""
    return _requests_table(record, _times(record), slice(0, len(record.requests)))


def write_steps(path: Path, record: RunRecord) -> None:
    """The columns of CONTRACT's steps.parquet, in groups, so that they need not be in memory twice."""
    import pyarrow.parquet as pq

    steps = record.steps or []
    ids = _ids(record, slice(0, len(record.requests)))
    with pq.ParquetWriter(path, _steps_table([], ids).schema) as writer:
        for begin in range(0, len(steps), STEPS_PER_ROW_GROUP):
            writer.write_table(_steps_table(steps[begin : begin + STEPS_PER_ROW_GROUP], ids))


def version_of(summary: Mapping[str, Any]) -> str:
    """Which vLLM's scheduler a run's figures are of."""
    return str(summary["simbatch"]["engine"]["vllm_version"])


def _scheduler(versions: Versions) -> dict[str, Any]:
    """What run.json says of the scheduler: one certificate, one for each name, or a list of those that differ."""
    if isinstance(versions, Mapping):
        return {"scheduler": {name: certificate_of(version) for name, version in versions.items()}}
    certificates = [certificate_of(version) for version in dict.fromkeys(versions)]
    if not certificates:
        return {}
    return {"scheduler": certificates[0] if len(certificates) == 1 else certificates}


def run_facts(record: RunRecord, wall_s: float | None) -> dict[str, Any]:
    """What run.json says of a simulation that depends on machine and clock."""
    return {
        "wall_s": wall_s,
        "compiled": is_compiled(),
        "event_loop_cpu_s": record.event_loop_cpu_s,
        "steps": record.num_steps,
        "segments": len(record.segments),
    }


def _times(record: RunRecord) -> dict[str, NDArray[np.int64]]:
    return {name: times_ps(record, name) for name in (*TIME_COLUMNS, *LATER_TIME_COLUMNS)}


def _requests_table(record: RunRecord, times: Mapping[str, NDArray[np.int64]], part: slice) -> pa.Table:
    import pyarrow as pa

    requests = record.requests
    columns: dict[str, pa.Array[Any]] = {name: _seconds(column[part]) for name, column in times.items()}
    for name in COUNT_COLUMNS:
        columns[name] = _numbers(getattr(requests, name)[part])
    columns["request_id"] = _ids(record, part)
    if record.requests.tenant:
        columns[TENANT] = _texts(record.requests.tenant[part])
    reasons = [requests.reason.get(i) for i in range(part.start, part.stop)] if requests.reason else None
    columns["reason"] = pa.nulls(part.stop - part.start, pa.string()) if reasons is None else _texts(reasons)
    columns["replica"] = _numbers(replica_of(requests)[part])
    if record.turns is not None:
        columns |= _session_columns(record, part)
    columns["status"] = _ascii(np.array(STATUS_NAMES, dtype=np.bytes_)[requests.status[part]])
    return pa.table({name: columns[name] for name in file_columns(record)})


def _session_columns(record: RunRecord, part: slice) -> dict[str, pa.Array[Any]]:
    """The session of each request, its turn, whom it waited for and how long after, and what its prompt begins with."""
    import pyarrow as pa

    turns, by_name = record.turns, named(record)
    assert turns is not None
    assert record.requests.row is not None
    row, first = record.requests.row[part], by_name.first[part.start : part.stop + 1]
    session = np.asarray(turns.session, dtype=np.int64)[row]
    parents = _ids_of(record, by_name.request[first[0] : first[-1]])
    offsets = pa.py_buffer(np.ascontiguousarray(first - first[0], dtype=np.int32).data)
    begins: Any = pa.Array.from_buffers(pa.int32(), len(first), [None, offsets])  # `array` would import pandas
    columns = {
        "session_id": _decimals(session),
        "turn": _numbers(np.asarray(turns.turn, dtype=np.int64)[row]),
        "parent": pa.ListArray.from_arrays(begins, parents),
        "delay": _seconds(by_name.delay_ps[part]),
    }
    if turns.names is not None:
        columns["session_id"] = _texts([turns.name(i) for i in row.tolist()])
    if turns.system is not None:
        columns["system_prompt"] = _decimals(np.asarray(turns.system, dtype=np.int64)[session])
        columns["num_system_tokens"] = _numbers(np.full(len(row), turns.num_system_tokens))
    return columns


def _seconds(column_ps: NDArray[np.int64]) -> pa.Array[Any]:
    """As float seconds, null where never."""
    never = column_ps < 0
    return _numbers(column_ps / PS_PER_S, ~never if never.any() else None)


def _numbers(values: NDArray[Any], is_there: NDArray[np.bool_] | None = None) -> pa.Array[Any]:
    """A column of these 64-bit numbers, null where one is not there; pyarrow's own `array` would import pandas."""
    import pyarrow as pa

    kind = pa.float64() if values.dtype.kind == "f" else pa.int64()
    return pa.Array.from_buffers(kind, len(values), [_bits(is_there), pa.py_buffer(np.ascontiguousarray(values).data)])


def _texts(values: Sequence[str | None]) -> pa.Array[Any]:
    """A column of text, null where there is none."""
    import pyarrow as pa

    is_there = np.array([value is not None for value in values]) if None in values else None
    texts = [value or "" for value in values]
    joined = "".join(texts)  # encoded at once where a character is a byte: a million names are a second
    encoded: Sequence[bytes | str] = texts if joined.isascii() else [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = [_bits(is_there), pa.py_buffer(ends.data), pa.py_buffer(joined.encode())]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)


def _ascii(texts: NDArray[np.bytes_]) -> pa.Array[Any]:
    """A column of text from numpy's, which is filled up with zeros; pyarrow's `take` would import its functions."""
    import pyarrow as pa

    letters = texts.view(np.uint8).reshape(len(texts), texts.itemsize)
    is_letter = letters != 0
    ends = np.append(0, np.cumsum(np.count_nonzero(is_letter, axis=1))).astype(np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(texts), [None, pa.py_buffer(ends.data), pa.py_buffer(letters[is_letter].data)]
    )


def _decimals(values: NDArray[np.int64]) -> pa.Array[Any]:
    """Whole numbers as text; pyarrow's `cast` is five times as quick and takes 0.03 s to be imported."""
    import pyarrow as pa

    return _ascii(values.astype(np.bytes_)) if len(values) < MANY else _numbers(values).cast(pa.string())


def _bits(is_there: NDArray[np.bool_] | None) -> pa.Buffer | None:
    import pyarrow as pa

    return None if is_there is None else pa.py_buffer(np.packbits(is_there, bitorder="little").data)


def _ids(record: RunRecord, part: slice) -> pa.Array[Any]:
    if record.requests.request_id:
        return _texts(record.requests.request_id[part])
    return _decimals(np.arange(part.start, part.stop))


def _ids_of(record: RunRecord, indices: NDArray[np.int64]) -> pa.Array[Any]:
    names = record.requests.request_id
    return _texts([names[i] for i in indices.tolist()]) if names else _decimals(indices)


def _steps_table(steps: list[StepRow], ids: pa.Array[Any]) -> pa.Table:
    import pyarrow as pa

    def whole(name: str) -> NDArray[np.int64]:
        return np.array([getattr(step, name) for step in steps], dtype=np.int64)

    def listed(name: str, items: pa.Array[Any]) -> pa.Array[Any]:
        lengths = [len(getattr(step, name)) for step in steps]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, items)

    def requests(name: str) -> pa.Array[Any]:
        indices = np.array(list(chain.from_iterable(getattr(step, name) for step in steps)), dtype=np.int64)
        return listed(name, ids.take(indices))

    entries = np.array(list(chain.from_iterable(step.scheduled for step in steps)), dtype=np.int64).reshape(-1, 3)
    scheduled = pa.StructArray.from_arrays(
        [ids.take(entries[:, 0]), pa.array(entries[:, 1]), pa.array(entries[:, 2])],
        names=["request_id", "num_tokens", "num_computed_tokens"],
    )
    columns: dict[str, pa.Array[Any]] = {
        "replica": pa.array(whole("replica")),
        "step": pa.array(whole("step")),
        **{f"{name}_s": _seconds(whole(f"{name}_ps")) for name in STEP_TIMES},
        "scheduled": listed("scheduled", scheduled),
        "preempted": requests("preempted"),
        "finished": requests("finished"),
    }
    for name in ("free_blocks", "num_running", "num_waiting"):
        columns[name] = pa.array(whole(name))
    return pa.table(columns)
