"""`fair`: the tenant that has been served least goes next.

memory_aware: its decisions by hand, and the evictions of Past-Future (ASPLOS 2025) in a small KV cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simbatch import Result, Scenario
from simbatch.policies.fair import Fair
from simbatch.policies.memory_aware import MemoryAware
from simbatch.policies.vllm import VLLM
from tests.bench_files import write_lines
from tests.engine_cases import MS, Row
from tests.made_scenarios import in_order, serve, serving, under, uniform

Arrival = tuple[str, int, int]  # tenant, time (ms), output tokens


def admitted(policy: Fair, *arrivals: Arrival) -> list[str]:
    """The order in which requests get the one seat: a1, b0, ... Prompts have 4 tokens; a step takes 10 to 11 ms."""
    tenants = [tenant for tenant, _, _ in arrivals]
    rows: list[Row] = [(ms * MS, 4, output, 0, ()) for _, ms, output in arrivals]
    record = serve(policy, rows, tenants=[*tenants], max_num_seqs=1)
    names = [f"{tenant}{tenants[:i].count(tenant)}" for i, tenant in enumerate(tenants)]
    return [names[i] for i in in_order(record)]


class TestByHand:
    """Prompts of 4 tokens and outputs of 5: a request is worth 4 + 2 * 5 = 14 and lasts 54 ms."""

    def test_tenants_take_turns(self) -> None:
        order = admitted(Fair(), ("a", 0, 5), ("a", 0, 5), ("a", 0, 5), ("b", 0, 5), ("b", 0, 5))
        assert order == ["a0", "b0", "a1", "b1", "a2"]

    def test_what_counts_are_tokens_not_requests(self) -> None:
        """One of b's is worth 4 + 2 * 12 = 28, two of a's."""
        order = admitted(Fair(), *[("a", 0, 5)] * 4, *[("b", 0, 12)] * 2)
        assert order == ["a0", "b0", "a1", "a2", "b1", "a3"]

    def test_weights_are_shares(self) -> None:
        order = admitted(Fair(weights={"b": 2.0}), *[("a", 0, 5)] * 3, *[("b", 0, 5)] * 4)
        assert order == ["a0", "b0", "b1", "a1", "b2", "b3", "a2"]

    def test_who_comes_late_does_not_catch_up(self) -> None:
        """b comes while a's third is served: it is lifted to a's 42, and they take turns."""
        order = admitted(Fair(), *[("a", 0, 5)] * 6, *[("b", 120, 5)] * 3)
        assert order == ["a0", "a1", "a2", "a3", "b0", "a4", "b1", "a5", "b2"]

    def test_nor_does_who_comes_to_an_empty_queue(self) -> None:
        """b comes to nobody, is lifted to a's 42, and while its first is served (56) a comes back, lifted to that."""
        policy = Fair(expected_output_tokens=5)
        order = admitted(policy, *[("a", 0, 5)] * 3, *[("b", 500, 5)] * 3, *[("a", 501, 5)] * 2)
        assert order == ["a0", "a1", "a2", "b0", "b1", "a3", "b2", "a4"]

    def test_a_charge_is_put_right_at_the_end(self) -> None:
        """b's first is charged for 100 tokens and has 1: when it ends, b has had 4 + 2 and goes before a's 14."""
        order = admitted(Fair(), ("a", 0, 5), ("b", 0, 1), ("a", 0, 5), ("b", 0, 1), ("b", 0, 1))
        assert order == ["a0", "b0", "b1", "b2", "a1"]


def serve_tenants(
    folder: Path, policy: str, rates: dict[str, float], *, seconds: int = 60, **parameters: object
) -> Result:
    """256 tokens in, 256 out, at even intervals, as in the paper; on an RTX 4090, which bears 8 of them a second.

    As many seats as the memory has room for, since the paper's engine admits nobody whom it may have to preempt.
    """
    rows = [
        {"arrival_s": (i + t / 7) / rate, "tenant": tenant, "request_id": f"{tenant}-{i}"}
        for t, (tenant, rate) in enumerate(rates.items())
        for i in range(int(rate * seconds))
    ]
    trace = folder / "tenants.jsonl"
    lengths = {"num_prompt_tokens": 256, "num_output_tokens": 256}
    write_lines(trace, [row | lengths for row in sorted(rows, key=lambda r: r["arrival_s"])])
    content = {"profile": "rtx4090-llama-3.1-8b-bf16", "engine": {"max_num_seqs": 80}}
    workload = {"trace": {"path": str(trace), "format": "jsonl"}}
    return under(Scenario.from_dict({**content, "workload": workload}), policy, **parameters)


def of(result: Result, tenant: str, column: str) -> np.ndarray:
    names = [str(name) for name in result.requests["request_id"]]
    return result.requests[column][[name.startswith(f"{tenant}-") for name in names]]


def service(result: Result, tenant: str, times_s: np.ndarray) -> np.ndarray:
    """What a tenant has been served by then, as VTC counts it: a prompt token 1, an output token 2."""
    scheduled, first, finish, prompt, output = (
        of(result, tenant, column)[:, None]
        for column in ("scheduled_s", "first_token_s", "finish_s", "num_prompt_tokens", "num_output_tokens")
    )
    outputs = output * np.clip((times_s - first) / (finish - first), 0, 1)
    return (prompt * (scheduled <= times_s) + 2 * outputs).sum(axis=0)


class TestVirtualTokenCounter:
    """Sheng et al., the evaluation's synthetic workloads."""

    def test_two_backlogged_tenants_get_equal_service_whatever_they_send(self, tmp_path: Path) -> None:
        """Figure 3: the difference stays where it was under `fair`, and grows with time under `vllm`.

        The theorem bounds it by twice the larger of a prompt and the service that fits the memory, 2 * 41 392 tokens.
        """
        times_s, rates = np.arange(15.0, 61.0, 5.0), {"a": 6.0, "b": 12.0}
        for policy, share in (("fair", 1.0), ("vllm", 2.0)):
            result = serve_tenants(tmp_path, policy, rates)
            a, b = (service(result, tenant, times_s) for tenant in "ab")
            assert (b[-1] - b[0]) / (a[-1] - a[0]) == pytest.approx(share, rel=0.05)
            gap = b - a
            if policy == "fair":
                assert np.ptp(gap) < 0.1 * (a[-1] - a[0])
                assert np.abs(gap).max() < 2 * 2 * 41_392
            else:
                assert (np.diff(gap) > 0).all()

    def test_who_sends_less_than_its_share_does_not_feel_the_others(self, tmp_path: Path) -> None:
        """Figure 4: two are below their third of the capacity, one far above it."""
        rates = {"a": 1.0, "b": 2.0, "c": 14.0}
        fair, vllm = (serve_tenants(tmp_path, policy, rates) for policy in ("fair", "vllm"))
        for tenant in "ab":
            assert of(fair, tenant, "ttft_s").mean() < 0.1 * of(vllm, tenant, "ttft_s").mean()
            assert of(fair, tenant, "ttft_s").max() < 5.0  # seats come free in waves: the requests are all alike
        assert of(fair, "c", "ttft_s").max() > 20.0

    def test_nobody_is_made_to_wait_for_who_is_not_there(self, tmp_path: Path) -> None:
        """Work-conserving: as much is served as under `vllm`, and as fast."""
        fair, vllm = (serve_tenants(tmp_path, policy, {"a": 1.0, "b": 14.0}) for policy in ("fair", "vllm"))
        assert fair.summary["duration"] == pytest.approx(vllm.summary["duration"], rel=0.02)

    def test_weighted_tenants_are_served_by_their_weights(self, tmp_path: Path) -> None:
        times_s = np.array([15.0, 60.0])
        result = serve_tenants(tmp_path, "fair", {"a": 12.0, "b": 12.0}, weights={"b": 3.0})
        a, b = (np.ptp(service(result, tenant, times_s)) for tenant in "ab")
        assert b / a == pytest.approx(3.0, rel=0.1)


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
