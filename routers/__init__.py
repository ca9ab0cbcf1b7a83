"""Routers of a cluster, one file each, and the contract for your own (`Router`)."""

from simbatch.sim.plugins.router import ReplicaView, RequestView, Router

__all__ = ["ReplicaView", "RequestView", "Router"]
