"""Any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router


class Random(Router):
    """Any replica, all as likely.

    Needs to know nothing, and N replicas are then N independent queues: what every other router is measured by. Source:
    what a Kubernetes Service does in iptables mode.
    """

    known_as = "a Kubernetes Service"

    def start(self, replicas: Sequence[ReplicaView], draw: Callable[[], float]) -> None:
        """Keep the dice."""
        self.draw = draw

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """One draw a request."""
        return replicas[int(self.draw() * len(replicas))]

    def why(self, request: RequestView, replicas: Sequence[ReplicaView]) -> str:
        """The dice."""
        return "drawn"
