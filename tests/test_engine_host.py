"""What the engine's thread takes: kinds of launch as vLLM's CUDA graphs have them, and their formulas."""

from __future__ import annotations

from typing import Any

import pytest

from simbatch import Scenario
from simbatch.sim.cost.host import HostTimes, LaunchTimes
from simbatch.sim.engine.resources import Host
from simbatch.sim.scenario import resolve

TIMES = HostTimes(
    graph=LaunchTimes(1_000, 10),
    piecewise=LaunchTimes(20_000, 100, 3_000, 7),
    none=LaunchTimes(500_000, 2_000, 40_000, 11),
    update_base_ps=50,
    update_per_seq_ps=3,
    admit_base_ps=70,
    admit_per_prompt_token_ps=2,
)
# (requests, of which are prefills, tokens) with a largest graph of 64
KINDS = [
    ((1, 0, 1), "graph"),
    ((64, 0, 64), "graph"),  # at most that many requests
    ((65, 0, 65), "none"),  # 65 tokens are too many for pieces too
    ((1, 1, 64), "piecewise"),  # at most that many tokens
    ((1, 1, 65), "none"),
    ((40, 1, 64), "piecewise"),  # one prefill is enough
    ((40, 1, 103), "none"),
    ((1, 1, 1), "piecewise"),  # the last token of a prompt is no decode
]


@pytest.mark.parametrize(("batch", "kind"), KINDS)
def test_kinds_of_launch(batch: tuple[int, int, int], kind: str) -> None:
    """`graph`: no prefills, and requests up to the largest graph; `piecewise`: tokens up to it; `none`: the rest."""
    host, (num_requests, num_prefills, num_tokens) = Host(TIMES, 64), batch
    assert host.kind(*batch) == kind
    expected = {
        "graph": 1_000 + 10 * num_requests,
        "piecewise": 20_000 + 100 * num_requests + 3_000 * num_prefills + 7 * num_tokens,
        "none": 500_000 + 2_000 * num_requests + 40_000 * num_prefills + 11 * num_tokens,
    }
    assert host.launch_ps(*batch) == expected[kind]


@pytest.mark.parametrize("batch", [(1, 0, 1), (64, 0, 64), (1, 1, 1), (3, 2, 700)])
def test_without_graphs_every_launch_is_of_kind_none(batch: tuple[int, int, int]) -> None:
    assert Host(TIMES, 0).kind(*batch) == "none"


def inline(**engine: Any) -> Scenario:
    """A scenario of a profile that has a host."""
    profile: dict[str, Any] = {
        "num_gpu_blocks": 1000,
        "step_time": {"base_s": 0.01, "per_prefill_token_s": 0, "per_decode_seq_s": 0, "per_context_token_s": 0},
        "host": {"launch": {"none": {"base_s": 0.02}}},
    }
    workload = {"num_prompts": 2, "request_rate": 1, "prompt_len": {"distribution": "fixed", "mean": 10}}
    workload |= {"output_len": {"distribution": "fixed", "mean": 4}}
    return Scenario.from_dict({"profile": profile, "engine": engine, "workload": workload})


def test_enforce_eager_is_no_graphs() -> None:
    engine = {"max_model_len": 1000, "max_num_seqs": 16, "max_num_batched_tokens": 512}
    assert resolve(inline(**engine)).engine.max_capture_size == 32
    assert resolve(inline(**engine, max_cudagraph_capture_size=8)).engine.max_capture_size == 8
    assert resolve(inline(**engine, enforce_eager=True)).engine.max_capture_size == 0


class Doubled:
    """Launches of one kind take twice their mean."""

    def __init__(self, kind: str) -> None:
        self._kind, self.asked = kind, list[tuple[int, str]]()

    def draws_for(self, kind: str) -> bool:
        return kind == self._kind

    def launch_ps(self, mean_ps: int, kind: str) -> int:
        self.asked.append((mean_ps, kind))
        return 2 * mean_ps


def test_only_spread_kinds_take_a_draw() -> None:
    draws = Doubled("piecewise")
    host = Host(TIMES, 64, draws)
    assert [host.launch_ps(*batch) for batch in ((2, 0, 2), (1, 1, 64), (1, 1, 65))] == [1_020, 47_096, 542_715]
    assert draws.asked == [(23_548, "piecewise")]
    assert not host.draws_for(64)
    assert Host(TIMES, 64, Doubled("graph")).draws_for(64)
    assert Host(TIMES, 64, Doubled("none")).draws_for(65)


def test_updates_and_admissions() -> None:
    host = Host(TIMES, 64)
    assert (host.update_ps(5), host.admit_ps(100)) == (65, 270)
