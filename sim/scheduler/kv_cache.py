"""Paged KV memory: blocks are counted, and those that later requests may hit are kept, as runs of named blocks.

Follows vLLM's v1/core/block_pool.py, single_type_kv_cache_manager.py and kv_cache_manager.py. `used + free == all`,
always: a running request holds ceil(num_computed_tokens / block_size) blocks, so of those nothing but the number of
free ones need be stored.
"""

from __future__ import annotations

from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.names import num_known, own_names
from simbatch.sim.scheduler.request import NEVER, Request


class BlockRun:
    """Cached blocks whose names follow on each other, with one history: held by the same requests, or freed at once.

    `before` and `after` are its neighbours in the free list, itself while somebody holds it.
    """

    def __init__(self, name: int, size: int, num_holders: int) -> None:
        self.name = name  # of its first block
        self.size = size
        self.num_holders = num_holders
        self.before: BlockRun = self
        self.after: BlockRun = self

    def put(self, before: BlockRun) -> None:
        """Enter it into the free list."""
        self.before, self.after = before.before, before
        self.before.after = before.before = self

    def drop(self) -> None:
        """Take it out of the free list."""
        self.before.after, self.after.before = self.after, self.before
        self.before = self.after = self


class KVCache:
    """All blocks of an engine; block 0 is vLLM's null block and never usable.

    The free list is a number of blocks without a hash, handed out first, and then the cached ones in LRU order. A block
    goes by its name, the identity of all tokens up to its end. Who hits a block hits all before it, so neighbours are
    used, freed and evicted together, and they are kept together, as runs: a run is parted where requests part, evicted
    from its tail, and joined with its neighbour when a request frees both. A prompt of 11,000 tokens has 700 blocks and
    a handful of runs.

    A block may be there twice: two requests computed it side by side, or the last one of a prompt was cached and must
    be computed again. Such blocks are runs of one block each; a hit takes the oldest. Before vLLM 0.24 blocks without a
    hash lost their place at the front once they had been used. Without prefix caching (`shares`) no block has a name.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.block_size: int = config.block_size
        self.num_usable: int = config.num_gpu_blocks - 1
        self.free = self.num_usable
        self.shares: bool = config.enable_prefix_caching
        self._hashless_first = not self.shares or "hashless_blocks_first" in config.changes
        self._next_hashless = NEVER
        self._free_list = BlockRun(NEVER, 0, 0)  # its ends: the first to be evicted is behind it
        self._num_cached = 0  # blocks in the list
        self._runs: dict[int, BlockRun] = {}  # by first name; of copies the oldest
        self._copies: dict[int, list[BlockRun]] = {}  # by name: younger ones, the oldest first
        self._held_copies: dict[int, dict[int, BlockRun]] = {}  # by request and name: where it does not hold the oldest

    def blocks(self, num_tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def lookup(self, request: Request) -> tuple[int, int]:
        """Cached blocks that a request begins with, all but a last token at most; how many of them nobody holds now."""
        limit = (request.num_tokens - 1) // self.block_size
        num_hits = num_idle = 0
        runs, names = self._runs, request.names
        i, num_ranges = 0, len(names)
        while num_hits < limit:
            if i < num_ranges:
                name, end = names[i], names[i + 1]
                i += 2
            elif request.num_preemptions:
                name = own_names(request.index) + num_hits
                end = name + limit
            else:
                break
            if end - name > limit - num_hits:
                end = name + limit - num_hits
            while name < end:
                run = runs.get(name)
                if run is None:
                    return num_hits, num_idle
                size = run.size if run.size < end - name else end - name
                num_hits += size
                name += size
                if not run.num_holders:
                    num_idle += size
        return num_hits, num_idle

    def num_cached(self, request: Request) -> int:
        """How many full blocks of its prompt that others may share, from the first on, are cached."""
        runs = self._runs
        return num_known(request.prompt_names(self.block_size), lambda name: runs[name].size if name in runs else 0)

    def cached(self) -> dict[int, int]:
        """All blocks that are cached, as runs: the first name, and how many follow on it."""
        return {name: run.size for name, run in self._runs.items()}

    def admit(self, request: Request, num_hits: int, num_tokens: int) -> None:
        """Give a waiting request its cached blocks and room for `num_tokens` tokens in all."""
        if num_hits:
            for run in self._held(request, num_hits):
                if not run.num_holders:
                    run.drop()
                    self._num_cached -= run.size
                    self.free -= run.size
                run.num_holders += 1
        request.num_held = num_hits
        self.take(-(-num_tokens // self.block_size) - num_hits)  # what `blocks` says, one frame less a request

    def grow(self, request: Request, num_tokens: int) -> None:
        """Give a running request room for `num_tokens` tokens in all."""
        self.take(self.blocks(num_tokens) - self.blocks(request.num_computed_tokens))

    def take(self, num_blocks: int) -> None:
        """Hand out blocks, for one or several requests: those without a hash first, then the least recently used."""
        self.free -= num_blocks
        missing = self._num_cached - self.free
        if missing <= 0:
            return
        self._num_cached -= missing
        while missing > 0:
            run = self._free_list.after
            if run.size > missing:  # the tail of a run
                run.size -= missing
                return
            missing -= run.size
            run.drop()
            self._forget(run)

    def register(self, request: Request, num_tokens: int) -> None:
        """Name the full blocks among the first `num_tokens` tokens; those that nobody else can hit when it lets go."""
        if not self.shares or num_tokens <= request.num_registered_tokens:
            return
        request.num_registered_tokens = num_tokens
        if request.num_held < request.num_names:
            num_full = num_tokens // self.block_size
            self._name(request, num_full if num_full < request.num_names else request.num_names)

    def clear(self) -> None:
        """Forget everything, as a new engine."""
        self.free = self.num_usable
        for kept in (self._runs, self._copies, self._held_copies):
            kept.clear()
        self._free_list.drop()
        self._num_cached = 0

    def freed_by(self, request: Request) -> int:
        """How many blocks would be free once a running request had lost its own: what others hold too stays taken."""
        num_shared = sum(run.size for run in self._held(request, request.num_held) if run.num_holders > 1)
        return self.blocks(request.num_computed_tokens) - num_shared

    def release(self, request: Request) -> None:
        """Blocks without a hash go to the front of the free list, cached ones to the back, tail first.

        From now on others may find those of its answer, too. A preempted request may have ended before it runs again:
        the step that was in flight brought its last token. Runs it again, what it computes anew is found when it is
        let go again, so that nothing shows of the tokens of a span before its end.
        """
        if self._hashless_first and not request.num_registered_tokens and not request.num_held:  # it named nothing
            self.free -= -request.num_computed_tokens // self.block_size
            return
        runs = self._let_go(request, request.num_registered_tokens // self.block_size)
        num_taken = self.blocks(request.num_computed_tokens)
        num_idle = num_hashless = 0
        if not self._hashless_first:
            num_idle = num_hashless = num_taken - request.num_held
            if num_hashless:
                self._next_hashless -= 1
                BlockRun(self._next_hashless, num_hashless, 0).put(self._free_list)
        for i in range(len(runs) - 1, -1, -1):
            run = runs[i]
            run.num_holders -= 1
            if not run.num_holders:
                run.put(self._free_list)
                num_idle += run.size
        self._num_cached += num_idle
        self.free += num_taken - request.num_held - num_hashless + num_idle
        request.num_registered_tokens = request.num_held = 0
        if self._held_copies:
            self._held_copies.pop(request.index, None)

    def _let_go(self, request: Request, num_full: int) -> list[BlockRun]:
        """The runs of a request's full blocks, all in the index, its own ones too."""
        if not request.names and not request.num_held:
            name = own_names(request.index)
            if name not in self._runs:  # the most frequent case, in short
                request.num_held = num_full
                if not num_full:
                    return []
                run = self._runs[name] = BlockRun(name, num_full, 1)
                return [run]
        if num_full > request.num_held:
            self._name(request, num_full)
        return self._joined(self._held(request, request.num_held))

    def _name(self, request: Request, num_blocks: int) -> None:
        """Enter a request's first blocks into the index, from those on that are there."""
        begin = 0
        names, i = request.names, 0
        while request.num_held < num_blocks:
            if i < len(names):
                name, end = names[i], names[i + 1]
                i += 2
            else:
                name = own_names(request.index) + begin
                end = name + num_blocks - begin
            size = end - name
            skipped = request.num_held - begin
            begin += size
            if skipped >= size:
                continue
            if begin > num_blocks:
                end -= begin - num_blocks
            self._enter(request, name + skipped, end)
            request.num_held += end - name - skipped

    def _enter(self, request: Request, name: int, end: int) -> None:
        """Enter blocks with names that follow on each other; those that are there already are there twice then."""
        while name < end:
            run = self._runs.get(name)
            if run is None:  # nor is any behind it: who used that had this one, too, and freed it later
                self._runs[name] = BlockRun(name, end - name, 1)
                return
            if run.size > 1:
                self._part(run, 1)
            copy = BlockRun(name, 1, 1)
            self._copies.setdefault(name, []).append(copy)
            self._held_copies.setdefault(request.index, {})[name] = copy
            name += 1

    def _held(self, request: Request, num_blocks: int) -> list[BlockRun]:
        """The runs of a request's first blocks, the last one parted where they end."""
        found, left = list[BlockRun](), num_blocks
        runs, names, i = self._runs, request.names, 0
        num_ranges = len(names)
        copies = self._held_copies.get(request.index) if self._held_copies else None
        while left > 0:
            if i < num_ranges:
                name, end = names[i], names[i + 1]
                i += 2
            else:
                name = own_names(request.index) + num_blocks - left
                end = name + left
            if end - name > left:
                end = name + left
            left -= end - name
            while name < end:
                run = runs[name] if copies is None or name not in copies else copies[name]
                if run.size > end - name:
                    self._part(run, end - name)
                found.append(run)
                name += run.size
        return found

    def _part(self, run: BlockRun, size: int) -> None:
        """Part a run; its tail goes on as one of its own, which is evicted first."""
        tail = BlockRun(run.name + size, run.size - size, run.num_holders)
        run.size = size
        self._runs[tail.name] = tail
        if not run.num_holders:
            tail.put(run)

    def _joined(self, runs: list[BlockRun]) -> list[BlockRun]:
        """Runs with those neighbours joined that nobody else holds: they are free at the same moment."""
        joined = list[BlockRun]()
        copies = self._copies
        for run in runs:
            last = joined[-1] if joined else run
            if (
                last.name + last.size == run.name
                and last.num_holders == run.num_holders == 1
                and (not copies or (last.name not in copies and run.name not in copies))
            ):
                last.size += run.size
                del self._runs[run.name]
            else:
                joined.append(run)
        return joined

    def _forget(self, run: BlockRun) -> None:
        """A run is evicted; where it was one of several copies the oldest that is left is the one to hit."""
        name = run.name
        others = self._copies.pop(name, None) if self._copies else None
        if self._runs.get(name) is run:
            del self._runs[name]
            if others:
                self._runs[name] = others.pop(0)
        elif others:
            others.remove(run)
        if others:
            self._copies[name] = others
