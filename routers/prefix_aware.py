"""Where most of the prompt is in the prefix cache, unless too many requests are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router


class PrefixAware(Router):
    """To the replica with the longest cached prefix of the prompt, unless the load differs too much.

    It does when the most loaded replica has more than `max_difference` requests in flight beyond the least loaded one,
    and more than `max_ratio` times as many; then, and of equal prefixes, the fewest requests in flight decide. Engines
    tell which blocks they hold (vLLM's KV events). Sources: llm-d's precise prefix-cache scorer and Dynamo's KV router
    follow the same events; the rule for a load that differs is that of SGLang's cache-aware router
    (`balance_abs_threshold`, `balance_rel_threshold`).
    """

    draws: ClassVar = False

    max_difference: Annotated[int, Field(ge=0, description="requests in flight beyond the least loaded replica")] = 32
    max_ratio: Annotated[float, Field(ge=1, description="of the most to the least requests in flight")] = 1.5

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """Books first: where the load differs nobody's cache is looked at."""
        if self.is_uneven(replicas) or not request.prefix_keys:
            return min(replicas, key=lambda replica: replica.num_requests)
        return min(replicas, key=lambda replica: (-replica.cached_tokens(request), replica.num_requests))

    def is_uneven(self, replicas: Sequence[ReplicaView]) -> bool:
        """Whether the load differs too much."""
        counts = [replica.num_requests for replica in replicas]
        least, most = min(counts), max(counts)
        return most - least > self.max_difference and most > self.max_ratio * least

    def why(self, request: RequestView, replicas: Sequence[ReplicaView]) -> str:
        """Tokens in each cache, and who has how many requests."""
        if self.is_uneven(replicas):
            return f"the load differs too much; {super().why(request, replicas)}"
        cached = ", ".join(f"{replica.index}: {replica.cached_tokens(request):,}" for replica in replicas)
        return f"tokens of its prompt in the prefix caches: {cached}; {super().why(request, replicas)}"
