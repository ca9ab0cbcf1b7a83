"""A simulator of LLM inference serving, calibrated by real GPU profiles.

>>> from simbatch import Scenario, simulate

What stands here is imported when it is first used, so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simbatch.policies.testing import check_policy
    from simbatch.profiler.model.memory_plan import plan_memory
    from simbatch.sim.errors import Problem, UserError
    from simbatch.sim.plan.ask import plan
    from simbatch.sim.plugins.policy import Policy
    from simbatch.sim.report.result import Result
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.search import simulate
    from simbatch.sim.search.compared import compare
    from simbatch.sim.search.sweep import sweep
    from simbatch.sim.tuning.ask_capacity import capacity

__all__ = [
    "Policy",
    "Problem",
    "Result",
    "Scenario",
    "UserError",
    "capacity",
    "check_policy",
    "compare",
    "plan",
    "plan_memory",
    "simulate",
    "sweep",
]

_HOMES = {
    "Policy": "simbatch.sim.plugins.policy",
    "Problem": "simbatch.sim.errors",
    "Result": "simbatch.sim.report.result",
    "Scenario": "simbatch.sim.scenario",
    "UserError": "simbatch.sim.errors",
    "capacity": "simbatch.sim.tuning.ask_capacity",
    "check_policy": "simbatch.policies.testing",
    "compare": "simbatch.sim.search.compared",
    "plan": "simbatch.sim.plan.ask",
    "plan_memory": "simbatch.profiler.model.memory_plan",
    "simulate": "simbatch.sim.search",
    "sweep": "simbatch.sim.search.sweep",
}


if find_spec("simbatch.sim") is None:  # sim/ lies beside this folder in the checkout, inside it where installed
    raise ImportError(
        f"{__path__[0]} is a checkout's folder and hides the simbatch that is installed: "
        "run Python from another folder, or install with pip install --editable ."
    )


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("simbatch")
    if name not in _HOMES:
        raise AttributeError(f"module 'simbatch' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
