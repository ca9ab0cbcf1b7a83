"""memory_aware: its decisions by hand, and the evictions of Past-Future (ASPLOS 2025) in a small KV cache."""

from __future__ import annotations

import numpy as np
import pytest

from simbatch import Result, Scenario
from simbatch.policies.memory_aware import MemoryAware
from simbatch.policies.vllm import VLLM
from tests.engine_cases import MS, Row
from tests.policy_scenarios import serving, under, uniform
from tests.test_policies import serve

SMALL = {"num_gpu_blocks": 21, "max_model_len": 256}  # 20 usable blocks of 16 tokens


class TestDecisions:
    """320 tokens of KV; prompts of 32."""

    def test_it_keeps_room_for_the_outputs_it_expects(self) -> None:
        """Three of 32 + 64 tokens fit, with the margin of one block and half a block each; a fourth would not."""
        rows: list[Row] = [(0, 32, 64, 0, ()) for _ in range(8)]
        record = serve(MemoryAware(expected_output_tokens=64), rows, **SMALL)
        assert (record.steps or [])[0].num_running == 3
        assert record.requests.num_preemptions.sum() == 0
        assert serve(VLLM(), rows, **SMALL).requests.num_preemptions.sum() > 0

    def test_who_is_alone_is_never_refused(self) -> None:
        record = serve(MemoryAware(expected_output_tokens=10_000), [(0, 32, 64, 0, ()) for _ in range(3)], **SMALL)
        assert max(row.num_running for row in record.steps or []) == 1
        assert (record.requests.status == 0).all()

    def test_it_learns_from_those_who_have_ended(self) -> None:
        """Told to expect 10,000 tokens, it has seen eight outputs of 4 and lets more run."""
        rows: list[Row] = [(i * 5 * MS, 32, 4, 0, ()) for i in range(60)]
        record = serve(MemoryAware(expected_output_tokens=10_000, adjustment_interval=8), rows, **SMALL)
        running = [row.num_running for row in record.steps or []]
        assert running[0] == 1
        assert max(running[len(running) // 2 :]) >= 5

    def test_too_many_preempted_widen_the_margin_and_few_narrow_it(self) -> None:
        policy = MemoryAware(adjustment_interval=10, max_preempted_share=0.15)
        policy.start(View())
        margins = []
        for num_preempted in (1, 2, 0):
            for i in range(10):
                policy.finished(Ended(num_preemptions=int(i < num_preempted)))
            margins.append(policy._margin)
        assert margins == pytest.approx([0.05 * 0.9, 0.05 * 0.9 * 1.5, 0.05 * 0.9 * 1.5 * 0.9])


def busy(num_prompts: int, seed: int, prompt: tuple[int, int], output: tuple[int, int]) -> Scenario:
    """All at once on an RTX 4090, whose cache holds 41,392 tokens."""
    lengths = {"prompt_len": uniform(*prompt), "output_len": uniform(*output)}
    return serving("rtx4090-llama-3.1-8b-bf16", num_prompts, None, seed=seed, **lengths)


def preempted_share(result: Result, *, skip: float = 0.0) -> float:
    """Of requests, in order of their ends, after the first `skip` of them."""
    requests = result.requests
    preempted = requests["num_preemptions"][np.argsort(requests["finish_s"])] > 0
    return float(preempted[int(skip * len(preempted)) :].mean())


class TestSource:
    DECODE_HEAVY = (16, 256), (512, 1024)
    PREFILL_HEAVY = (512, 1024), (16, 256)

    @pytest.mark.parametrize("seed", range(2))
    def test_few_are_evicted_and_more_is_served_under_decode_heavy_loads(self, seed: int) -> None:
        """Against admission by the memory of now (aggressive), and by the longest request (conservative)."""
        scenario = busy(600, seed, *self.DECODE_HEAVY)
        aware, aggressive = under(scenario, "memory_aware"), under(scenario, "vllm")
        conservative = under(scenario, "fixed", batch_size=41_392 // (256 + 1024))
        assert preempted_share(aggressive) > 0.6
        assert preempted_share(aware) < 0.2 * preempted_share(aggressive)
        assert preempted_share(conservative) == 0
        served, least, most = (run.summary["output_throughput"] for run in (aware, conservative, aggressive))
        assert served > 0.97 * most
        assert served > 1.4 * least
        assert aware.summary["p99_tpot_ms"] < 0.6 * aggressive.summary["p99_tpot_ms"]

    def test_prefill_heavy_loads_leave_little_to_gain(self) -> None:
        scenario = busy(400, 0, *self.PREFILL_HEAVY)
        aware, aggressive = under(scenario, "memory_aware"), under(scenario, "vllm")
        assert preempted_share(aggressive) < 0.25
        assert preempted_share(aware) < 0.05
        assert aware.summary["output_throughput"] > 0.97 * aggressive.summary["output_throughput"]

    def test_the_share_of_the_preempted_follows_its_bound(self) -> None:
        """After the first outputs have been seen; a higher share is allowed for and used, to serve more."""
        scenario = busy(1000, 0, *self.DECODE_HEAVY)
        results = [under(scenario, "memory_aware", max_preempted_share=bound) for bound in (0.02, 0.2)]
        shares = [preempted_share(result, skip=0.25) for result in results]
        assert shares[0] < 0.04
        assert max(0.04, 2 * shares[0]) < shares[1] < 0.24
        assert results[1].summary["output_throughput"] > results[0].summary["output_throughput"]


class View:
    """An engine in which nothing runs."""

    num_usable_blocks = 100
    free_blocks = 100
    block_size = 16


class Ended:
    """A finished request, as far as the margin looks at it."""

    request_id = "x"
    num_output_tokens = 10

    def __init__(self, num_preemptions: int) -> None:
        self.num_preemptions = num_preemptions
