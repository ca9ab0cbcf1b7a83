"""Names of KV blocks, as ranges: equal names where all tokens up to the blocks' ends are equal.

Blocks that follow on each other in a prompt mostly have names that do: [3, 7, 20, 22] stands for 3, 4, 5, 6, 20, 21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

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
