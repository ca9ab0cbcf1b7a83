"""Batching policies, one file each, and the contract for your own (`Policy`)."""

from simbatch.policies.base import EngineView, Plan, Policy, RequestView

__all__ = ["EngineView", "Plan", "Policy", "RequestView"]
