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
        """The new hashes of one prompt, the last one for what is left when the old ones cover that."""
        new = self._new
        covered = min(len(hash_ids) * self._old, num_prompt_tokens)
        num_full = num_prompt_tokens // new
        num_covered = covered // new
        names = [self._name(hash_ids, start) for start in range(0, num_covered * new, new)]
        names += [self._private() for _ in range(num_full - num_covered)]
        if covered == num_prompt_tokens and num_full * new < num_prompt_tokens:
            names.append(self._name(hash_ids, num_full * new, num_prompt_tokens))
        return tuple(names)

    def _private(self) -> int:
        self._num_private += 1
        return 2 * self._num_private - 1  # odd; what is shared is even

    def _name(self, hash_ids: tuple[int, ...], start: int, end: int | None = None) -> int:
        old, new = self._old, self._new
        first, offset = divmod(start, old)
        if self._splits:
            return 2 * (hash_ids[first] * (old // new) + offset // new)
        last = -(-(end or start + new) // old)
        text = ",".join(map(str, (offset, *hash_ids[first:last])))
        return 2 * int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")
