"""The contract of routers, by the name that a router imports it (`sim/plugins/router.py` has it)."""

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router

__all__ = ["ReplicaView", "RequestView", "Router"]
