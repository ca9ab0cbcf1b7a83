"""Always the same replica for the same session."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import ClassVar

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router

POINTS = 128  # of each replica on the ring: shares differ by about 9 %


class Session(Router):
    """All turns of a session to one replica, found by consistent hashing: if one is down, only its sessions move.

    A request without a session goes by its tenant, one without either by its own name. Source: D. Karger et al.,
    Consistent Hashing and Random Trees (STOC 1997); session affinity of the vLLM production stack's router
    (`--routing-logic session`).
    """

    draws: ClassVar = False

    def start(self, replicas: Sequence[ReplicaView], draw: Callable[[], float]) -> None:
        """Put every replica on the ring, many times."""
        ring = sorted((_hash(f"{replica.index} {i}"), replica.index) for replica in replicas for i in range(POINTS))
        self.points = [point for point, _ in ring]
        self.owners = [owner for _, owner in ring]

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """The first that is up, clockwise from the session's place."""
        begin = bisect(self.points, _hash(request.session_id or request.tenant or request.request_id))
        by_index = {replica.index: replica for replica in replicas}
        size = len(self.owners)
        return next(by_index[owner] for i in range(size) if (owner := self.owners[(begin + i) % size]) in by_index)

    def why(self, request: RequestView, replicas: Sequence[ReplicaView]) -> str:
        """Whose it is."""
        named = {"session": request.session_id, "tenant": request.tenant}
        whose = next((f"{what} {name}" for what, name in named.items() if name), None)
        return f"by the place of {whose} on the ring" if whose else "by its name"


def _hash(text: str) -> int:
    """A place on the ring, which is one on every machine."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
