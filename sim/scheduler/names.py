"""Names of KV blocks, as ranges: equal names where all tokens up to the blocks' ends are equal.

Blocks that follow on each other in a prompt mostly have names that do: [3, 7, 20, 22] stands for 3, 4, 5, 6, 20, 21.
Names come from the hashes of a trace, or from who goes on with whose conversation.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from simbatch.sim.workload.turns import Turns

FIRST_CONVERSED: Final = 1 << 40  # names of blocks of conversations; what a file has hashes for has smaller ones
FIRST_OWN: Final = 1 << 52  # names of blocks that only one request has, `MOST_BLOCKS` a request
MOST_BLOCKS: Final = 1 << 20  # of one request or conversation


def own_names(index: int) -> int:
    """Where the names begin of blocks that only the request of this index can hit."""
    return FIRST_OWN + index * MOST_BLOCKS


def num_in(ranges: list[int]) -> int:
    """How many names stand in [begin, end, begin, end, ...]."""
    return sum(ranges[1::2]) - sum(ranges[::2])


def cut(ranges: list[int], num: int) -> list[int]:
    """The first so many names."""
    kept = []
    for i in range(0, len(ranges), 2):
        if num <= 0:
            break
        begin = ranges[i]
        end = min(ranges[i + 1], begin + num)
        kept += [begin, end]
        num -= end - begin
    return kept


def num_alike(some: list[int], others: list[int]) -> int:
    """How many names both begin with."""
    num, i = 0, 0
    while i < len(some) and i < len(others) and some[i] == others[i]:
        end = min(some[i + 1], others[i + 1])
        num += end - some[i]
        if some[i + 1] != others[i + 1]:
            break
        i += 2
    return num


def num_known(ranges: list[int], size_of: Callable[[int], int]) -> int:
    """How many of these names are known, from the first on.

    `size_of` says of a name that a run of known blocks may begin with how many there are, 0 for none.
    """
    num = 0
    for i in range(0, len(ranges), 2):
        name, end = ranges[i], ranges[i + 1]
        while name < end:
            size = size_of(name)
            if not size:
                return num
            size = min(size, end - name)
            num += size
            name += size
    return num


def one_by_one(ranges: list[int]) -> list[int]:
    """All names that ranges stand for."""
    names: list[int] = []
    for i in range(0, len(ranges), 2):
        names += range(ranges[i], ranges[i + 1])
    return names


def as_ranges(names: Iterable[int]) -> list[int]:
    """Names as ranges: 1, 2, 3, 7 are [1, 4, 7, 8]."""
    ranges: list[int] = []
    last = -1
    for name in names:
        if ranges and name == last + 1:
            ranges[-1] = name + 1
        else:
            ranges += [name, name + 1]
        last = name
    return ranges


class PrefixKeys:
    """Names the full blocks of a prompt, so that two have the same name when all tokens up to their ends are the same.

    Hash i covers tokens [i*h, min((i+1)*h, len)), h = `hash_block_tokens`. A hash stands for its tokens alone or for
    the whole prefix, depending on who wrote the trace, so hashes are chained here.
    """

    def __init__(self, hash_block_tokens: int, block_size: int) -> None:
        self.hash_block_tokens = hash_block_tokens
        self.block_size = block_size
        self._chain: dict[tuple[int, int], int] = {}  # (chain so far, hash) -> chain
        self._per_hash, rest = divmod(hash_block_tokens, block_size)
        self._is_whole = not rest  # a hash covers whole blocks

    def of(self, hash_ids: tuple[int, ...], num_prompt_tokens: int) -> list[int]:
        """Names of the blocks that lie whole within the prompt and its hashes, as ranges; the rest is private."""
        h, size = self.hash_block_tokens, self.block_size
        num_blocks = min(num_prompt_tokens, len(hash_ids) * h) // size
        if self._is_whole:
            return cut(self._whole(hash_ids), num_blocks)
        links = self._links(hash_ids)
        ends = range(size, num_blocks * size + 1, size)
        return as_ranges(links[(end - 1) // h] * (h + 1) + (end - 1) % h + 1 for end in ends)

    def _whole(self, hash_ids: tuple[int, ...]) -> list[int]:
        """Links are numbered as they are first met, so those of a new prefix follow on each other."""
        ranges: list[int] = []
        last, per_hash = -1, self._per_hash
        for link in self._links(hash_ids):
            if link == last + 1 and ranges:
                ranges[-1] += per_hash
            else:
                ranges += [link * per_hash, (link + 1) * per_hash]
            last = link
        return ranges

    def _links(self, hash_ids: tuple[int, ...]) -> list[int]:
        chain, link, links = self._chain, 0, []
        for hash_id in hash_ids:
            known = chain.get((link, hash_id))
            if known is None:
                known = chain[link, hash_id] = len(chain) + 1
            link = known
            links.append(link)
        return links


# A row's names, how many tokens its prompt and all of it have, and whether further names may follow on its last one
Known = tuple[list[int], int, int, bool]


class Conversations:
    """Names of the blocks of turns, prompts and answers: the next turn finds what the one before has computed.

    A prompt that is as long as the parent's prompt and answer begins with both: of 100 tokens and 20 of answer the
    first 7 blocks of 16 are full, and a next prompt of 150 tokens has the same 7, then others. Names of a conversation
    follow on each other, so that the prefix cache has it as one run, until branches part. Where the file has hashes
    they say what is equal; the answer's are those of the first turn that goes on with it.
    """

    def __init__(
        self, turns: Turns, num_prompt_tokens: array[int], hash_ids: list[tuple[int, ...]], keys: PrefixKeys
    ) -> None:
        self._turns, self._num_prompt_tokens, self._keys = turns, num_prompt_tokens, keys
        self._hash_ids = hash_ids  # may be shorter than there are rows
        self.block_size = keys.block_size
        self._next_name = FIRST_CONVERSED
        self._num_children = array("q", [0]) * len(turns.parent)  # whose conversations go on, and are still to come
        self._child: dict[int, int] = {}  # first row that goes on with one, where there are hashes
        for row, parent in enumerate(turns.parent):
            if parent >= 0:
                self._num_children[parent] += 1
                if hash_ids:
                    self._child.setdefault(parent, row)
        self._known: dict[int, Known] = {}  # by row of a parent
        self._systems: dict[int, list[int]] = {}

    def of(self, row: int, num_prompt: int, num_all: int) -> tuple[list[int], int]:
        """Names of the blocks of a prompt and its answer, as ranges, and how many tokens of the prompt are known."""
        hash_ids = self._hash_ids[row] if row < len(self._hash_ids) else ()
        before = self._before(row)
        num_known = 0
        if hash_ids:
            names, may_follow = self._hashed(row, hash_ids, num_prompt, num_all), False
        else:
            names, may_follow = self._unhashed(row, before, num_prompt, num_all // self.block_size)
        if before is not None:
            # so many blocks are of the conversation before, but a last token of it, or of the prompt, is to compute
            num_blocks = min(num_alike(before[0], names), (min(before[2], num_prompt) - 1) // self.block_size)
            num_known = num_blocks * self.block_size
        if self._num_children[row]:
            self._known[row] = names, num_prompt, num_all, may_follow
        return names, num_known

    def _hashed(self, row: int, hash_ids: tuple[int, ...], num_prompt: int, num_all: int) -> list[int]:
        """By the file's hashes; by those of the turn that goes on, if they begin with this one's full ones."""
        child = self._child.get(row, -1)
        if 0 <= child < len(self._hash_ids):
            others = self._hash_ids[child]
            num_full = min(num_prompt // self._keys.hash_block_tokens, len(hash_ids))
            if len(others) >= num_full and others[:num_full] == hash_ids[:num_full]:
                num_known = min(num_all, self._num_prompt_tokens[child])
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
                return cut(names, num_before // self.block_size), False
        return cut(self._system(self._turns.session[row]), num_prompt // self.block_size), False

    def _system(self, session: int) -> list[int]:
        """Names of the blocks of a session's system prompt."""
        number = session if self._turns.system is None else self._turns.system[session]
        known = self._systems.get(number)
        if known is None:
            num_blocks = self._turns.num_system_tokens // self.block_size
            known = self._systems[number] = [self._next_name, self._next_name + num_blocks] if num_blocks else []
            self._next_name += MOST_BLOCKS
        return known
