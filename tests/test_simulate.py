"""What a run leaves behind in the process that asked for it."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from simbatch import Policy, Scenario, simulate

FIXED: dict[str, Any] = {"distribution": "fixed", "mean": 10}
SCENARIO = Scenario.from_dict(
    {
        "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
        "workload": {"num_prompts": 5, "request_rate": 5, "prompt_len": FIXED, "output_len": FIXED},
    }
)


class Looks(Policy):
    """Looks how often Python collects while a run is under way."""

    seen: tuple[int, int, int] | None = None

    def seats(self, engine: Any) -> int:
        type(self).seen = gc.get_threshold()
        return 4


class Greedy(Policy):
    """Breaks a rule."""

    def seats(self, engine: Any) -> int:
        raise ValueError("no seats")


def test_collections_are_rare_in_a_run_and_as_before_behind_it() -> None:
    before = gc.get_threshold()
    simulate(SCENARIO, Looks())
    assert Looks.seen is not None
    assert Looks.seen[0] > before[0]
    assert gc.get_threshold() == before
    with pytest.raises(Exception, match="no seats"):
        simulate(SCENARIO, Greedy())
    assert gc.get_threshold() == before
