"""Where the fewest requests are in flight."""

from __future__ import annotations

from typing import ClassVar

from simbatch.sim.plugins.router import Router


class LeastRequests(Router):
    """To the replica with the fewest requests in flight by the gateway's own books; of equals the first.

    Source: `least_conn` of nginx (`ngx_http_upstream_least_conn_module`), and `least-request` of AIBrix's gateway.
    """

    known_as = "nginx's least_conn"
    draws: ClassVar = False
    least: ClassVar = ("num_requests",)
