"""What the turns of sessions have in common: rows that are known from the beginning, and names of their KV blocks."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from simbatch.sim.scheduler.request import FIRST_CONVERSED, PrefixKeys, Request

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestChunk
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


class Conversations:
    """Names of the blocks of turns, prompts and answers: the next turn finds what the one before has computed.

    A prompt that is as long as the parent's prompt and answer begins with both: of 100 tokens and 20 of answer the
    first 7 blocks of 16 are full, and a next prompt of 150 tokens has the same 7, then others. Where the file has
    hashes they say what is equal; the answer's are those of the first turn that goes on with it.

    Where all turns of a session go on with the one before, their blocks behind the system prompt are one run and need
    no names (`PrefixKVCache`), unless a preemption gave them some.
    """

    def __init__(self, turns: Turns, rows: Rows, keys: PrefixKeys) -> None:
        self._turns, self._rows, self._keys = turns, rows, keys
        self._block_size = keys.block_size
        self._next_name = FIRST_CONVERSED
        self._num_children = array("q", [0]) * len(turns.parent)  # whose conversations go on, and are still to come
        self._child: dict[int, int] = {}  # first row that goes on with one, where there are hashes
        self._is_run = bytearray([not rows.hash_ids]) * turns.num_sessions  # by session
        for row, parent in enumerate(turns.parent):
            if parent >= 0:
                self._num_children[parent] += 1
                if rows.hash_ids:
                    self._child.setdefault(parent, row)
            if not self._goes_on(row, parent):
                self._is_run[turns.session[row]] = False
        # By row of a parent: the names that it has, how long its prompt and all of it were, and its conversation
        self._known: dict[int, tuple[list[int], int, int, int]] = {}
        self._systems: dict[int, list[int]] = {}

    def _goes_on(self, row: int, parent: int) -> bool:
        """Whether a row's prompt goes on with all of the turn that it waits for, and no other prompt does."""
        if parent < 0:
            return self._turns.num_awaited[row] == 0
        rows = self._rows
        before = rows.num_prompt_tokens[parent] + rows.num_output_tokens[parent]
        return self._num_children[parent] == 1 and rows.num_prompt_tokens[row] >= before

    def name_blocks(self, request: Request, row: int) -> None:
        """Give a request the names of its blocks; those with tokens of its answer others find when it has ended."""
        num_prompt = request.num_prompt_tokens
        num_all = num_prompt + request.max_tokens
        hash_ids = self._rows.hash_ids[row] if row < len(self._rows.hash_ids) else ()
        before = self._known.get(self._turns.parent[row])
        if hash_ids:
            names = self._hashed(row, hash_ids, num_prompt, num_all)
            if before is not None:
                self._know(request, before[2], _num_alike(before[0], names))
        else:
            names = self._common(request, row)
            if before is not None and num_prompt >= before[1]:
                self._know(request, before[2], len(names) if request.conversation < 0 else before[2])
            if request.conversation >= 0:
                request.keys = names
                return
            num_new = num_all // self._block_size - len(names)
            names = [*names, *range(self._next_name, self._next_name + num_new)]
            self._next_name += num_new
        num_of_prompt = num_prompt // self._block_size
        request.keys, request.answer_keys = names[:num_of_prompt], names[num_of_prompt:]

    def _know(self, request: Request, num_before: int, num_blocks: int) -> None:
        """So many blocks are of the conversation before, but a last token of it, or of the prompt, is to compute."""
        num_tokens = min(num_before, request.num_prompt_tokens) - 1
        request.num_known_tokens = min(num_blocks, num_tokens // self._block_size) * self._block_size

    def ended(self, request: Request) -> None:
        """A turn has all its tokens: what is known of it for the next one."""
        if self._num_children[request.row]:
            num_prompt = request.num_prompt_tokens
            keys = [key for key in request.keys if key >= 0]  # a preemption may have given it some of its own
            self._known[request.row] = keys, num_prompt, num_prompt + request.max_tokens, request.conversation

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

    def _common(self, request: Request, row: int) -> list[int]:
        """Names of the blocks that the prompt has in common with what was before it."""
        parent, num_prompt = self._turns.parent[row], request.num_prompt_tokens
        known = self._known.get(parent) if parent >= 0 else None
        if known is not None:
            names, num_before, num_conversation, conversation = known
            self._num_children[parent] -= 1
            if not self._num_children[parent]:
                del self._known[parent]
            request.conversation = conversation
            if conversation >= 0:
                return names
            if num_prompt >= num_before:
                num_common = num_conversation if num_prompt >= num_conversation else num_before
                return names[: num_common // self._block_size]
        elif parent < 0 and self._is_run[self._turns.session[row]]:
            request.conversation = request.index
        return self._system(self._turns.session[row])[: self._num_system(row, num_prompt)]

    def _num_system(self, row: int, num_prompt: int) -> int:
        """Full blocks of the system prompt that a prompt has."""
        num_tokens = self._turns.num_system_tokens
        return (num_tokens if num_tokens < num_prompt else num_prompt) // self._block_size

    def _system(self, session: int) -> list[int]:
        """Names of the blocks of a session's system prompt."""
        number = session if self._turns.system is None else self._turns.system[session]
        if number not in self._systems:
            num_blocks = self._turns.num_system_tokens // self._block_size
            self._systems[number] = list(range(self._next_name, self._next_name + num_blocks))
            self._next_name += num_blocks
        return self._systems[number]


def _num_alike(some: list[int], others: list[int]) -> int:
    """How many names both begin with."""
    num = 0
    for one, other in zip(some, others):  # noqa: B905 - one may go on
        if one != other:
            break
        num += 1
    return num
