"""Turns of sessions on their way: one is sent when those that it waits for have ended and its delay has passed.

A turn that is rejected, refused or dropped ends its session: what has been sent goes on, the rest is never sent. With
a limit on sessions (users) the next one begins when another has ended.
"""

from __future__ import annotations

import heapq
import time
from array import array
from typing import TYPE_CHECKING

from simbatch.sim.engine.traffic import FAR, PROGRESS_INTERVAL, Traffic
from simbatch.sim.scheduler.request import FIRST_CONVERSED, PrefixKeys, Request

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestChunk
    from simbatch.sim.workload.turns import Turns


class SessionTraffic(Traffic):
    """The turns of all sessions; requests are numbered in the order of their sending."""

    num_sent: int
    num_to_send: int  # turns that may still be sent
    rows: Rows
    _turns: Turns
    _ready: list[tuple[int, int]]  # a heap of (when it is sent, row): those who waited and need not any more
    _starts: list[int]  # first row of each session, in the order of their own times
    _beside: dict[int, list[int]]  # by session: other rows that wait for nobody but its beginning
    _num_begun: int
    _users: list[int] | None  # a heap of when each is free for a session; None: sessions begin at their own times
    _num_awaited: array[int]
    _after_ps: array[int]  # when the last of those that a row waits for had ended
    _num_unsent: array[int]  # by session
    _num_in_flight: array[int]  # by session
    _has_failed: bytearray  # by session
    _conversations: Conversations | None

    @property
    def is_limited(self) -> bool:
        """Whether the end of a request lets another one be sent."""
        return True

    @property
    def is_over(self) -> bool:
        """Whether nobody will be sent any more."""
        return self.num_to_send == 0

    def _begin(self) -> None:
        turns = self._turns = self._source.turns  # type: ignore[attr-defined]
        rows = self.rows = Rows()
        begin = time.process_time()
        for chunk in self._chunks:
            rows.add(chunk)
        self.load_cpu_s += time.process_time() - begin
        n, num_sessions = len(rows.arrival_ps), turns.num_sessions
        self.num_sent, self.num_to_send = 0, n
        self._num_awaited, self._after_ps = array("q", turns.num_awaited), array("q", [0]) * n
        self._num_unsent, self._num_in_flight = array("q", [0]) * num_sessions, array("q", [0]) * num_sessions
        for number in turns.session:
            self._num_unsent[number] += 1
        self._has_failed = bytearray(num_sessions)
        self._ready, self._num_begun = [], 0
        firsts = sorted((row for row in range(n) if not turns.num_awaited[row]), key=rows.arrival_ps.__getitem__)
        self._starts, self._beside = [], {}
        has_start = bytearray(num_sessions)
        for row in firsts:
            session = turns.session[row]
            if has_start[session]:
                self._beside.setdefault(session, []).append(row)
            else:
                self._starts.append(row)
            has_start[session] = True
        self._users = None if turns.max_sessions is None else [0] * turns.max_sessions
        self._recorder.row = array("q")
        self._conversations = None if self._keys is None else Conversations(turns, rows, self._keys)
        self._look()

    def left(self, request: Request, at_ps: int) -> None:
        """A request has left the server; who waited for it alone is sent when its delay has passed at the client."""
        self.num_gone += 1
        turns, row, at_ps = self._turns, request.row, at_ps + self._network_ps
        session = turns.session[row]
        self._num_in_flight[session] -= 1
        if request.finish_ps < 0:
            self._fail(session)
        elif not self._has_failed[session]:
            for i in range(turns.first[row], turns.first[row + 1]):
                self._end_of_wait(turns.waiting[i], at_ps)
        if self._users is not None and not self._num_unsent[session] and not self._num_in_flight[session]:
            heapq.heappush(self._users, at_ps)
        self._look()
        if self._progress is not None and not self.num_gone % PROGRESS_INTERVAL:
            self._progress(self.num_gone)

    def _end_of_wait(self, row: int, at_ps: int) -> None:
        """One of those that a row waits for has ended."""
        after_ps = self._after_ps[row]
        if at_ps > after_ps:
            self._after_ps[row] = after_ps = at_ps
        self._num_awaited[row] -= 1
        if not self._num_awaited[row]:
            sent_ps = max(self.rows.arrival_ps[row], after_ps + self._turns.delay_ps[row])
            heapq.heappush(self._ready, (sent_ps, row))

    def _fail(self, session: int) -> None:
        """A turn was not served: the session has no further ones."""
        self._has_failed[session] = True
        num_unsent = self._num_unsent[session]
        self._num_unsent[session] = 0
        self.num_to_send -= num_unsent
        self.num_not_sent += num_unsent

    def _look(self) -> None:
        ready = self._ready
        while ready and self._has_failed[self._turns.session[ready[0][1]]]:
            heapq.heappop(ready)
        next_ps = self._start_ps()
        self.next_ps = ready[0][0] if ready and ready[0][0] <= next_ps else next_ps

    def _start_ps(self) -> int:
        """When the next session begins, as far as it is known."""
        if self._num_begun == len(self._starts) or self._users == []:
            return FAR
        own_ps = self.rows.arrival_ps[self._starts[self._num_begun]]
        return own_ps if self._users is None else max(own_ps, self._users[0])

    def _pop(self, arrival_ps: int) -> Request:
        if self._ready and self._ready[0][0] == arrival_ps:
            row = heapq.heappop(self._ready)[1]
        else:
            row = self._starts[self._num_begun]
            self._num_begun += 1
            if self._users is not None:
                heapq.heappop(self._users)
            for other in self._beside.pop(self._turns.session[row], ()):
                heapq.heappush(self._ready, (max(arrival_ps, self.rows.arrival_ps[other]), other))
        session = self._turns.session[row]
        self._num_unsent[session] -= 1
        self._num_in_flight[session] += 1
        self.num_to_send -= 1
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
            self._conversations.name_blocks(request, row)
        recorder.expect_one(request)
        return request


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


class Conversations:
    """Names of the blocks of turns, prompts and answers: the next turn finds what the one before has computed.

    A prompt that is as long as the parent's prompt and answer begins with both: of 100 tokens and 20 of answer the
    first 7 blocks of 16 are full, and a next prompt of 150 tokens has the same 7, then others. Where the file has
    hashes they say what is equal; the answer's are those of the first turn that goes on with it.
    """

    def __init__(self, turns: Turns, rows: Rows, keys: PrefixKeys) -> None:
        self._turns, self._rows, self._keys = turns, rows, keys
        self._block_size = keys.block_size
        self._next_name = FIRST_CONVERSED
        self._num_children = array("q", [0]) * len(turns.parent)  # whose conversations go on, and are still to come
        self._child: dict[int, int] = {}  # first row that goes on with one, where there are hashes
        for row, parent in enumerate(turns.parent):
            if parent >= 0:
                self._num_children[parent] += 1
                if rows.hash_ids:
                    self._child.setdefault(parent, row)
        self._known: dict[int, tuple[list[int], int, int]] = {}  # by row: names, prompt and all tokens
        self._systems: dict[int, list[int]] = {}

    def name_blocks(self, request: Request, row: int) -> None:
        """Give a request the names of its blocks; those with tokens of its answer others find when it has ended."""
        num_prompt, num_all = request.num_prompt_tokens, request.num_prompt_tokens + request.max_tokens
        hash_ids = self._rows.hash_ids[row] if row < len(self._rows.hash_ids) else ()
        if hash_ids:
            names = self._hashed(row, hash_ids, num_prompt, num_all)
        else:
            names = self._unhashed(row, num_prompt, num_all)
        num_of_prompt = num_prompt // self._block_size
        request.keys, request.answer_keys = names[:num_of_prompt], names[num_of_prompt:]

    def _hashed(self, row: int, hash_ids: tuple[int, ...], num_prompt: int, num_all: int) -> list[int]:
        """By the file's hashes; by those of the turn that goes on, if they begin with this one's full ones."""
        child = self._child.get(row, -1)
        if child >= 0 and child < len(self._rows.hash_ids):
            others = self._rows.hash_ids[child]
            num_full = min(num_prompt // self._keys.hash_block_tokens, len(hash_ids))
            if len(others) >= num_full and others[:num_full] == hash_ids[:num_full]:
                num_known = min(num_all, self._rows.num_prompt_tokens[child])
                return self._keys.of(others, num_known)
        return self._keys.of(hash_ids, num_prompt)

    def _unhashed(self, row: int, num_prompt: int, num_all: int) -> list[int]:
        """By the conversation that the prompt goes on, and new ones from where it parts."""
        names = self._common(row, num_prompt)
        num_new = num_all // self._block_size - len(names)
        names = [*names, *range(self._next_name, self._next_name + num_new)]
        self._next_name += num_new
        if self._num_children[row]:
            self._known[row] = names, num_prompt, num_all
        return names

    def _common(self, row: int, num_prompt: int) -> list[int]:
        """Names of the blocks that the prompt has in common with what was before it."""
        parent = self._turns.parent[row]
        known = self._known.get(parent) if parent >= 0 else None
        num_common = 0
        if known is not None:
            names, num_before, num_conversation = known
            self._num_children[parent] -= 1
            if not self._num_children[parent]:
                del self._known[parent]
            if num_prompt >= num_before:
                num_common = num_conversation if num_prompt >= num_conversation else num_before
                return names[: num_common // self._block_size]
        num_system = min(self._turns.num_system_tokens, num_prompt) // self._block_size
        return self._system(self._turns.session[row])[:num_system] if num_system else []

    def _system(self, session: int) -> list[int]:
        """Names of the blocks of a session's system prompt."""
        number = session if self._turns.system is None else self._turns.system[session]
        if number not in self._systems:
            num_blocks = self._turns.num_system_tokens // self._block_size
            self._systems[number] = list(range(self._next_name, self._next_name + num_blocks))
            self._next_name += num_blocks
        return self._systems[number]
