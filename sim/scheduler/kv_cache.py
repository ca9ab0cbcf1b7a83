"""Paged KV memory: blocks are counted, and named only where a prefix can be shared.

Follows vLLM's v1/core/block_pool.py and single_type_kv_cache_manager.py. `used + free == all`, always: a running
request holds ceil(num_computed_tokens / block_size) blocks, so nothing but the number of free ones need be stored.
"""

from __future__ import annotations

from collections import OrderedDict

from simbatch.sim.scheduler.request import Request


class KVCache:
    """Blocks without prefix caching. Block 0 is vLLM's null block and never usable."""

    def __init__(self, num_gpu_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.num_usable = num_gpu_blocks - 1
        self.free = self.num_usable

    def blocks(self, num_tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def lookup(self, request: Request) -> tuple[int, int]:
        """The blocks of `request` that are cached, and how many of those nobody holds now."""
        return 0, 0

    def admit(self, request: Request, num_hits: int, num_tokens: int) -> None:
        """Give a waiting request its cached blocks and room for `num_tokens` tokens in all."""
        self.free -= self.blocks(num_tokens)

    def grow(self, request: Request, num_tokens: int) -> None:
        """Give a running request room for `num_tokens` tokens in all."""
        self.take(self.blocks(num_tokens) - self.blocks(request.num_computed_tokens))

    def take(self, num_blocks: int) -> None:
        """Hand out blocks, for several requests at once."""
        self.free -= num_blocks

    def register(self, request: Request, num_tokens: int) -> None:
        """Let others find the full blocks among the first `num_tokens` tokens."""

    def release(self, request: Request) -> None:
        """Take all blocks back from a request that ended or was preempted."""
        self.free += self.blocks(request.num_computed_tokens)


class PrefixKVCache(KVCache):
    """Blocks with vLLM's prefix cache.

    The free list is a number of blocks without a hash, handed out first, and then the cached ones in LRU order.
    Blocks that several requests may share have an id and a key; the rest of a request's full blocks only it can hit
    again (after a preemption), so they stand in the LRU as one entry, a run, evicted from its tail.
    """

    def __init__(self, num_gpu_blocks: int, block_size: int) -> None:
        super().__init__(num_gpu_blocks, block_size)
        self._lru: OrderedDict[int, int] = OrderedDict()  # block id or, negative, request's run -> number of blocks
        self._num_cached = 0  # blocks in the LRU
        self._ids_of: dict[int, list[int]] = {}  # key -> ids, the oldest first
        self._key_of: dict[int, int] = {}
        self._refs: dict[int, int] = {}
        self._next_id = 1
        self._next_private_key = -1

    def lookup(self, request: Request) -> tuple[int, int]:
        """Longest cached prefix, at least one token short of the request (vLLM kv_cache_manager.py)."""
        limit = (request.num_tokens - 1) // self.block_size
        num_hits = num_idle = 0
        ids_of, refs = self._ids_of, self._refs
        for key in request.keys[:limit]:
            ids = ids_of.get(key)
            if ids is None:
                return num_hits, num_idle
            num_hits += 1
            num_idle += not refs[ids[0]]
        run = min(self._lru.get(run_of(request), 0), limit - num_hits) if request.num_preemptions else 0
        if run > 0 and run_of(request) not in self._key_of:
            return num_hits + run, num_idle + run
        return num_hits, num_idle

    def admit(self, request: Request, num_hits: int, num_tokens: int) -> None:
        """Touch the hit blocks, hand out the others, register the full ones."""
        num_shared = min(num_hits, len(request.keys))
        request.block_ids = [self._touch(self._ids_of[key][0]) for key in request.keys[:num_shared]]
        if num_hits > num_shared:
            self._touch_run(request, num_hits - num_shared)
        self.take(self.blocks(num_tokens) - num_hits)

    def take(self, num_blocks: int) -> None:
        """Hand out blocks: those without a hash first, then the least recently used."""
        missing = num_blocks - (self.free - self._num_cached)
        self.free -= num_blocks
        while missing > 0:
            entry, held = next(iter(self._lru.items()))
            if entry in self._key_of:
                self._forget(entry)
                held = 1
            elif held > missing:
                self._lru[entry] = held - missing
                held = missing
            else:
                del self._lru[entry]
            self._num_cached -= held
            missing -= held

    def register(self, request: Request, num_tokens: int) -> None:
        """Name the full shared blocks among the first `num_tokens` tokens; a run needs no names."""
        if num_tokens <= request.num_registered_tokens:
            return
        request.num_registered_tokens = num_tokens
        held = request.block_ids
        for key in request.keys[len(held) : num_tokens // self.block_size]:
            held.append(self._next_id)
            self._enter(self._next_id, key, refs=1)
            self._next_id += 1

    def release(self, request: Request) -> None:
        """Blocks without a hash go to the front of the free list, cached ones to the back, tail first."""
        num_blocks = self.blocks(request.num_computed_tokens)
        num_registered = request.num_registered_tokens // self.block_size
        held = request.block_ids
        num_run = max(num_registered - len(held), 0)
        if num_run:
            self._lru[run_of(request)] = num_run
        num_idle = num_run
        for block in reversed(held):
            self._refs[block] -= 1
            if not self._refs[block]:
                self._lru[block] = 1
                num_idle += 1
        self._num_cached += num_idle
        self.free += num_blocks - num_run - len(held) + num_idle
        request.num_registered_tokens = 0
        request.block_ids = []

    def _enter(self, block: int, key: int, refs: int) -> None:
        self._ids_of.setdefault(key, []).append(block)
        self._key_of[block] = key
        self._refs[block] = refs

    def _touch(self, block: int) -> int:
        if not self._refs[block]:
            del self._lru[block]
            self._num_cached -= 1
            self.free -= 1
        self._refs[block] += 1
        return block

    def _touch_run(self, request: Request, num_blocks: int) -> None:
        entry = run_of(request)
        left = self._lru[entry] - num_blocks
        self._num_cached -= num_blocks
        self.free -= num_blocks
        if left:
            self._name_run(request, num_blocks, left)
        else:
            del self._lru[entry]

    def _name_run(self, request: Request, num_touched: int, left: int) -> None:
        """Give a request's own blocks names: the last cached one may not be hit, so it will have a duplicate."""
        assert left == 1, "a lookup stops one token short, so one block at most is left over"
        num_own = self.blocks(request.num_prompt_tokens + request.max_tokens) - len(request.keys)
        own = range(self._next_private_key, self._next_private_key - num_own, -1)
        self._next_private_key -= num_own
        request.keys = [*request.keys, *own]
        for key in own[:num_touched]:
            request.block_ids.append(self._next_id)
            self._enter(self._next_id, key, refs=1)
            self._next_id += 1
        self._lru[run_of(request)] = left
        self._enter(run_of(request), own[num_touched], refs=0)

    def _forget(self, block: int) -> None:
        """Evict a shared block."""
        del self._lru[block], self._refs[block]
        key = self._key_of.pop(block)
        ids = self._ids_of[key]
        ids.remove(block)
        if not ids:
            del self._ids_of[key]


def run_of(request: Request) -> int:
    """The LRU's name for the blocks that only `request` can hit."""
    return -request.index - 1
