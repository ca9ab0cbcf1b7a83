"""The contract of batching policies, by the name that a policy imports it (`sim/plugins/policy.py` has it)."""

from simbatch.sim.plugins.policy import DECISIONS, EngineView, Plan, Policy, RequestView

__all__ = ["DECISIONS", "EngineView", "Plan", "Policy", "RequestView"]
