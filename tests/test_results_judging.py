"""What tenants and classes felt: their figures, fair shares, the longest wait, tokens computed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simbatch import Policy, Scenario, simulate
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.metrics import groups
from simbatch.sim.metrics.columns import SloLimits
from simbatch.sim.metrics.groups import MAX_TENANTS, Tenants, fair_share_ratios, jain_index, max_min_shares
from simbatch.sim.report.compare import Comparison
from simbatch.sim.report.result import Result
from tests.results_records import MS, REJECTED, UNFINISHED, S, Toy, back_to_back, build, facts

TENANTS = Path(__file__).parents[1] / "scenarios" / "tenants.yaml"


def ours(record: RunRecord, **changes: Any) -> dict[str, Any]:
    block: dict[str, Any] = Result(record, facts(**changes)).summary["simbatch"]
    return block


def one_seat() -> RunRecord:
    """Both requests of `a` before the one of `b`: steps of 1 s, `a` runs to 2 and to 4 s, `b`, sent at 1 s, to 5 s."""
    toys = [Toy(0, [0, 1], tenant="a"), Toy(0, [2, 3], tenant="a"), Toy(S, [4], tenant="b")]
    return build(toys, back_to_back([S] * 5))


def test_fair_shares_by_hand() -> None:
    """Due: a 1 s alone, then half of 3 s; b half of 3 s, then 1 s alone. Held: a 4 s, b 1 s."""
    block = ours(one_seat())
    assert {name: tenant["fair_share_ratio"] for name, tenant in block["tenants"].items()} == {"a": 1.6, "b": 0.4}
    assert block["fairness"]["tenants"] == pytest.approx(2**2 / (2 * (1.6**2 + 0.4**2)))
    assert (block["fairness"]["least_served_tenant"], block["fairness"]["least_fair_share_ratio"]) == ("b", 0.4)


def test_the_other_order_is_fairer() -> None:
    """`b` second: due as before up to 2 s (a 1.5, b 0.5), then half of the second that b runs, then all to a."""
    toys = [Toy(0, [0, 1], tenant="a"), Toy(0, [3, 4], tenant="a"), Toy(S, [2], tenant="b")]
    block = ours(build(toys, back_to_back([S] * 5)))
    assert block["tenants"]["b"]["fair_share_ratio"] == 1.0
    assert block["tenants"]["a"]["fair_share_ratio"] == 1.0
    assert block["fairness"]["tenants"] == 1.0


def test_who_is_alone_or_never_waits_has_its_share() -> None:
    alone = ours(build([Toy(0, [0], tenant="a"), Toy(0, [1], tenant="a")], back_to_back([S, S])))
    assert (alone["fairness"]["tenants"], alone["tenants"]["a"]["fair_share_ratio"]) == (None, 1.0)
    apart = ours(build([Toy(0, [0], tenant="a"), Toy(S, [1], tenant="b")], back_to_back([S, S])))
    assert apart["fairness"]["tenants"] == 1.0


def test_a_tenant_that_is_turned_away_got_nothing() -> None:
    toys = [Toy(0, [0], tenant="a"), Toy(0, [], tenant="b", status=REJECTED)]
    block = ours(build(toys, back_to_back([S])))
    assert block["tenants"]["b"]["fair_share_ratio"] == 0.0
    assert block["tenants"]["b"]["longest_wait_ms"] is None
    assert block["fairness"]["tenants"] == 0.5  # one of two has everything


def test_jain() -> None:
    assert jain_index(np.array([3.0, 3.0, 3.0])) == 1.0
    assert jain_index(np.array([1.0, 0.0, 0.0, 0.0])) == 0.25
    assert jain_index(np.array([])) is None
    assert jain_index(np.zeros(2)) is None


def test_max_min_shares_by_hand() -> None:
    demands = np.array([[10.0, 1.0, 4.0]] * 3)
    shares = max_min_shares(demands, np.array([9.0, 6.0, 15.0]))
    assert shares.tolist() == [[4, 1, 4], [2.5, 1, 2.5], [10, 1, 4]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.floats(0, 1))
def test_max_min_shares_give_all_seats_and_nobody_more_than_it_asks(demands: list[int], share: float) -> None:
    row = np.array([demands], dtype=float)
    seats = np.array([share * sum(demands)])
    [shares] = max_min_shares(row, seats)
    assert shares.sum() == pytest.approx(float(seats[0]))
    assert (shares <= row[0]).all()
    short = shares < row[0] - 1e-9  # whoever gets less than it asks gets as much as anybody
    assert (shares[short] >= shares.max() - 1e-9).all()


def test_many_moments_are_looked_at_less_often_and_say_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    record = simulate(Scenario.load(TENANTS)).record
    tenants = Tenants.of(record)
    exact = fair_share_ratios(record, tenants)
    monkeypatch.setattr(groups, "ROWS", 100)
    np.testing.assert_allclose(fair_share_ratios(record, tenants), exact)
    monkeypatch.setattr(groups, "MAX_MOMENTS", 1500)
    np.testing.assert_allclose(fair_share_ratios(record, tenants), exact, atol=0.05)


def test_a_block_per_tenant_the_largest_first_with_figures_of_its_own() -> None:
    toys = [
        Toy(0, [0], tenant="small"),
        Toy(0, [1, 2], 50, tenant="large"),
        Toy(0, [3, 4], status=UNFINISHED),
        Toy(0, [2], 10, tenant="large"),
    ]
    block = ours(build(toys, back_to_back([100 * MS] * 5)), slo=SloLimits(ttft_ms=250))
    assert list(block["tenants"]) == ["large", "(none)", "small"]
    assert (block["num_tenants"], block["other_tenants"]) == (3, {})
    large = block["tenants"]["large"]
    assert large["requests"] == {"total": 2, "finished": 2, "rejected": 0, "unfinished": 0, "refused": 0}
    assert large["mean_ttft_ms"] == 250
    assert large["slo_share"] == {"all": 0.5, "ttft": 0.5}
    assert large["longest_wait_ms"] == 200
    assert large["mean_normalised_latency_ms"] == (300 / 2 + 300 / 1) / 2
    assert block["tenants"]["(none)"]["longest_wait_ms"] == 300
    assert block["mean_normalised_latency_ms"] == pytest.approx((100 + 150 + 300) / 3)


def test_of_thousands_of_tenants_the_largest_have_blocks_and_the_others_one() -> None:
    toys = [Toy(0, [i], 10 + i % 7, tenant=f"tenant {i % 3000}") for i in range(4000)]
    result = Result(build(toys, back_to_back([MS] * 4000)), facts(slo=SloLimits(ttft_ms=50)))
    block = result.summary["simbatch"]
    assert (block["num_tenants"], len(block["tenants"])) == (3000, MAX_TENANTS)
    others = block["other_tenants"]
    assert others["num_tenants"] == 3000 - MAX_TENANTS
    assert others["requests"]["total"] + sum(b["requests"]["total"] for b in block["tenants"].values()) == 4000
    assert 0 < block["fairness"]["tenants"] < 1
    assert len(json.dumps(result.summary)) < 60_000
    assert "2,980 others" in result.text()


def test_without_tenants_nothing_is_said_of_them() -> None:
    block = ours(build([Toy(0, [0])], back_to_back([MS])))
    assert (block["num_tenants"], block["tenants"], block["other_tenants"]) == (0, {}, {})
    assert (block["fairness"]["tenants"], block["fairness"]["least_served_tenant"]) == (None, None)
    assert block["fairness"]["requests"] == 1.0


def test_the_longest_wait_and_whose() -> None:
    toys = [Toy(0, [0]), Toy(0, [1], priority=2, tenant="acme"), Toy(0, [], status=REJECTED)]
    result = Result(build(toys, back_to_back([S, S])), facts())
    expected = {"wait_ms": 1000, "request_id": "1", "class": "low", "tenant": "acme"}
    assert result.summary["simbatch"]["longest_wait"] == expected
    assert "1,000.0 (request 1, class low, tenant acme)" in result.text()
    starved = build([Toy(0, [0, 1, 2]), Toy(S, [], status=UNFINISHED)], back_to_back([S] * 3))
    assert ours(starved)["longest_wait"]["wait_ms"] == 2000  # to the end, and it never came
    assert set(ours(build([], []))["longest_wait"].values()) == {None}


def test_tokens_computed_again_are_a_share_of_all() -> None:
    """Prompts of 10 and 30 and three decodes: 43 tokens."""
    record = build([Toy(0, [0, 1, 2]), Toy(0, [0, 1], 30)], back_to_back([MS] * 3), num_recomputed_tokens=10)
    block = ours(record)
    assert (block["num_recomputed_tokens"], block["recomputed_tokens_share"]) == (10, 10 / 43)
    assert "Tokens computed again:                   10 (23.26 % of all)" in Result(record, facts()).text()


def test_a_small_cache_wastes_tokens_and_a_large_one_none() -> None:
    pressed = simulate(Scenario.load(TENANTS.parent / "memory_pressure.yaml"))
    block = pressed.summary["simbatch"]
    segments = pressed.record.segments
    computed = int((segments["prefill_tokens"] + segments["num_decodes"] * segments["num_steps"]).sum())
    needed = int((pressed.requests["num_prompt_tokens"] + pressed.requests["num_output_tokens"] - 1).sum())
    assert 0 < block["recomputed_tokens_share"] < 0.5
    assert block["num_recomputed_tokens"] == computed - needed  # nothing shared, so nothing comes from the cache


class Turns(Policy):
    """Start-time fair queueing over tenants."""

    def start(self, engine: Any) -> None:
        self.ends: dict[str | None, float] = {}

    def order(self, request: Any) -> float:
        begin = max(request.arrival_s * 1000, self.ends.get(request.tenant, 0.0))
        if not request.num_preemptions:
            self.ends[request.tenant] = begin + request.num_prompt_tokens + 400
        return begin


def test_a_noisy_neighbour_is_seen_and_turns_stop_it() -> None:
    """First come, first served makes all wait alike, which is not fair to tenants: the index must say so."""
    scenario = Scenario.load(TENANTS)
    first_come, turns = (simulate(scenario, policy).summary["simbatch"] for policy in (None, Turns()))
    assert first_come["fairness"]["tenants"] < 0.95
    assert first_come["fairness"]["least_served_tenant"] in ("chat-a", "chat-b")
    assert turns["fairness"]["tenants"] > 0.99
    for tenant in ("chat-a", "chat-b"):
        assert turns["tenants"][tenant]["slo_share"]["all"] > 0.9 > first_come["tenants"][tenant]["slo_share"]["all"]


def test_tenants_stand_in_the_file_and_the_columns_when_there_are_any(tmp_path: Path) -> None:
    result = Result(build([Toy(0, [0], tenant="a"), Toy(0, [1])], back_to_back([MS] * 2)), facts())
    result.save(tmp_path)
    table = pq.read_table(tmp_path / "requests.parquet")
    assert table.column_names[-2:] == ["client_finish_s", "tenant"]
    assert table["tenant"].to_pylist() == ["a", None]
    assert result.requests["tenant"].tolist() == ["a", None]
    assert result.requests.to_pandas()["tenant"].isna().tolist() == [False, True]
    plain = Result(build([Toy(0, [0])], back_to_back([MS])), facts())
    assert "tenant" not in list(plain.requests)
    with pytest.raises(KeyError, match="no column 'tenant'"):
        plain.requests["tenant"]


def test_a_comparison_has_a_row_for_each_tenant_and_for_fairness() -> None:
    def candidate(order: list[int]) -> Result:
        toys = [Toy(0, [k], tenant=name) for k, name in zip(order, ("a.com", "a.com", "b\x1b"), strict=True)]
        return Result(build(toys, back_to_back([S] * 3)), facts(slo=SloLimits(ttft_ms=1500)))

    compared = Comparison({"first": candidate([0, 1, 2]), "turns": candidate([0, 2, 1])})
    rows = {row.metric.key: row for row in compared.rows}
    assert rows["simbatch.tenants.a.com.p99_ttft_ms"].values["first"] == pytest.approx(1990)
    assert rows["simbatch.tenants.a.com.slo_share.all"].values == {"first": 0.5, "turns": 0.5}
    assert (
        rows["simbatch.tenants.b\x1b.p99_ttft_ms"].metric.label == "P99 TTFT, b? (ms)"
    )  # no escape reaches a terminal
    assert rows["simbatch.fairness.tenants"].best == ["turns"]
    assert rows["simbatch.longest_wait.wait_ms"].metric.better == "lower"


def test_a_table_of_tenants_cuts_names_and_no_figure() -> None:
    toys = [Toy(0, [i + 1], tenant="a name that nobody has room for" * (i + 1)) for i in range(2)]
    lines = Result(build(toys, back_to_back([10**7 * MS] * 4)), facts(slo=SloLimits(ttft_ms=1))).text().splitlines()
    rows = [line for line in lines if line.startswith("a name that nobod...")]  # of two parts: latencies of a century
    assert [row.split()[-2:] for row in rows[2:]] == [["0.00", "%"]] * 2
    assert max(map(len, lines)) <= 100
