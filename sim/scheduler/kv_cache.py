"""Paged KV memory: blocks are counted, and named only where a prefix can be shared.

Follows vLLM's v1/core/block_pool.py and single_type_kv_cache_manager.py. `used + free == all`, always: a running
request holds ceil(num_computed_tokens / block_size) blocks, so nothing but the number of free ones need be stored.
With prefix caching those that others may hit have names.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import FIRST_CONVERSED, NEVER, Request


@dataclass
class Cached:
    """Shared blocks that are cached: names, and how many of each conversation that is one run."""

    keys: set[int]
    runs: dict[int, int]

    def num_cached(self, request: Request, block_size: int) -> int:
        """How many full blocks of its prompt that others may share, from the first on, are among them."""
        num_hits = next((i for i, key in enumerate(request.keys) if key not in self.keys), len(request.keys))
        if num_hits < len(request.keys) or request.conversation < 0:
            return num_hits
        return min(num_hits + self.runs.get(run_of(request), 0), request.num_prompt_tokens // block_size)


class KVCache:
    """Blocks without prefix caching. Block 0 is vLLM's null block and never usable."""

    shares = False  # whether full blocks are registered for others to find

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

    def num_cached(self, request: Request) -> int:
        """How many full blocks of its prompt that others may share, from the first on, are cached."""
        return 0

    def cached(self) -> Cached:
        """All shared blocks that are cached."""
        return Cached(set(), {})

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

    def name_answer(self, request: Request) -> None:
        """Let others find the full blocks of a request that has ended, those of its answer too."""

    def clear(self) -> None:
        """Forget everything, as a new engine."""
        self.free = self.num_usable

    def freed_by(self, request: Request) -> int:
        """How many blocks would be free once a running request had lost its own."""
        return self.blocks(request.num_computed_tokens)

    def release(self, request: Request) -> None:
        """Take all blocks back from a request that ended or was preempted."""
        self.free += self.blocks(request.num_computed_tokens)


FIRST_COPY = 1 << 62  # names of second and later copies; keys are smaller
HASHLESS = -(1 << 62)  # names of what stands in the LRU without a hash; runs and private keys are larger


class PrefixKVCache(KVCache):
    """Blocks that later requests may hit.

    The free list is a number of blocks without a hash, handed out first, and then the cached ones in LRU order. A block
    that several requests may share goes by its key, the identity of all tokens up to its end; a further copy of the
    same tokens gets a name of its own, and a hit takes the oldest. The rest of a request's full blocks only it can hit
    again, after a preemption, so they stand in the LRU as one entry, a run, evicted from its tail. So do those of a
    conversation whose turns come one after the other: each touches all of the run and leaves a longer one. Before vLLM
    0.24 blocks lost their place at the front once they had been used: not `hashless_first`.
    """

    shares = True

    def __init__(self, num_gpu_blocks: int, block_size: int, hashless_first: bool = True) -> None:
        super().__init__(num_gpu_blocks, block_size)
        self._hashless_first = hashless_first
        self._next_hashless = HASHLESS
        self._lru: OrderedDict[int, int] = OrderedDict()  # block or run -> how many blocks
        self._num_cached = 0  # blocks in the LRU
        self._refs: dict[int, int] = {}  # block -> how many requests hold it
        self._copies: dict[int, list[int]] = {}  # key -> blocks, the oldest first, where it has or had several
        self._key_of: dict[int, int] = {}  # a copy's key
        self._next_copy = FIRST_COPY
        self._next_private_key = -2  # even; runs have odd names

    def lookup(self, request: Request) -> tuple[int, int]:
        """Longest cached prefix, at least one token short of the request (vLLM v1/core/kv_cache_manager.py)."""
        limit = (request.num_tokens - 1) // self.block_size
        num_hits = num_idle = 0
        refs, copies = self._refs, self._copies
        for key in request.keys[:limit]:
            block = copies[key][0] if key in copies else key
            if block not in refs:
                return num_hits, num_idle
            num_hits += 1
            num_idle += not refs[block]
        if request.num_preemptions or request.conversation >= 0:
            run = run_of(request)
            num_own = min(self._lru.get(run, 0), limit - num_hits) if run not in refs else 0
            return num_hits + num_own, num_idle + num_own
        return num_hits, num_idle

    def num_cached(self, request: Request) -> int:
        """How many full blocks of its prompt that others may share, from the first on, are cached.

        Of copies the oldest counts, which a hit takes.
        """
        refs, copies = self._refs, self._copies
        for i, key in enumerate(request.keys):
            if (copies[key][0] if key in copies else key) not in refs:
                return i
        if request.conversation < 0:
            return len(request.keys)
        return min(len(request.keys) + self._lru.get(run_of(request), 0), request.num_prompt_tokens // self.block_size)

    def cached(self) -> Cached:
        """All shared blocks that are cached, whatever copies there are of each."""
        runs = {name: count for name, count in self._lru.items() if name < 0 and name % 2}
        return Cached({self._key_of.get(block, block) for block in self._refs}, runs)

    def admit(self, request: Request, num_hits: int, num_tokens: int) -> None:
        """Touch the hit blocks and hand out the others."""
        num_shared = min(num_hits, len(request.keys))
        copies = self._copies
        held = [copies[key][0] if key in copies else key for key in request.keys[:num_shared]]
        for block in held:
            if not self._refs[block]:
                del self._lru[block]
                self._num_cached -= 1
                self.free -= 1
            self._refs[block] += 1
        request.block_ids = held
        if num_hits > num_shared:
            self._touch_run(request, num_hits - num_shared)
        elif (
            (request.num_preemptions or request.conversation >= 0)
            and run_of(request) in self._lru
            and run_of(request) not in self._refs
        ):
            self._name_run(request, 0)
        self.take(self.blocks(num_tokens) - num_hits)

    def take(self, num_blocks: int) -> None:
        """Hand out blocks: those without a hash first, then the least recently used."""
        missing = num_blocks - (self.free - self._num_cached)
        self.free -= num_blocks
        if missing <= 0:
            return
        self._num_cached -= missing
        lru, refs = self._lru, self._refs
        while missing > 0:
            entry, num_held = lru.popitem(last=False)
            if num_held > missing:  # the tail of a run
                lru[entry] = num_held - missing
                lru.move_to_end(entry, last=False)
                return
            missing -= num_held
            if entry in refs:
                del refs[entry]
                if self._copies:
                    self._forget(entry)

    def register(self, request: Request, num_tokens: int) -> None:
        """Name the full shared blocks among the first `num_tokens` tokens; a run needs no names."""
        if num_tokens <= request.num_registered_tokens:
            return
        request.num_registered_tokens = num_tokens
        self._name_new(request)

    def name_answer(self, request: Request) -> None:
        """Let others find the full blocks of a request that has ended, those of its answer too."""
        if len(request.keys) == request.num_prompt_tokens // self.block_size:  # else a preemption gave them others
            request.keys = [*request.keys, *request.answer_keys]
            self._name_new(request)

    def _name_new(self, request: Request) -> None:
        held = request.block_ids
        if len(held) < len(request.keys):
            new = request.keys[len(held) : request.num_registered_tokens // self.block_size]
            if self._copies or not self._refs.keys().isdisjoint(new):
                new = [self._new_block(key) for key in new]
            self._refs.update(dict.fromkeys(new, 1))
            held += new

    def clear(self) -> None:
        """Forget everything, as a new engine."""
        super().clear()
        for kept in (self._lru, self._refs, self._copies, self._key_of):
            kept.clear()
        self._num_cached = 0

    def freed_by(self, request: Request) -> int:
        """How many blocks would be free once a running request had lost its own: what others hold too stays taken."""
        num_shared = sum(self._refs[block] > 1 for block in request.block_ids)
        return self.blocks(request.num_computed_tokens) - num_shared

    def release(self, request: Request) -> None:
        """Blocks without a hash go to the front of the free list, cached ones to the back, tail first."""
        held, lru, refs = request.block_ids, self._lru, self._refs
        num_run = max(request.num_registered_tokens // self.block_size - len(held), 0)
        num_idle = num_hashless = 0
        if not self._hashless_first:
            num_idle = num_hashless = self.blocks(request.num_computed_tokens) - num_run - len(held)
            if num_hashless:
                self._next_hashless -= 1
                lru[self._next_hashless] = num_hashless
        if num_run:
            lru[run_of(request)] = num_run
        num_idle += num_run
        for block in reversed(held):
            if refs[block] == 1:
                refs[block] = 0
                lru[block] = 1
                num_idle += 1
            else:
                refs[block] -= 1
        self._num_cached += num_idle
        self.free += self.blocks(request.num_computed_tokens) - num_run - len(held) - num_hashless + num_idle
        request.num_registered_tokens = 0
        request.block_ids = []

    def _new_block(self, key: int) -> int:
        """The name of a block that gets this key now: the key itself, or a further copy's."""
        blocks = self._copies.get(key)
        if blocks is None and key not in self._refs:
            return key
        self._next_copy += 1
        self._copies[key] = [*(blocks or [key]), self._next_copy]
        self._key_of[self._next_copy] = key
        return self._next_copy

    def _forget(self, block: int) -> None:
        """One of several copies is evicted."""
        key = self._key_of.pop(block, block)
        if key in self._copies:
            self._copies[key].remove(block)
            if not self._copies[key]:
                del self._copies[key]

    def _touch_run(self, request: Request, num_blocks: int) -> None:
        run = run_of(request)
        num_left = self._lru[run] - num_blocks
        self._num_cached -= num_blocks
        self.free -= num_blocks
        if num_left:
            self._lru[run] = num_left
            self._name_run(request, num_blocks)
        else:
            del self._lru[run]

    def _name_run(self, request: Request, num_touched: int) -> None:
        """Give a request's own blocks keys: the last cached one may not be hit, so it will have a duplicate."""
        left = run_of(request)
        assert self._lru[left] == 1, "a lookup stops one token short, so one block at most is left over"
        num_own = self.blocks(request.num_prompt_tokens + request.max_tokens) - len(request.keys)
        own: Sequence[int] = range(self._next_private_key, self._next_private_key - 2 * num_own, -2)
        self._next_private_key -= 2 * num_own
        if request.conversation >= 0:  # the next turn finds them by names
            own = request.run_names(len(request.keys), len(request.keys) + num_own)
            request.conversation = NEVER
        elif request.answer_keys and request.answer_keys[0] >= FIRST_CONVERSED:  # nobody else has those before its end
            own = [*request.answer_keys, *own[len(request.answer_keys) :]]
        request.keys = [*request.keys, *own]
        self._refs.update(dict.fromkeys(own[:num_touched], 1))
        request.block_ids += own[:num_touched]
        key = own[num_touched]
        self._refs[left], self._copies[key], self._key_of[left] = 0, [left], key


def run_of(request: Request) -> int:
    """The LRU's name for the blocks that only `request`, or its conversation, can hit: odd and negative."""
    return -2 * (request.index if request.conversation < 0 else request.conversation) - 1


def kv_cache_of(config: EngineConfig) -> KVCache:
    """The KV cache that these settings ask for."""
    if not config.enable_prefix_caching:
        return KVCache(config.num_gpu_blocks, config.block_size)
    return PrefixKVCache(config.num_gpu_blocks, config.block_size, "hashless_blocks_first" in config.changes)
