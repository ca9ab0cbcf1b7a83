"""Requests that end otherwise than with all their tokens: too long, cut, or in an engine that is stuck."""

from __future__ import annotations

from typing import Any

import pytest

from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.host import HostTimes
from simbatch.sim.engine.record import FINISHED, REJECTED, UNFINISHED, RunRecord
from simbatch.sim.metrics.steady import warnings_of
from simbatch.sim.scheduler.config import EngineConfig
from tests.engine_cases import random_case
from tests.results_records import facts

STUCK = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "max_model_len": 1024, "num_gpu_blocks": 5}
SLOW = HostTimes(lag_ps=10**9, tail_ps=10**8, update_base_ps=10**8)


def run_of(rows: list[tuple[int, int, int]], **settings: Any) -> RunRecord:
    """A run of (arrival_ps, prompt, output) with 64 tokens of KV memory, if nothing else is said."""
    case = random_case(1)
    case.source.rows = [(*row, 0, ()) for row in rows]
    case.source.max_concurrency = case.noise_seed = None
    case.config, case.policy = EngineConfig(**STUCK | settings), VLLM()
    return case.run()


@pytest.mark.parametrize("host", [None, SLOW])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_prompt_that_never_fits_ends_the_run(is_async: bool, host: HostTimes | None) -> None:
    """Nothing can be scheduled and nothing will change: the run is over after `MAX_EMPTY_STEPS` calls."""
    record = run_of([(0, 10, 5), (1, 100, 5), (2, 10, 5)], async_scheduling=is_async, host=host)
    assert record.requests.status.tolist() == [FINISHED, UNFINISHED, UNFINISHED]  # behind it nobody gets in
    assert record.requests.num_output_tokens.tolist() == [5, 0, 0]
    assert record.requests.scheduled_ps[1:].tolist() == [-1, -1]
    assert "2 of 3 requests never finished: the engine was stuck." in warnings_of(record, facts())


@pytest.mark.parametrize("host", [None, SLOW])
@pytest.mark.parametrize("is_async", [False, True])
def test_requests_that_rotate_for_ever_end_the_run(
    is_async: bool, host: HostTimes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt larger than the pool, admitted by its first chunk, preempts itself again and again: no token comes."""
    monkeypatch.setattr("simbatch.sim.engine.stepwise.MAX_FRUITLESS_STEPS", 1000)
    settings = {"scheduler_reserve_full_isl": False, "enable_prefix_caching": False}
    record = run_of([(0, 100, 5), (0, 10, 5)], async_scheduling=is_async, host=host, **settings)
    assert record.requests.status.tolist() == [UNFINISHED, UNFINISHED]
    assert not record.requests.num_output_tokens.any()
    assert 100 < record.num_preemptions <= 1001
    assert record.num_steps <= 2 * 1001  # every other step is leapt over, and not counted
    assert "2 of 2 requests never finished: the engine was stuck." in warnings_of(record, facts())


@pytest.mark.parametrize("host", [None, SLOW])
@pytest.mark.parametrize("is_async", [False, True])
def test_max_model_len_cuts_and_rejects(is_async: bool, host: HostTimes | None) -> None:
    """A prompt must leave room for one token; outputs end where both together reach the limit, as in vLLM."""
    settings = {"max_model_len": 100, "num_gpu_blocks": 50, "async_scheduling": is_async, "host": host}
    record = run_of([(0, 90, 10), (0, 90, 11), (0, 99, 1), (0, 99, 50), (0, 100, 1), (0, 300, 5)], **settings)
    assert record.requests.status.tolist() == [FINISHED] * 4 + [REJECTED] * 2
    assert record.requests.num_output_tokens.tolist() == [10, 10, 1, 1, 0, 0]
    assert record.num_truncated == 2  # not those that are rejected
    assert record.requests.reason == {
        4: "prompt of 100 tokens is not shorter than max_model_len (100)",
        5: "prompt of 300 tokens is not shorter than max_model_len (100)",
    }
    assert warnings_of(record, facts()) == [
        "2 of 6 requests were rejected; see the reasons.",
        "2 of 6 requests had their output cut, as vLLM does where prompt and output reach max_model_len.",
    ]
