"""Writes down what happens, in columns that stay small: one entry per request, one row per span of steps."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.engine.record import (
    FINISHED,
    REFUSED,
    REJECTED,
    UNFINISHED,
    RequestColumns,
    StepRow,
)
from simbatch.sim.scheduler.request import NEVER, Request

if TYPE_CHECKING:
    from simbatch.sim.engine.resources import Step
    from simbatch.sim.workload.chunk import RequestChunk


REQUEST_COLUMNS = (
    "queued_ps", "first_sent_ps", "finish_sent_ps", "arrival_ps", "scheduled_ps", "first_token_ps", "finish_ps",
    "num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions", "priority", "status",
    "request_id", "tenant", "reason",
)  # fmt: skip


class Recorder:
    """The growing form of a `RunRecord`."""

    def __init__(self, keep_steps: bool = False, is_timed: bool = False) -> None:
        self.is_timed = is_timed  # host or front end take time, so that tokens come after the device's end
        self.tokens = bytearray()  # rows of `TOKEN_DTYPE`
        self.queued_ps = array("q")
        self.first_sent_ps = array("q")
        self.finish_sent_ps = array("q")
        self.arrival_ps = array("q")
        self.scheduled_ps = array("q")
        self.first_token_ps = array("q")
        self.finish_ps = array("q")
        self.num_prompt_tokens = array("q")
        self.num_output_tokens = array("q")
        self.num_cached_tokens = array("q")
        self.num_preemptions = array("q")
        self.priority = array("q")
        self.status = array("b")
        self.request_id: list[str] = []
        self.tenant: list[str | None] = []
        self.reason: dict[int, str] = {}
        self.segments = bytearray()  # rows of `SEGMENT_DTYPE`
        self.gaps = array("q")
        self.num_truncated = 0
        self.steps: list[StepRow] | None = [] if keep_steps else None
        self.number = 0  # of the replica
        self.row: array[int] | None = None  # of the source, where requests are turns of sessions
        self.num_known_tokens: array[int] | None = None  # where blocks of conversations have names
        self.replica: array[int] | None = None  # in a cluster: where each request was sent last

    def new_column(self) -> array[int]:
        """Of zeros, for the requests that are known already."""
        return array("q", [0]) * len(self.status)

    def beside(self, number: int) -> Recorder:
        """One for the steps of another replica, which writes requests down in the same columns."""
        other = Recorder(self.steps is not None, self.is_timed)
        other.number = number
        for name in REQUEST_COLUMNS:
            setattr(other, name, getattr(self, name))
        return other

    def step(self, step: Step, finished: list[Request], free_blocks: int, num_running: int, num_waiting: int) -> None:
        """A step in full; the counts are those after its update."""
        assert self.steps is not None
        self.steps.append(
            StepRow(
                step=len(self.steps),
                replica=self.number,
                start_ps=step.start_ps,
                end_ps=step.end_ps,
                schedule_ps=step.schedule_ps,
                launched_ps=step.launched_ps,
                updated_ps=step.updated_ps,
                scheduled=[(e.request.index, e.num_tokens, e.num_computed_tokens) for e in step.batch.entries],
                preempted=[request.index for request in step.batch.preempted],
                finished=[request.index for request in finished],
                free_blocks=free_blocks,
                num_running=num_running,
                num_waiting=num_waiting,
            )
        )

    def expect(self, chunk: RequestChunk) -> None:
        """Make room for the requests of a chunk."""
        n = len(chunk.arrival_ps)
        never, zeros = array("q", [NEVER]) * n, array("q", [0]) * n
        self.arrival_ps.extend(array("q", chunk.arrival_ps))  # an array is copied whole, a list number by number
        self.num_prompt_tokens.extend(array("q", chunk.num_prompt_tokens))
        self.priority.extend(chunk.priority or zeros)
        for column in (self.scheduled_ps, self.first_token_ps, self.finish_ps):
            column.extend(never)
        if self.is_timed:
            for column in (self.queued_ps, self.first_sent_ps, self.finish_sent_ps):
                column.extend(never)
        for column in (self.num_output_tokens, self.num_cached_tokens, self.num_preemptions):
            column.extend(zeros)
        self.status.extend(array("b", [UNFINISHED]) * n)
        if self.replica is not None:
            self.replica.extend(zeros)
        self.request_id.extend(chunk.request_id or ())
        if chunk.tenant:  # the first tenant may stand far down in a file
            self.tenant += [None] * (len(self.status) - n - len(self.tenant))
            self.tenant += chunk.tenant

    def expect_one(self, request: Request) -> None:
        """Make room for a turn that is sent; its index is the next one."""
        assert self.row is not None
        self.row.append(request.row)
        if self.num_known_tokens is not None:
            self.num_known_tokens.append(request.num_known_tokens)
        self.arrival_ps.append(request.arrival_ps)
        self.num_prompt_tokens.append(request.num_prompt_tokens)
        self.priority.append(request.priority)
        for column in (self.scheduled_ps, self.first_token_ps, self.finish_ps):
            column.append(NEVER)
        if self.is_timed:
            for column in (self.queued_ps, self.first_sent_ps, self.finish_sent_ps):
                column.append(NEVER)
        for column in (self.num_output_tokens, self.num_cached_tokens, self.num_preemptions):
            column.append(0)
        self.status.append(UNFINISHED)
        if self.replica is not None:
            self.replica.append(0)
        self.request_id.append(request.request_id)
        if request.tenant is not None or self.tenant:
            self.tenant += [None] * (len(self.status) - 1 - len(self.tenant))
            self.tenant.append(request.tenant)

    def rejected(self, request: Request, reason: str) -> None:
        """A request was turned away on arrival."""
        self.status[request.index] = REJECTED
        self.reason[request.index] = reason

    def refused(self, request: Request, reason: str) -> None:
        """A request was turned away by the front end, with 503."""
        self.status[request.index] = REFUSED
        self.reason[request.index] = reason

    def finished(self, request: Request) -> None:
        """A request has all its tokens."""
        self.status[request.index] = FINISHED
        self.left(request)

    def left(self, request: Request) -> None:
        """Write down how far a request came."""
        i = request.index
        self.scheduled_ps[i] = request.scheduled_ps
        self.first_token_ps[i] = request.first_token_ps
        self.finish_ps[i] = request.finish_ps
        self.num_output_tokens[i] = request.num_output_tokens
        self.num_cached_tokens[i] = request.num_cached_tokens
        self.num_preemptions[i] = request.num_preemptions
        if self.is_timed:
            self.queued_ps[i] = request.queued_ps
            self.first_sent_ps[i] = request.first_sent_ps
            self.finish_sent_ps[i] = request.finish_sent_ps

    def _client_ps(self, sent_ps: array[int], network_ps: int | NDArray[np.int64]) -> NDArray[np.int64] | None:
        """When a client gets what left then."""
        times = _column(sent_ps)
        return np.where(times < 0, times, times + network_ps) if self.is_timed else None

    def columns(self, network_ps: int | NDArray[np.int64]) -> RequestColumns:
        """The requests; the network takes so long, each its own way or all alike."""
        return RequestColumns(
            arrival_ps=_column(self.arrival_ps),
            scheduled_ps=_column(self.scheduled_ps),
            first_token_ps=_column(self.first_token_ps),
            finish_ps=_column(self.finish_ps),
            num_prompt_tokens=_column(self.num_prompt_tokens),
            num_output_tokens=_column(self.num_output_tokens),
            num_cached_tokens=_column(self.num_cached_tokens),
            num_preemptions=_column(self.num_preemptions),
            priority=_column(self.priority),
            status=np.array(self.status, dtype=np.int8),
            request_id=self.request_id or None,
            tenant=self.tenant or None,
            reason=self.reason,
            queued_ps=_column(self.queued_ps) if self.is_timed else None,
            client_first_token_ps=self._client_ps(self.first_sent_ps, network_ps),
            client_finish_ps=self._client_ps(self.finish_sent_ps, network_ps),
            replica=None if self.replica is None else np.array(self.replica),
            row=None if self.row is None else np.array(self.row),
            num_known_tokens=None if self.num_known_tokens is None else np.array(self.num_known_tokens),
        )


def _column(values: array[int]) -> NDArray[np.int64]:
    """The values as they lie in memory; nothing is written down any more."""
    return np.frombuffer(values, dtype=np.int64)
