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
        self._per_hash, rest = divmod(hash_block_tokens, block_size)
        self._is_whole = not rest  # a hash covers whole blocks

    def of(self, hash_ids: tuple[int, ...], num_prompt_tokens: int) -> list[int]:
        """Names of the blocks that lie whole within the prompt and its hashes; the rest is private."""
        num_blocks = min(num_prompt_tokens, len(hash_ids) * self._h) // self._block_size
        links = self._links(hash_ids)
        if self._is_whole:
            return self._whole_keys(links)[:num_blocks]
        ends = range(self._block_size, num_blocks * self._block_size + 1, self._block_size)
        return [links[(end - 1) // self._h] * (self._h + 1) + (end - 1) % self._h + 1 for end in ends]

    def _whole_keys(self, links: list[int]) -> list[int]:
        """Links are numbered as they are first met, so those of a new prefix follow on each other."""
        keys: list[int] = []
        first = last = -1
        for link in [*links, -1]:
            if link != last + 1 or first < 0:
                if first >= 0:
                    keys += range(first * self._per_hash, (last + 1) * self._per_hash)
                first = link
            last = link
        return keys

    def _links(self, hash_ids: tuple[int, ...]) -> list[int]:
        chain, link, links = self._chain, 0, []
        for hash_id in hash_ids:
            known = chain.get((link, hash_id))
            if known is None:
                known = chain[link, hash_id] = len(chain) + 1
            link = known
            links.append(link)
        return links
