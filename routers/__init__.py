"""Routers of a cluster, one file each, and the contract for your own (`Router`)."""

from simbatch.routers.base import RequestView
from simbatch.sim.plugins.router import ReplicaView, Router

__all__ = ["ReplicaView", "RequestView", "Router"]
