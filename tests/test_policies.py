"""What each policy decides, on arrivals small enough to follow by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from simbatch.policies import EngineView, Policy, RequestView
from simbatch.policies.adaptive import Adaptive
from simbatch.policies.fixed import Fixed
from simbatch.policies.priority import Priority
from simbatch.policies.registry import load_policy, policy_names
from simbatch.policies.vllm import VLLM
from simbatch.sim.cost.model import LinearCost
from simbatch.sim.engine import run
from simbatch.sim.engine.record import RunRecord
from simbatch.sim.errors import UserError
from simbatch.sim.scheduler.config import EngineConfig
from tests.engine_cases import MS, ListSource, Row

HERE = Path(__file__).parent


def serve(policy: Policy, rows: list[Row], **settings: Any) -> RunRecord:
    """Steps of 10 ms plus 1 ms a decode; 16 seats."""
    config = EngineConfig(
        **{
            "max_num_seqs": 16,
            "max_num_batched_tokens": 256,
            "max_model_len": 256,
            "num_gpu_blocks": 1000,
            "enable_prefix_caching": False,
            **settings,
        }
    )
    return run(config, LinearCost(10 * MS, 0, MS, 0), policy, ListSource(rows), steps=True)


def batch_sizes(record: RunRecord) -> list[int]:
    return [len(row.scheduled) for row in record.steps or []]


def all_at_once(n: int, output: int = 5) -> list[Row]:
    return [(0, 4, output, 0, ()) for _ in range(n)]


class TestFixed:
    def test_at_most_so_many_run_and_seats_are_filled_at_once(self) -> None:
        record = serve(Fixed(batch_size=3), all_at_once(7))
        assert batch_sizes(record) == [3] * 10 + [1] * 5

    def test_static_batches_wait_for_the_whole_batch(self) -> None:
        rows = [(0, 4, n, 0, ()) for n in (5, 1, 3, 2)]
        record = serve(Fixed(batch_size=2), rows, batching="static")
        assert batch_sizes(record) == [2, 1, 1, 1, 1, 2, 2, 1]

    def test_the_engine_has_the_last_word(self) -> None:
        assert max(batch_sizes(serve(Fixed(batch_size=100), all_at_once(50)))) == 16


class TestAdaptive:
    def test_it_grows_from_one_by_at_least_one(self) -> None:
        """int(1 * 1.5) is 1: written the usual way, growth would never start."""
        policy, sizes = Adaptive(target_tpot_ms=1000, adjustment_interval=2), []
        policy.start(View(max_num_seqs=16))
        for _ in range(8):
            sizes.append(policy.seats(View(max_num_seqs=16)))
            for _ in range(2):
                policy.finished(Finished(tpot_s=0.011))
        assert sizes == [1, 2, 3, 4, 6, 9, 13, 16]  # by a half, at least by one, never above the engine's seats
        assert max(batch_sizes(serve(Adaptive(target_tpot_ms=1000), all_at_once(200)))) == 16

    def test_additive_growth_is_by_one(self) -> None:
        policy = Adaptive(target_tpot_ms=1000, adjustment_interval=2, growth="additive", max_batch_size=5)
        assert max(batch_sizes(serve(policy, all_at_once(60)))) == 5

    @pytest.mark.parametrize("n", [7, 20])
    def test_above_the_target_it_shrinks_to_seven_tenths(self, n: int) -> None:
        policy = Adaptive(target_tpot_ms=5, min_batch_size=2, max_batch_size=64)
        policy.start(View(max_num_seqs=64))
        policy._batch_size = n
        for _ in range(10):
            policy.finished(Finished(tpot_s=0.006))
        assert policy.seats(View(max_num_seqs=64)) == int(n * 0.7)

    def test_between_the_bounds_it_stays(self) -> None:
        policy = Adaptive(target_tpot_ms=10, min_batch_size=4)
        policy.start(View(max_num_seqs=64))
        for tpot_s in (0.0081, 0.0099) * 10:
            policy.finished(Finished(tpot_s=tpot_s))
        assert policy.seats(View(max_num_seqs=64)) == 4

    def test_one_token_has_no_tpot_and_does_not_count(self) -> None:
        policy = Adaptive(target_tpot_ms=50, adjustment_interval=1)
        policy.start(View(max_num_seqs=64))
        policy.finished(Finished(tpot_s=None))
        assert policy.seats(View(max_num_seqs=64)) == 1

    def test_it_holds_the_target_that_users_feel(self) -> None:
        """A decode costs 10 ms + 1 ms a sequence: 16 ms TPOT is reached with 6, whatever the queue."""
        rows = [(0, 4, 20, 0, ()) for _ in range(400)]
        record = serve(Adaptive(target_tpot_ms=16, adjustment_interval=5, growth="additive"), rows)
        settled = batch_sizes(record)[len(record.steps or []) // 2 :]
        assert min(settled[:-20]) >= 3
        assert max(settled) <= 7

    def test_two_targets_are_an_error(self) -> None:
        with pytest.raises(ValueError, match="only one of"):
            Adaptive(target_tpot_ms=5, target_ttft_ms=5)


class TestPriority:
    def test_high_goes_before_normal_and_no_seat_stays_empty(self) -> None:
        rows: list[Row] = [(0, 4, 5, 1, ()) for _ in range(4)] + [(0, 4, 5, 0, ()) for _ in range(2)]
        record = serve(Priority(max_batch_size=3), rows)
        assert [index for index, _, _ in (record.steps or [])[0].scheduled] == [4, 5, 0]

    def test_nobody_starves(self) -> None:
        """High ones keep arriving faster than they are served; the normal one waits for `ageing_s`, not for ever."""
        high = [(i * 40 * MS, 4, 5, 0, ()) for i in range(200)]
        rows = sorted([*high, (100 * MS, 4, 5, 1, ())], key=lambda row: (row[0], row[3]))
        normal = rows.index((100 * MS, 4, 5, 1, ()))
        waits = {}
        for ageing_s in (1.0, 1000.0):
            requests = serve(Priority(max_batch_size=1, ageing_s=ageing_s), rows).requests
            waits[ageing_s] = (requests.scheduled_ps[normal] - requests.arrival_ps[normal]) / 10**12
        assert 1.0 <= waits[1.0] < 2.0
        assert waits[1000.0] == max(waits.values()) > 7.0  # without ageing, behind them all

    def test_the_last_in_its_order_is_preempted(self) -> None:
        """Room for 12 blocks of 16; the high one, admitted last, keeps its blocks."""
        rows: list[Row] = [(0, 60, 40, 1, ()), (0, 60, 40, 1, ()), (10 * MS, 60, 40, 0, ())]
        record = serve(Priority(), rows, num_gpu_blocks=14, max_model_len=128)
        assert record.requests.num_preemptions[2] == 0
        assert record.requests.num_preemptions[1] > 0
        vllm = serve(VLLM(), rows, num_gpu_blocks=14, max_model_len=128)
        assert vllm.requests.num_preemptions[2] > 0


class TestOwnPolicies:
    def test_a_file_beside_the_scenario(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text(
            "from simbatch.policies import Policy\n\n\n"
            "class Shortest(Policy):\n    '''Shortest prompt first.'''\n    limit: int = 3\n\n"
            "    def order(self, request):\n        return request.num_prompt_tokens\n"
        )
        policy = load_policy("mine.py:Shortest", {"limit": 5}, folder=tmp_path)
        assert policy.parameters() == {"limit": 5}
        rows: list[Row] = [(0, n, 2, 0, ()) for n in (9, 3, 6)]
        record = serve(policy, rows, max_num_seqs=1)
        assert record.requests.scheduled_ps.argsort().tolist() == [1, 2, 0]

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("def order(self, request):\n        return 1 / 0", r"order\(\) failed at mine.py:4: ZeroDivisionError"),
            ("def seats(self, engine):\n        return 0", r"seats\(\) must be .* \(got 0\)"),
            ("def seats(self, engine):\n        return 17", r"policy Mine at 0\.0.* s: seats\(\) .* \(16\) \(got 17\)"),
            ("def seats(self, engine):\n        return 2.5", r"seats\(\) must be a whole number"),
            (
                "def token_budget(self, engine):\n        return 10**6",
                r"token_budget\(\) must be .* max_num_batched_tokens",
            ),
            ("def reject(self, request, engine):\n        return True", r"reject\(\) must return why, in words"),
            ("def order(self, request):\n        return None", r"order\(\) must return values that can be compared"),
            ("def order(self, request):\n        return float('nan')", r"order\(\) must return values that can be"),
            ("def order(self, request):\n        return {}", r"order\(\) must return values that can be compared"),
            (
                "def order(self, request):\n        return 1 if request.request_id == '0' else 'b'",
                r"order\(\) must return values that can be compared with each other \(got 'b'\)",
            ),
            ("def victim(self, running):\n        return None", r"victim\(\) must return one of the running requests"),
        ],
    )
    def test_a_broken_one_is_named_with_its_rule(self, tmp_path: Path, source: str, message: str) -> None:
        (tmp_path / "mine.py").write_text(f"from simbatch.policies import Policy\nclass Mine(Policy):\n    {source}\n")
        policy = load_policy("mine.py:Mine", {}, folder=tmp_path)
        rows: list[Row] = [(0, 60, 40, 0, ()), (0, 60, 40, 0, ())]
        with pytest.raises(UserError, match=message):
            serve(policy, rows, num_gpu_blocks=10, max_model_len=128)

    def test_rejecting_on_arrival(self) -> None:
        class Picky(Policy):
            def reject(self, request: RequestView, engine: EngineView) -> str | None:
                return "queue is full" if engine.num_waiting >= 2 else None

        record = serve(Picky(), all_at_once(5), max_num_seqs=1)
        assert record.requests.status.tolist() == [0, 0, 1, 1, 1]
        assert record.requests.reason == dict.fromkeys((2, 3, 4), "queue is full")

    def test_a_smaller_budget_makes_smaller_steps(self) -> None:
        class SmallSteps(Policy):
            tokens: int = 8

            def token_budget(self, engine: EngineView) -> int:
                return self.tokens

        record = serve(SmallSteps(tokens=6), [(0, 20, 3, 0, ()), (0, 20, 3, 0, ())])
        assert all(sum(n for _, n, _ in row.scheduled) <= 6 for row in record.steps or [])
        assert (record.requests.status == 0).all()

    def test_the_view_hides_the_output_length(self) -> None:
        seen: list[RequestView] = []

        class Spy(Policy):
            def order(self, request: RequestView) -> int:
                seen.append(request)
                return 0

        serve(Spy(), all_at_once(1))
        assert "max_tokens" not in dir(seen[0])
        assert (seen[0].request_id, seen[0].num_prompt_tokens, seen[0].arrival_s) == ("0", 4, 0.0)
        with pytest.raises(AttributeError):
            seen[0].arrival_s = 3.0  # type: ignore[misc]


class TestRegistry:
    def test_all_that_ship_can_be_made_without_parameters(self) -> None:
        for name in policy_names():
            assert bool(load_policy(name, {}, folder=HERE).decisions()) == (name != "vllm"), name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("fixd", r"policy.name: no such policy \(got 'fixd'\); did you mean fixed\?"),
            ("no.such.package:Mine", "cannot import no.such.package"),
            ("nofile.py:Mine", "no file nofile.py"),
            ("test_policies.py", r"a file, but which class in it\? .* write test_policies.py:Class"),
            ("test_policies.py:Nobody", "has no subclass of simbatch.policies.Policy called Nobody"),
            ("test_policies.py:serve", "has no subclass"),
        ],
    )
    def test_a_name_that_leads_nowhere(self, name: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_policy(name, {}, folder=HERE)

    @pytest.mark.parametrize("params", [{"batch_size": 0}, {"batch_size": "8"}, {"batch_size": True}, {"size": 3}])
    def test_parameters_are_checked(self, params: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            load_policy("fixed", params, folder=HERE)


class Finished:
    """A finished request, as far as feedback looks at it."""

    def __init__(self, tpot_s: float | None) -> None:
        self.tpot_s = tpot_s

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"feedback on TPOT has no business with {name}")


class View:
    """An engine, as far as a batch size looks at it."""

    def __init__(self, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs
