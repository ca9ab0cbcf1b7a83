"""Batching policies, one file each, and the contract for your own (`Policy`)."""

from simbatch.sim.plugins.policy import EngineView, Plan, Policy, RequestView

__all__ = ["EngineView", "Plan", "Policy", "RequestView"]
