"""The requests of a run as columns in seconds, as `requests.parquet` has them, and the latencies that follow.

What results need to know about a run beside its record (scenario, policy, SLO, profile) are its facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.engine.record import (
    FINISHED,
    NEVER_PS,
    REFUSED,
    REJECTED,
    STATUS_NAMES,
    RequestColumns,
    RunRecord,
    named_requests,
)

if TYPE_CHECKING:
    import pandas as pd


T = TypeVar("T")


def kept(compute: Callable[[RunRecord], T]) -> Callable[[RunRecord], T]:
    """What is computed of a record once and stays with it: figures, warnings and pictures ask for the same."""
    name = f"kept {compute.__module__}.{compute.__qualname__}"

    @wraps(compute)
    def known(record: RunRecord) -> T:
        values = vars(record)
        if name not in values:
            values[name] = compute(record)
        found: T = values[name]
        return found

    return known


TIME_COLUMNS = ("arrival_s", "scheduled_s", "first_token_s", "finish_s")  # the engine's
LATER_TIME_COLUMNS = ("queued_s", "client_first_token_s", "client_finish_s")
COUNT_COLUMNS = ("num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions", "priority")
TEXT_COLUMNS = ("status", "reason")
FILE_COLUMNS = ("request_id", *TIME_COLUMNS, *COUNT_COLUMNS, *TEXT_COLUMNS, "replica", *LATER_TIME_COLUMNS)
TENANT = "tenant"  # after them, where anybody has one
# after them, where requests are turns of sessions; the last two where it is known what they have in common
SESSION_COLUMNS = ("session_id", "turn", "parent", "delay", "system_prompt", "num_system_tokens")
LATENCY_COLUMNS = ("ttft_s", "tpot_s", "e2el_s")


class RequestTable:
    """One entry per request, in input order; `table["ttft_s"]` is a numpy array, times in seconds.

    NaN where something never came: the finish of an unfinished request, the TPOT of a single token. `first_token_s` and
    `finish_s` are the engine's; TTFT, TPOT and E2EL are what the client sees and are given for finished requests only.
    `reason` is None where nobody was turned away. There is a column `tenant` (text, or None) when anybody has one, and
    where requests are turns of sessions `session_id` and `turn` (0 for the first), with `parent` (ids of the turns that
    each waited for) and `delay` (s, from the end of the last of them to its sending, or NaN).
    """

    def __init__(self, record: RunRecord) -> None:
        self._record = record

    def __len__(self) -> int:
        return len(self._record.requests)

    def __iter__(self) -> Iterator[str]:
        yield from file_columns(self._record)
        yield from LATENCY_COLUMNS

    def keys(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self)

    def __getitem__(self, name: str) -> NDArray[Any]:
        requests = self._record.requests
        if name == "request_id":
            return np.array(request_ids(self._record), dtype=np.str_)
        if name == "status":
            return np.array(STATUS_NAMES, dtype=np.str_)[requests.status]
        if name in SESSION_COLUMNS and name in file_columns(self._record):
            return session_column(self._record, name)
        if name == TENANT and requests.tenant:
            return np.array(requests.tenant, dtype=np.object_)
        if name in TIME_COLUMNS or name in LATER_TIME_COLUMNS:
            return seconds(times_ps(self._record, name))
        if name in COUNT_COLUMNS:
            counts: NDArray[np.int64] = getattr(requests, name)
            return counts
        if name == "reason":
            return np.array([requests.reason.get(i) for i in range(len(requests))], dtype=np.object_)
        if name == "replica":
            return replica_of(requests)
        if name in LATENCY_COLUMNS:
            return self._latency_s(name)
        raise KeyError(f"no column {name!r}; there are {', '.join(self)}")

    def _latency_s(self, name: str) -> NDArray[np.float64]:
        requests = self._record.requests
        values = np.full(len(requests), np.nan)
        finished = requests.status == FINISHED
        match name:
            case "ttft_s":
                values[finished] = ttft_ps(self._record)[finished] / PS_PER_S
            case "e2el_s":
                values[finished] = e2el_ps(self._record)[finished] / PS_PER_S
            case _:
                finished &= requests.num_output_tokens > 1
                values[finished] = decoding_ps(self._record, finished) / (requests.num_output_tokens[finished] - 1)
                values /= PS_PER_S
        return values

    def to_pandas(self) -> pd.DataFrame:
        """All columns as a DataFrame, in this order; needs pandas."""
        from simbatch.sim.files import data_frame

        return data_frame({name: self[name] for name in self})

    def __repr__(self) -> str:
        return f"RequestTable of {len(self):,} requests: {', '.join(self)}"


def file_columns(record: RunRecord) -> tuple[str, ...]:
    """The columns of requests.parquet."""
    has_tenants = bool(record.requests.tenant)
    num = 0 if record.turns is None else len(SESSION_COLUMNS) - 2 * (record.turns.system is None)
    return (*FILE_COLUMNS, *(TENANT,) * has_tenants, *SESSION_COLUMNS[:num])


named = kept(named_requests)


def session_column(record: RunRecord, name: str) -> NDArray[Any]:
    """One of `SESSION_COLUMNS`, where requests are turns of sessions."""
    turns, row = record.turns, record.requests.row
    assert turns is not None
    assert row is not None
    if name == "session_id":
        return np.array([turns.name(i) for i in row.tolist()], dtype=np.object_)
    if name == "parent":
        ids, first = np.array(request_ids(record), dtype=np.object_)[named(record).request], named(record).first
        return np.fromiter(map(tuple, np.split(ids, first[1:-1])), dtype=np.object_, count=len(row))
    if name == "delay":
        return seconds(named(record).delay_ps)
    if name == "system_prompt":
        systems: NDArray[Any] = np.asarray(turns.system, dtype=np.int64)[np.asarray(turns.session)[row]]
        return systems.astype(np.str_)
    return np.asarray(turns.turn, dtype=np.int64)[row] if name == "turn" else np.full(len(row), turns.num_system_tokens)


def times_ps(record: RunRecord, name: str) -> NDArray[np.int64]:
    """The times of a column whose name ends in `_s`, -1 where never."""
    if name == "queued_s":
        return queued_ps(record.requests)
    owner = record if name in LATER_TIME_COLUMNS else record.requests
    times: NDArray[np.int64] = getattr(owner, f"{name.removesuffix('_s')}_ps")
    return times


def queued_ps(requests: RequestColumns) -> NDArray[np.int64]:
    """When the engine took each request in, -1 where never."""
    if requests.queued_ps is not None:
        return requests.queued_ps
    return np.where(let_in(requests), requests.arrival_ps, NEVER_PS)


def replica_of(requests: RequestColumns) -> NDArray[np.int64]:
    """Where each request was sent, 0 without a cluster."""
    return np.zeros(len(requests), dtype=np.int64) if requests.replica is None else requests.replica


def let_in(requests: RequestColumns) -> NDArray[np.bool_]:
    """Who was neither rejected by the engine nor refused by the front end."""
    was_let_in: NDArray[np.bool_] = (requests.status != REJECTED) & (requests.status != REFUSED)
    return was_let_in


def seconds(times_ps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Times in float seconds, NaN where never."""
    return np.where(times_ps < 0, np.nan, times_ps / PS_PER_S)


def request_ids(record: RunRecord) -> list[str]:
    """The ids as given, or the running index as text."""
    return record.requests.request_id or [str(i) for i in range(len(record.requests))]


def ttft_ps(record: RunRecord) -> NDArray[np.int64]:
    """First token minus send, as the client sees it; only meaningful for requests that have one."""
    return record.client_first_token_ps - record.requests.arrival_ps


@kept
def e2el_ps(record: RunRecord) -> NDArray[np.int64]:
    """Finish minus send, as the client sees it; only meaningful for finished requests."""
    return record.client_finish_ps - record.requests.arrival_ps


def decoding_ps(record: RunRecord, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Last token minus first, as the client sees them, of the chosen finished requests."""
    return record.client_finish_ps[chosen] - record.client_first_token_ps[chosen]


PRIORITY_NAMES: Mapping[int, str] = {0: "high", 1: "normal", 2: "low"}


@dataclass(frozen=True, kw_only=True)
class SloLimits:
    """Limits in ms as in vLLM's `--goodput`; None: not asked for."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None
    session_duration_ms: float | None = None
    session_without_thinking_ms: float | None = None

    def limits(self) -> dict[str, float]:
        """The limits on a request that are set, `{"ttft": 1000.0, ...}` in ms, in the order ttft, tpot, e2el."""
        given = {"ttft": self.ttft_ms, "tpot": self.tpot_ms, "e2el": self.e2el_ms}
        return {name: float(limit) for name, limit in given.items() if limit is not None}

    def session_limits(self) -> dict[str, float]:
        """Those on a whole session, `{"duration": 60000.0, "without_thinking": 20000.0}` in ms."""
        given = {"duration": self.session_duration_ms, "without_thinking": self.session_without_thinking_ms}
        return {name: float(limit) for name, limit in given.items() if limit is not None}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything the results say that the record does not; plain data, ready for JSON and YAML.

    `scenario`: the resolved scenario, as it goes to `scenario.yaml`. `policy`: the registry's name or
    `package.module:Class`, with every parameter resolved in `policy_params`. `predicted_by`: who predicts output
    lengths for it (`stated_error`, `trace`, a function), None where it does not ask. `engine`: the resolved engine
    settings as in the scenario; `engine_defaults`: which of its keys the user did not write; `without_effect`: which of
    them the user wrote although the profile has no figures for them. `profile_asked_for`: the scenario's, if `profile`
    was taken in its place for the KV cache. `host_profile`: whose host and front end were taken, where that is another
    profile. `profile_error`: one line for people (`decode 1.9 %, mixed 4.8 % (held out)`), None when unknown;
    `profile_vllm_version`: with which vLLM its steps were measured; `profile_caveats`: sentences on what it lacks or
    assumes. `has_free_host`: whether a GPU's profile has no times of the host beside it. `share_in_range`: the share of
    steps inside the profile's measured range, None when nothing was measured (inline). `skipped`: trace rows left
    out by `on_empty: skip`; `unread`: how a trace's file was read and what in it was not, in sentences. `has_host`,
    `has_front_end`: whether the engine's thread, or the server's processes, take time in this run.
    `max_capture_size`: requests, or tokens, of the largest CUDA graph; 0 without any. `policy_holds`: whether the
    policy may hold requests back in an empty engine. `vllm_notes`: what to know of the simulated vLLM, in
    sentences. `cluster`: router and groups of a cluster, whose `engine` and `profile` are those of the first group.
    `class_names`: names of the integer priorities that have one; the others go by their number.
    """

    scenario_name: str
    scenario: Mapping[str, Any]
    policy: str
    policy_params: Mapping[str, Any] = field(default_factory=dict)
    predicted_by: str | None = None
    slo: SloLimits = field(default_factory=SloLimits)
    seed: int = 0
    engine: Mapping[str, Any] = field(default_factory=dict)
    engine_defaults: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()
    profile: str
    profile_asked_for: str | None = None
    profile_source: str | None = None
    profile_vllm_version: str | None = None
    host_profile: str | None = None
    profile_error: str | None = None
    profile_is_estimate: bool = False
    profile_caveats: tuple[str, ...] = ()
    has_free_host: bool = False
    share_in_range: float | None = None
    skipped: int = 0
    unread: tuple[str, ...] = ()
    has_host: bool = False
    has_front_end: bool = False
    max_capture_size: int = 0
    policy_holds: bool = False
    cluster: Mapping[str, Any] | None = None
    vllm_notes: tuple[str, ...] = ()
    class_names: Mapping[int, str] = field(default_factory=lambda: PRIORITY_NAMES)

    def class_name(self, priority: int) -> str:
        """`high`, `normal`, `low`, or the number."""
        return self.class_names.get(priority, str(priority))
