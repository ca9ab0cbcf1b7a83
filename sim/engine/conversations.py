"""What the turns of sessions have in common: rows that are known from the beginning, and names of their KV blocks."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from simbatch.sim.scheduler.names import FIRST_CONVERSED, MOST_BLOCKS, PrefixKeys, cut, num_alike, num_in
from simbatch.sim.scheduler.request import Request

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


# A row's names, how many tokens its prompt and all of it have, and whether further names may follow on its last one
Known = tuple[list[int], int, int, bool]


class Conversations:
    """Names of the blocks of turns, prompts and answers: the next turn finds what the one before has computed.

    A prompt that is as long as the parent's prompt and answer begins with both: of 100 tokens and 20 of answer the
    first 7 blocks of 16 are full, and a next prompt of 150 tokens has the same 7, then others. Names of a conversation
    follow on each other, so that the prefix cache has it as one run, until branches part. Where the file has hashes
    they say what is equal; the answer's are those of the first turn that goes on with it.
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
        self._known: dict[int, Known] = {}  # by row of a parent
        self._systems: dict[int, list[int]] = {}

    def name_blocks(self, request: Request, row: int) -> None:
        """Give a request the names of its blocks; those with tokens of its answer others find when it has ended."""
        num_prompt = request.num_prompt_tokens
        num_all = num_prompt + request.max_tokens
        hash_ids = self._rows.hash_ids[row] if row < len(self._rows.hash_ids) else ()
        before = self._before(row)
        if hash_ids:
            names, may_follow = self._hashed(row, hash_ids, num_prompt, num_all), False
        else:
            names, may_follow = self._unhashed(row, before, num_prompt, num_all // self._block_size)
        if before is not None:
            # so many blocks are of the conversation before, but a last token of it, or of the prompt, is to compute
            num_blocks = min(num_alike(before[0], names), (min(before[2], num_prompt) - 1) // self._block_size)
            request.num_known_tokens = num_blocks * self._block_size
        request.share(names, num_prompt // self._block_size)
        if self._num_children[row]:
            self._known[row] = names, num_prompt, num_all, may_follow

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

    def _before(self, row: int) -> Known | None:
        """What is known of the conversation that a row's prompt goes on; forgotten with the last that does."""
        parent = self._turns.parent[row]
        known = self._known.get(parent) if parent >= 0 else None
        if known is not None:
            self._num_children[parent] -= 1
            if not self._num_children[parent]:
                del self._known[parent]
        return known

    def _unhashed(self, row: int, before: Known | None, num_prompt: int, num_blocks: int) -> tuple[list[int], bool]:
        """By the conversation that the prompt goes on, and new ones from where it parts; whether more may follow."""
        names, follows = self._common(row, before, num_prompt)
        num_new = num_blocks - num_in(names)
        if num_new <= 0:
            return names, follows
        if follows:
            return [*names[:-1], names[-1] + num_new], True
        begin = self._next_name
        self._next_name += MOST_BLOCKS
        return [*names, begin, begin + num_new], True

    def _common(self, row: int, before: Known | None, num_prompt: int) -> tuple[list[int], bool]:
        """Names of what the prompt has in common with what was before it, and whether its own may follow on them."""
        if before is not None:
            names, num_before, num_conversation, may_follow = before
            if num_prompt >= num_conversation:
                parent = self._turns.parent[row]
                if may_follow and parent in self._known:  # the next one parts here
                    self._known[parent] = names, num_before, num_conversation, False
                return names, may_follow
            if num_prompt >= num_before:
                return cut(names, num_before // self._block_size), False
        return cut(self._system(self._turns.session[row]), num_prompt // self._block_size), False

    def _system(self, session: int) -> list[int]:
        """Names of the blocks of a session's system prompt."""
        number = session if self._turns.system is None else self._turns.system[session]
        known = self._systems.get(number)
        if known is None:
            num_blocks = self._turns.num_system_tokens // self._block_size
            known = self._systems[number] = [self._next_name, self._next_name + num_blocks] if num_blocks else []
            self._next_name += MOST_BLOCKS
        return known
