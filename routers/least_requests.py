"""Where the fewest requests are in flight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router


class LeastRequests(Router):
    """To the replica with the fewest requests in flight by the gateway's own books; of equals the first.

    Source: `least_conn` of nginx (`ngx_http_upstream_least_conn_module`), and `least-request` of AIBrix's gateway.
    """

    known_as = "nginx's least_conn"
    draws: ClassVar = False

    def route(self, request: RequestView, replicas: Sequence[ReplicaView]) -> ReplicaView:
        """All books are looked at."""
        best, fewest = replicas[0], replicas[0].num_requests
        for replica in replicas:  # half of what `min` with a key takes, for every request
            if (num_requests := replica.num_requests) < fewest:
                best, fewest = replica, num_requests
        return best
