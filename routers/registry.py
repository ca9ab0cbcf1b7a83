"""Routers by name: those that ship, those that other packages offer, and the user's own classes."""

from __future__ import annotations

from simbatch.routers.base import Router
from simbatch.sim.plugins import Plugins

ROUTERS: Plugins[Router] = Plugins(
    "router",
    "cluster.router",
    "routers",
    "simbatch.routers",
    frozenset({"base", "random_clusters", "registry", "testing"}),
    Router,
    "simbatch.routers.Router",
)
