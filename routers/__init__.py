"""Routers of a cluster, one file each, and the contract for your own (`Router`)."""

from simbatch.routers.base import ReplicaView, RequestView, Router

__all__ = ["ReplicaView", "RequestView", "Router"]
