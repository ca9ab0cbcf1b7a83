"""Batching policies, one file each, and the contract for your own (`Policy`)."""

from simbatch.policies.base import RequestView
from simbatch.sim.plugins.policy import EngineView, Plan, Policy

__all__ = ["EngineView", "Plan", "Policy", "RequestView"]
