"""What a simulation leaves behind: one row per request, one row per span of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from simbatch.sim.workload.turns import Turns

FINISHED: Final = 0
REJECTED: Final = 1
UNFINISHED: Final = 2
REFUSED: Final = 3  # by the front end, with 503
STATUS_NAMES = ("finished", "rejected", "unfinished", "refused")

NEVER_PS = -1
ROWS_PER_SLICE = 65_536

SEGMENT_FIELDS = (
    "start_ps",  # when the device starts the first step
    "num_steps",
    "duration_ps",  # of the first step, on the device
    "slope_ps",  # each further step lasts this much longer
    "period_ps",  # from the first start to the second; 0: each step starts when the one before ends
    "period_slope_ps",  # each further period is this much longer
    "num_decodes",
    "num_regular",  # decodes whose gap to their previous token is the step's duration
    "decode_context",  # tokens computed before the first step, summed over the decodes; +num_decodes each further step
    "prefill_tokens",
    "num_prefills",
    "prefill_attention",  # sum of q*(2h+q) over the prefills: q tokens scheduled after h computed ones
    "num_running",  # requests that hold a seat
    "num_waiting",
    "free_blocks",  # after the last step
)
SEGMENT_DTYPE = np.dtype([(name, np.int64) for name in SEGMENT_FIELDS])
# A row's bytes: a third of what a growing list of ints takes. Fields that are always 0 need not be converted: prefills
# in a span, its period too if its steps follow on each other, and of one step slope and period.
pack_paced = Struct("=9q24x3q").pack
pack_span = Struct("=4q16x3q24x3q").pack
pack_step = Struct("=3q24x9q").pack

# When steps' tokens leave the front end, if host and front end take time: gaps in arithmetic progression, as segments.
TOKEN_FIELDS = (
    "start_ps",  # when the tokens of the step before the first one left
    "num_steps",
    "duration_ps",  # from there to the first step's tokens
    "slope_ps",
    "num_decodes",
    "num_regular",
)
TOKEN_DTYPE = np.dtype([(name, np.int64) for name in TOKEN_FIELDS])
pack_tokens = Struct(f"={len(TOKEN_FIELDS)}q").pack
pack_token = Struct("=3q8x2q").pack  # of one step


class StepRow(NamedTuple):
    """One step in full, as `--steps` asks for; requests are given by their index in the input."""

    step: int
    start_ps: int  # the device's
    end_ps: int
    scheduled: list[tuple[int, int, int]]  # (request, num_tokens, num_computed_tokens before)
    preempted: list[int]
    finished: list[int]
    free_blocks: int
    num_running: int
    num_waiting: int
    schedule_ps: int = NEVER_PS  # begin of schedule() on the host
    launched_ps: int = NEVER_PS  # the launch has returned
    updated_ps: int = NEVER_PS  # end of the update: its tokens exist
    replica: int = 0


@dataclass(frozen=True)
class RequestColumns:
    """One entry per request, in input order, or in order of sending where they are turns of sessions (`row` is there).

    Times are in ps, -1 where the event never came.
    """

    arrival_ps: NDArray[np.int64]
    scheduled_ps: NDArray[np.int64]
    first_token_ps: NDArray[np.int64]
    finish_ps: NDArray[np.int64]
    num_prompt_tokens: NDArray[np.int64]
    num_output_tokens: NDArray[np.int64]
    num_cached_tokens: NDArray[np.int64]
    num_preemptions: NDArray[np.int64]
    priority: NDArray[np.int64]
    status: NDArray[np.int8]
    request_id: list[str] | None = None
    tenant: list[str | None] | None = None
    reason: dict[int, str] = field(default_factory=dict)  # why a request was rejected or refused
    queued_ps: NDArray[np.int64] | None = None  # taken in by the engine; None: at its arrival
    client_first_token_ps: NDArray[np.int64] | None = None  # the network included; None: at the engine's
    client_finish_ps: NDArray[np.int64] | None = None
    replica: NDArray[np.int64] | None = None  # where each was sent last; None: there is one engine
    row: NDArray[np.int64] | None = None  # of the source, of turns of sessions (`RunRecord.turns`)
    num_known_tokens: NDArray[np.int64] | None = None  # of a turn's prompt, which its conversation has had computed

    def only(self, chosen: NDArray[np.int64]) -> RequestColumns:
        """Those of these indices, in that order."""
        values: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                values[each.name] = value[chosen]
            elif isinstance(value, list):
                values[each.name] = [value[i] for i in chosen.tolist()]
            elif isinstance(value, dict):
                values[each.name] = {j: value[i] for j, i in enumerate(chosen.tolist()) if i in value} if value else {}
        return RequestColumns(**values)

    def __len__(self) -> int:
        return len(self.arrival_ps)


@dataclass(frozen=True)
class ReplicaLog:
    """What one replica of a cluster did, beside its requests; `rows` and `token_rows` are slices of the run's."""

    group: int
    profile: str
    rows: slice
    token_rows: slice
    gaps: NDArray[np.int64]
    num_preemptions: int
    num_recomputed_tokens: int
    num_truncated: int
    end_ps: int
    num_gpu_blocks: int
    block_size: int
    front_end_late_ps: int


@dataclass(frozen=True)
class RunRecord:
    """Everything that metrics, files and pictures are made from.

    Of a cluster `segments` and `tokens` are those of one replica after the other, each in order of time; counts are
    totals, `num_gpu_blocks` has one null block for each replica.
    """

    requests: RequestColumns
    segments: NDArray[np.void]  # of SEGMENT_DTYPE, in order of time
    gaps: NDArray[np.int64]  # inter-token gaps (ps) that are not one step's duration: after a stall or a preemption
    num_preemptions: int
    end_ps: int
    num_gpu_blocks: int
    block_size: int
    client_overhead_ps: int
    event_loop_cpu_s: float
    num_recomputed_tokens: int = 0  # computed, lost in a preemption, and computed again
    num_truncated: int = 0  # requests whose outputs were cut where prompt and outputs reach max_model_len
    steps: list[StepRow] | None = None
    tokens: NDArray[np.void] | None = None  # of TOKEN_DTYPE, in order of time; None: at the ends of the segments' steps
    front_end_late_ps: int = 0  # tokens were ready and the front end still had those of the step before
    replicas: tuple[ReplicaLog, ...] = ()  # of a cluster
    num_sent_again: int = 0  # requests that a replica had when it went down
    num_lost_tokens: int = 0  # computed for them there
    turns: Turns | None = None  # what the source says of its rows, where they are turns of sessions
    num_not_sent: int = 0  # turns of sessions that ended with one that was rejected, refused or dropped

    @property
    def num_usable_blocks(self) -> int:
        """All KV blocks but the null block of each replica."""
        return self.num_gpu_blocks - self.num_replicas

    @property
    def num_replicas(self) -> int:
        """Engines: 1 without a cluster."""
        return max(1, len(self.replicas))

    def parts(self) -> Iterator[RunRecord]:
        """The run of each replica alone, with its own requests, one after the other."""
        if not self.replicas:
            yield self
        for i in range(len(self.replicas)):
            yield self.part(i)

    def part(self, index: int) -> RunRecord:
        """The run of one replica of a cluster."""
        log, requests = self.replicas[index], self.requests
        assert requests.replica is not None
        own = requests.only(np.flatnonzero(requests.replica == index))
        tokens = None if self.tokens is None else self.tokens[log.token_rows]
        known = {each.name for each in fields(self)}
        alike = {each.name: getattr(log, each.name) for each in fields(log) if each.name in known}
        rows: dict[str, Any] = {"requests": own, "segments": self.segments[log.rows], "tokens": tokens, "steps": None}
        return replace(self, **rows, **alike, replicas=())

    @cached_property
    def num_steps(self) -> int:
        """Steps simulated, spans counted in full."""
        return int(self.segments["num_steps"].sum())

    @property
    def token_rows(self) -> NDArray[np.void]:
        """When the steps' tokens leave the server: rows with at least the fields of TOKEN_DTYPE."""
        return self.segments if self.tokens is None else self.tokens

    @cached_property
    def client_first_token_ps(self) -> NDArray[np.int64]:
        """When the client has each request's first token, -1 where never."""
        return self._at_client(self.requests.client_first_token_ps, self.requests.first_token_ps)

    @cached_property
    def client_finish_ps(self) -> NDArray[np.int64]:
        """When the client has each request's last token, -1 where never."""
        return self._at_client(self.requests.client_finish_ps, self.requests.finish_ps)

    def _at_client(self, known: NDArray[np.int64] | None, engine_ps: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(engine_ps < 0, -1, engine_ps + self.client_overhead_ps) if known is None else known


class NamedRequests(NamedTuple):
    """Which requests each turn names as those that it waited for: `request[first[i]:first[i + 1]]`."""

    first: NDArray[np.int64]
    request: NDArray[np.int64]
    delay_ps: NDArray[np.int64]  # from the end of the last of them at its client to its sending; -1 without any


def named_requests(record: RunRecord) -> NamedRequests:
    """The requests that turns waited for, the one whose conversation a prompt goes on before the others.

    A turn is sent when those before it have ended, so the requests of a run have all that they name.
    """
    from simbatch.sim.workload.turns import named_of  # a run without sessions needs none of it

    turns, row = record.turns, record.requests.row
    assert turns is not None
    assert row is not None
    waits, named = named_of(turns)
    number = np.full(len(turns), -1)
    number[row] = np.arange(len(row))
    was_sent = number[waits] >= 0
    waits, named = number[waits[was_sent]], number[named[was_sent]]
    order = np.argsort(waits, kind="stable")
    waits, named = waits[order], named[order]
    ended = np.full(len(row), NEVER_PS)
    np.maximum.at(ended, waits, record.client_finish_ps[named])
    first = np.searchsorted(waits, np.arange(len(row) + 1))
    return NamedRequests(first, named, np.where(np.diff(first) > 0, record.requests.arrival_ps - ended, NEVER_PS))


def differences(expected: RunRecord, found: RunRecord, what: str) -> Iterator[str]:
    """Requests, and steps where they are kept, that fare otherwise in `found`; `what` was done to get it."""
    for name in (column.name for column in fields(expected.requests)):
        one, other = getattr(expected.requests, name), getattr(found.requests, name)
        if isinstance(one, np.ndarray) and not np.array_equal(one, other):
            i = int(np.flatnonzero(one != other)[0])
            yield f"{what}: {name} of request {i} is {one[i]} and {other[i]}"
    for row, again in zip(expected.steps or (), found.steps or (), strict=False):
        if row != again:
            yield f"{what}: step {row.step} is {row} and {again}"


def bounds(length: int) -> Iterator[slice]:
    """Slices of at most `ROWS_PER_SLICE` that cover 0 to `length`, in order."""
    for begin in range(0, length, ROWS_PER_SLICE):
        yield slice(begin, min(begin + ROWS_PER_SLICE, length))


def slices(segments: NDArray[np.void]) -> Iterator[NDArray[np.void]]:
    """Views of consecutive segments; none of them is empty."""
    for part in bounds(len(segments)):
        yield segments[part]
