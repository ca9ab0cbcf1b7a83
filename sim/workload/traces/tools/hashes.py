"""Prefix hashes in blocks of another size.

A block of the new size is named by the old hashes that overlap it and by where in the first of them it begins, so two
blocks have the same name when their tokens have. Tokens that no hash covers are private: they get numbers of their own.
"""

from __future__ import annotations

from hashlib import blake2b


class Rehash:
    """Turns `hash_ids` of `old` tokens each into ones of `new` tokens each, one for every block of a prompt."""

    def __init__(self, old: int, new: int) -> None:
        self._old, self._new = old, new
        self._num_private = 0
        self._splits = old % new == 0

    def __call__(self, hash_ids: tuple[int, ...], num_prompt_tokens: int) -> tuple[int, ...]:
        """One hash for every block of the prompt, the last one for what is left."""
        new = self._new
        covered = min(len(hash_ids) * self._old, num_prompt_tokens)
        ends = [min(start + new, num_prompt_tokens) for start in range(0, num_prompt_tokens, new)]
        return tuple(
            self._name(hash_ids, i * new, end) if end <= covered else self._private() for i, end in enumerate(ends)
        )

    def _private(self) -> int:
        self._num_private += 1
        return 2 * self._num_private - 1  # odd; what is shared is even

    def _name(self, hash_ids: tuple[int, ...], start: int, end: int) -> int:
        old, new = self._old, self._new
        first, offset = divmod(start, old)
        if self._splits:
            return 2 * (hash_ids[first] * (old // new) + offset // new)
        last = -(-end // old)
        text = ",".join(map(str, (offset, *hash_ids[first:last])))
        return 2 * int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")
