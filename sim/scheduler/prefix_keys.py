"""From a trace's prefix hashes to the identity of KV blocks."""

from __future__ import annotations


class PrefixKeys:
    """Names the full blocks of a prompt, so that two have the same name when all tokens up to their ends are the same.

    Hash i covers tokens [i*h, min((i+1)*h, len)), h = `hash_block_tokens`. A hash stands for its tokens alone or for
    the whole prefix, depending on who wrote the trace, so hashes are chained here.
    """

    def __init__(self, hash_block_tokens: int, block_size: int) -> None:
        self._h = hash_block_tokens
        self._block_size = block_size
        self._chain: dict[tuple[int, int], int] = {}  # (chain so far, hash) -> chain
        self._whole = hash_block_tokens % block_size == 0
        self._keys_of: dict[int, list[int]] = {}  # chain -> names of the blocks in its last hash's tokens

    def of(self, hash_ids: tuple[int, ...], num_prompt_tokens: int) -> list[int]:
        """Names of the blocks that lie whole within the prompt and its hashes; the rest is private."""
        num_blocks = min(num_prompt_tokens, len(hash_ids) * self._h) // self._block_size
        links = self._links(hash_ids)
        if self._whole:
            keys: list[int] = []
            for link in links:
                keys += self._keys_in(link)
            return keys[:num_blocks]
        ends = range(self._block_size, num_blocks * self._block_size + 1, self._block_size)
        return [links[(end - 1) // self._h] * (self._h + 1) + (end - 1) % self._h + 1 for end in ends]

    def _links(self, hash_ids: tuple[int, ...]) -> list[int]:
        chain, link, links = self._chain, 0, []
        for hash_id in hash_ids:
            known = chain.get((link, hash_id))
            if known is None:
                known = chain[link, hash_id] = len(chain) + 1
            link = known
            links.append(link)
        return links

    def _keys_in(self, link: int) -> list[int]:
        keys = self._keys_of.get(link)
        if keys is None:
            first = link * (self._h + 1)
            keys = self._keys_of[link] = list(range(first + self._block_size, first + self._h + 1, self._block_size))
        return keys
