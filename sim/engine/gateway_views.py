"""What a router sees: what a gateway could see of a request and of the replicas behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.scheduler.request import Request


class RequestView:
    """A request as a gateway sees it (`simbatch.routers.RequestView`): never the length of its output."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def request_id(self) -> str:
        """The name it came with."""
        return self._request.request_id

    @property
    def arrival_s(self) -> float:
        """When the client sent it."""
        return self._request.arrival_ps / PS_PER_S

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return self._request.num_prompt_tokens

    @property
    def priority(self) -> int:
        """Lower goes first, as in vLLM."""
        return self._request.priority

    @property
    def tenant(self) -> str | None:
        """Whose request it is, when the trace says."""
        return self._request.tenant

    @property
    def prefix_keys(self) -> Sequence[int]:
        """A name for each full block of the prompt that others may share: equal where all tokens up to it are equal."""
        return self._request.keys

    def __repr__(self) -> str:
        return f"<request {self.request_id}>"


class Shown(Protocol):
    """What a replica publishes of itself: as of its last schedule(), or of the last refresh."""

    def num_running(self, index: int) -> int:
        """Requests that hold a seat."""

    def num_waiting(self, index: int) -> int:
        """Requests in the engine's queue."""

    def kv_use(self, index: int) -> float:
        """Share of the KV blocks that requests hold."""

    def num_cached(self, index: int, keys: Sequence[int]) -> int:
        """How many of these blocks, from the first on, are in the prefix cache."""


class ReplicaView:
    """A replica as a gateway sees it (`simbatch.routers.ReplicaView`)."""

    __slots__ = (
        "_shown", "block_size", "group", "index", "max_num_seqs", "num_gpu_blocks", "num_prefill_tokens",
        "num_requests", "num_sent", "num_tokens", "profile",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        shown: Shown,
        *,
        group: int,
        profile: str,
        block_size: int,
        num_gpu_blocks: int,
        max_num_seqs: int,
    ) -> None:
        self.index = index
        self.group = group
        self.profile = profile
        self.block_size = block_size
        self.num_gpu_blocks = num_gpu_blocks
        self.max_num_seqs = max_num_seqs
        self.num_requests = self.num_tokens = self.num_prefill_tokens = self.num_sent = 0
        self._shown = shown

    @property
    def num_running(self) -> int:
        """Requests that hold a seat."""
        return self._shown.num_running(self.index)

    @property
    def num_waiting(self) -> int:
        """Requests in the engine's queue."""
        return self._shown.num_waiting(self.index)

    @property
    def kv_use(self) -> float:
        """Share of the KV blocks that requests hold, from 0 to 1."""
        return self._shown.kv_use(self.index)

    def cached_tokens(self, request: RequestView) -> int:
        """How many tokens of the prompt, from the first on, are in the prefix cache."""
        return self._shown.num_cached(self.index, request.prefix_keys) * self.block_size

    def __repr__(self) -> str:
        return f"<replica {self.index}: {self.num_requests} requests in flight>"
