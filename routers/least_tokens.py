"""Where the fewest prompt tokens are in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router


class LeastTokens(Router):
    """To the replica with the fewest prompt tokens in flight by the gateway's own books; of equals fewer requests.

    A prompt of 8,000 tokens is more work, and more of the KV cache, than one of 80. Source: the active blocks in the
    cost function of Dynamo's KV router (`--kv-overlap-score-weight 0`), counted in tokens that the gateway knows of.
    """

    known_as = "Dynamo"
    draws: ClassVar = False
    least: ClassVar = ("num_tokens", "num_requests")

    def why(self, request: RequestView, replicas: Sequence[ReplicaView]) -> str:
        """What is in flight."""
        return f"prompt tokens in flight: {', '.join(f'{r.index}: {r.num_tokens:,}' for r in replicas)}"
