"""Step times and memory: profiles, and the cost models made from them."""

from simbatch.sim import check_compiled

check_compiled()  # before the first module that may be

from simbatch.sim.cost.by_name import load_profile  # noqa: E402
from simbatch.sim.cost.model import CostModel, LinearCost, TwoRegimeCost  # noqa: E402
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile  # noqa: E402
from simbatch.sim.cost.provenance import MeasuredRange  # noqa: E402

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
