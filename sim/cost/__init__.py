"""Step times and memory: profiles, and the cost models made from them."""

from simbatch.sim.cost.measured_range import MeasuredRange
from simbatch.sim.cost.model import CostModel, LinearCost, TwoRegimeCost
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile, load_profile

__all__ = [
    "CostModel",
    "InlineProfile",
    "LinearCost",
    "MeasuredProfile",
    "MeasuredRange",
    "Profile",
    "TwoRegimeCost",
    "load_profile",
]
