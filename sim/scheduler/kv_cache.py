"""Paged KV memory: blocks are counted.

Follows vLLM's v1/core/block_pool.py and single_type_kv_cache_manager.py. `used + free == all`, always: a running
request holds ceil(num_computed_tokens / block_size) blocks, so nothing but the number of free ones need be stored.
With prefix caching blocks have names (`prefix_cache`).
"""

from __future__ import annotations

from simbatch.sim.scheduler.request import Request


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

    def cached(self) -> dict[int, int]:
        """All blocks that are cached, as runs: the first name, and how many follow on it."""
        return {}

    def admit(self, request: Request, num_hits: int, num_tokens: int) -> None:
        """Give a waiting request its cached blocks and room for `num_tokens` tokens in all."""
        self.free += -num_tokens // self.block_size  # what `blocks` says, below zero

    def grow(self, request: Request, num_tokens: int) -> None:
        """Give a running request room for `num_tokens` tokens in all."""
        self.take(self.blocks(num_tokens) - self.blocks(request.num_computed_tokens))

    def take(self, num_blocks: int) -> None:
        """Hand out blocks, for several requests at once."""
        self.free -= num_blocks

    def register(self, request: Request, num_tokens: int) -> None:
        """Let others find the full blocks among the first `num_tokens` tokens."""

    def clear(self) -> None:
        """Forget everything, as a new engine."""
        self.free = self.num_usable

    def freed_by(self, request: Request) -> int:
        """How many blocks would be free once a running request had lost its own."""
        return self.blocks(request.num_computed_tokens)

    def release(self, request: Request) -> None:
        """Take all blocks back from a request that ended or was preempted."""
        self.free -= -request.num_computed_tokens // self.block_size
