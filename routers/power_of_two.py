"""The better one of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router


class PowerOfTwo(Router):
    """The one with fewer requests in flight of two different replicas that are drawn; of equals the first drawn.

    Nearly all of what knowing every queue gives, and several gateways that do not know of each other do not all run to
    one replica. Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (IEEE TPDS 12, 2001);
    SGLang's router has it as `power_of_two`.
    """

    known_as = "SGLang"

    def start(self, replicas: Sequence[ReplicaView], draw: Callable[[], float]) -> None:
        """Keep the dice."""
        self.draw = draw

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """Two draws a request."""
        n = len(replicas)
        first = int(self.draw() * n)
        if n == 1:
            return replicas[first]
        second = int(self.draw() * (n - 1))
        one, other = replicas[first], replicas[second + (second >= first)]
        return one if one.num_requests <= other.num_requests else other
