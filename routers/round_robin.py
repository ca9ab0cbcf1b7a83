"""One after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router


class RoundRobin(Router):
    """One after the other, in order of their numbers; whoever is down is passed over.

    Knows nothing of how long a request lasts, so that long ones may come together. Source: nginx's default
    (`ngx_http_upstream_round_robin`), and what a Kubernetes Service does in IPVS mode.
    """

    draws: ClassVar = False

    def start(self, replicas: Sequence[ReplicaView], draw: Callable[[], float]) -> None:
        """Begin with the first."""
        self.last = -1

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """The next one after the last."""
        after = (replica for replica in replicas if replica.index > self.last)
        chosen = next(after, replicas[0])
        self.last = chosen.index
        return chosen

    def why(self, request: RequestView, replicas: Sequence[ReplicaView]) -> str:
        """Whose turn it is."""
        return "it is the next one's turn"
