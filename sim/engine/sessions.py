"""Turns of sessions on their way: one is sent when those that it waits for have ended and its delay has passed.

A turn that is rejected, refused or dropped ends its session at that moment: what has been sent goes on, what would be
sent later is not. With a limit on sessions (users) the next one begins when another has ended.
"""

from __future__ import annotations

import heapq
import time
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.traffic import FAR, PROGRESS_INTERVAL, Traffic
from simbatch.sim.scheduler.names import Conversations, PrefixKeys
from simbatch.sim.scheduler.request import Request
from simbatch.sim.workload.turns import turns_in

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestChunk, RequestSource
    from simbatch.sim.workload.turns import Turns


class Rows:
    """All rows of a source: a turn may stand anywhere behind the one that it waits for."""

    def __init__(self) -> None:
        self.arrival_ps, self.num_prompt_tokens, self.num_output_tokens = array("q"), array("q"), array("q")
        self.priority = array("q")
        self.predicted_output_tokens = array("d")
        self.request_id: list[str] = []
        self.tenant: list[str | None] = []  # may be shorter
        self.hash_ids: list[tuple[int, ...]] = []  # may be shorter

    def add(self, chunk: RequestChunk) -> None:
        """The next rows."""
        known = len(self.arrival_ps)
        self.arrival_ps.extend(chunk.arrival_ps)
        self.num_prompt_tokens.extend(chunk.num_prompt_tokens)
        self.num_output_tokens.extend(chunk.num_output_tokens)
        self.priority.extend(chunk.priority or [0] * len(chunk.arrival_ps))
        self.predicted_output_tokens.extend(chunk.predicted_output_tokens or ())
        self.request_id += chunk.request_id or ()
        if chunk.tenant:  # the first one may stand far down in a file
            self.tenant += [None] * (known - len(self.tenant))
            self.tenant += chunk.tenant
        if chunk.hash_ids:
            self.hash_ids += [()] * (known - len(self.hash_ids))
            self.hash_ids += chunk.hash_ids


class SessionTraffic(Traffic):
    """The turns of all sessions; requests are numbered in the order of their sending."""

    @property
    def is_limited(self) -> bool:
        """Whether the end of a request lets another one be sent."""
        return True

    @property
    def is_over(self) -> bool:
        """Whether nobody will be sent any more."""
        return self.num_sent == len(self._num_awaited) or (self.num_sent == self.num_gone and self.next_ps >= FAR)

    @property
    def num_not_sent(self) -> int:
        """Turns of sessions that ended early, in a run that is over."""
        return len(self._num_awaited) - self.num_sent

    def _begin(self) -> None:
        turns: Turns = self._source.turns  # type: ignore[attr-defined]
        rows, begin = Rows(), time.process_time()
        for chunk in self._chunks:
            rows.add(chunk)
        self.load_cpu_s += time.process_time() - begin
        n, num_sessions = len(rows.arrival_ps), turns.num_sessions
        self._turns, self.rows = turns, rows
        self.num_sent = 0
        self._num_awaited = array("q", turns.num_awaited)
        self._after_ps = array("q", [0]) * n  # when the last of those that a row waits for had ended
        zeros = array("q", [0]) * num_sessions  # by session
        self._num_unsent, self._num_in_flight, self._num_ready = zeros, zeros[:], zeros[:]
        self._ended_ps = zeros[:]  # when the last of its turns until now had ended
        self._failed_ps: dict[int, int] = {}  # when a turn was not served
        for number in turns.session:
            self._num_unsent[number] += 1
        self._ready: list[tuple[int, int]] = []  # heap of (when it is sent, row): who waited and need not any more
        self._starts: list[int] = []  # first row of each session, in the order of their own times
        self._beside: dict[int, list[int]] = {}  # by session: other rows that wait for nobody but its beginning
        self._num_begun, has_start = 0, bytearray(num_sessions)
        for row in sorted((row for row in range(n) if not turns.num_awaited[row]), key=rows.arrival_ps.__getitem__):
            session = turns.session[row]
            if has_start[session]:
                self._beside.setdefault(session, []).append(row)
            else:
                self._starts.append(row)
            has_start[session] = True
        # a heap of when each user is free for a session; None: sessions begin at their own times
        self._users: list[int] | None = None if turns.max_sessions is None else [0] * turns.max_sessions
        self._recorder.row = array("q")
        self._conversations: Conversations | None = None
        if self._keys is not None:
            self._conversations = Conversations(turns, rows.num_prompt_tokens, rows.hash_ids, self._keys)
            self._recorder.num_known_tokens = array("q")
        self._look()

    def left(self, request: Request, at_ps: int) -> None:
        """A request has left the server; who waited for it alone is sent when its delay has passed at the client."""
        self.num_gone += 1
        turns, row, at_ps = self._turns, request.row, at_ps + self._network_ps
        session = turns.session[row]
        self._num_in_flight[session] -= 1
        if at_ps > self._ended_ps[session]:
            self._ended_ps[session] = at_ps
        if request.finish_ps < 0:
            self._fail(session, at_ps)
        else:
            for i in range(turns.first[row], turns.first[row + 1]):
                self._end_of_wait(turns.waiting[i], session, at_ps)
        if self._users is not None and self._is_over(session):
            heapq.heappush(self._users, self._ended_ps[session])
        self._look()
        if self._progress is not None and not self.num_gone % PROGRESS_INTERVAL:
            self._progress(self.num_gone)

    def _end_of_wait(self, row: int, session: int, at_ps: int) -> None:
        """One of those that a row waits for has ended."""
        after_ps = self._after_ps[row]
        if at_ps > after_ps:
            self._after_ps[row] = after_ps = at_ps
        self._num_awaited[row] -= 1
        if not self._num_awaited[row]:
            self._make_ready(row, session, max(self.rows.arrival_ps[row], after_ps + self._turns.delay_ps[row]))

    def _make_ready(self, row: int, session: int, sent_ps: int) -> None:
        """A row will be sent then, unless its session fails before: whichever is heard of first."""
        if sent_ps <= self._failed_ps.get(session, FAR):
            heapq.heappush(self._ready, (sent_ps, row))
            self._num_ready[session] += 1

    def _fail(self, session: int, at_ps: int) -> None:
        """A turn was not served: what would be sent later is not sent."""
        self._failed_ps[session] = min(at_ps, self._failed_ps.get(session, FAR))
        if not self._num_ready[session]:  # usually: an overloaded server refuses many, and others' turns are many
            return
        of_session = self._turns.session
        kept = [each for each in self._ready if of_session[each[1]] != session or each[0] <= at_ps]
        self._num_ready[session] -= len(self._ready) - len(kept)
        heapq.heapify(kept)
        self._ready = kept

    def _is_over(self, session: int) -> bool:
        """Whether all turns of a session have ended that will ever be sent."""
        is_done = not self._num_unsent[session] or session in self._failed_ps
        return is_done and not self._num_in_flight[session] and not self._num_ready[session]

    def _look(self) -> None:
        next_ps = self._start_ps()
        self.next_ps = self._ready[0][0] if self._ready and self._ready[0][0] <= next_ps else next_ps

    def _start_ps(self) -> int:
        """When the next session begins, as far as it is known."""
        if self._num_begun == len(self._starts) or self._users == []:
            return FAR
        own_ps = self.rows.arrival_ps[self._starts[self._num_begun]]
        return own_ps if self._users is None else max(own_ps, self._users[0])

    def _pop(self) -> Request:
        arrival_ps = self.next_ps
        if self._ready and self._ready[0][0] == arrival_ps:
            row = heapq.heappop(self._ready)[1]
            session = self._turns.session[row]
            self._num_ready[session] -= 1
        else:
            row = self._starts[self._num_begun]
            session = self._turns.session[row]
            self._num_begun += 1
            if self._users is not None:
                heapq.heappop(self._users)
            for other in self._beside.pop(session, ()):
                self._make_ready(other, session, max(arrival_ps, self.rows.arrival_ps[other]))
        self._num_unsent[session] -= 1
        self._num_in_flight[session] += 1
        request = self._request(row, session, arrival_ps)
        self._look()
        return request

    def _request(self, row: int, session: int, arrival_ps: int) -> Request:
        rows, turns, recorder = self.rows, self._turns, self._recorder
        num_prompt, num_output = rows.num_prompt_tokens[row], rows.num_output_tokens[row]
        if num_prompt + num_output > self._max_model_len:
            num_output = self._max_model_len - num_prompt
            recorder.num_truncated += num_output > 0
        name = rows.request_id[row] if rows.request_id else str(row)
        request = Request(self.num_sent, name, arrival_ps, num_prompt, num_output, rows.priority[row])
        request.row, request.turn = row, turns.turn[row]
        request.session_id = turns.name(row)
        request.has_next_turn = turns.first[row] < turns.first[row + 1]
        if row < len(rows.tenant):
            request.tenant = rows.tenant[row]
        if rows.predicted_output_tokens:
            request.predicted_output_tokens = rows.predicted_output_tokens[row]
        self.num_sent += 1
        if self._conversations is not None:
            # those with tokens of its answer others find when it has ended
            names, request.num_known_tokens = self._conversations.of(row, num_prompt, num_prompt + num_output)
            request.share(names, num_prompt // self._conversations.block_size)
        recorder.expect_one(request)
        return request


def traffic_of(
    source: RequestSource,
    recorder: Recorder,
    max_model_len: int,
    keys: PrefixKeys | None,
    progress: Callable[[int], None] | None,
    network_ps: int = 0,
) -> Traffic:
    """What sends the requests of a source: one after the other, or turn by turn where they are turns of sessions."""
    kind = Traffic if turns_in(source) is None else SessionTraffic
    return kind(source, recorder, max_model_len, keys, progress, network_ps)
