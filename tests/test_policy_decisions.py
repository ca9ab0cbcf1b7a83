"""What a policy decides, one question at a time, and policies that plan every step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from math import log
from typing import Any, ClassVar

import pytest

from simbatch.policies import EngineView, Plan, Policy, RequestView
from simbatch.policies.vllm import VLLM
from simbatch.sim.engine.record import REJECTED
from simbatch.sim.errors import UserError
from simbatch.sim.scheduler.decisions import predicted_length
from tests.engine_cases import MS, Row
from tests.made_scenarios import all_at_once, in_order, serve

S = 10**12


class Patient(Policy):
    """Waits for three, at most 100 ms after the first."""

    disciplines: ClassVar = ("continuous", "static")

    def hold(self, head: RequestView, engine: EngineView) -> float:
        return engine.now_s if engine.num_waiting >= 3 else head.arrival_s + 0.1


@pytest.mark.parametrize("batching", ["continuous", "static"])
@pytest.mark.parametrize("is_async", [False, True])
class TestHold:
    def test_a_full_batch_starts_when_it_is_full(self, batching: str, is_async: bool) -> None:
        rows: list[Row] = [(t * MS, 4, 2, 0, ()) for t in (10, 20, 30)]
        record = serve(Patient(), rows, batching=batching, async_scheduling=is_async)
        assert record.requests.scheduled_ps.tolist() == [30 * MS] * 3

    def test_a_promise_ends_the_wait(self, batching: str, is_async: bool) -> None:
        rows: list[Row] = [(t * MS, 4, 2, 0, ()) for t in (10, 20, 500)]
        record = serve(Patient(), rows, batching=batching, async_scheduling=is_async)
        assert record.requests.scheduled_ps.tolist() == [110 * MS, 110 * MS, 600 * MS]

    def test_one_that_would_wait_for_ever_does_not(self, batching: str, is_async: bool) -> None:
        """It puts the time off whenever it is asked, which it is at arrivals alone."""

        class Later(Patient):
            def hold(self, head: RequestView, engine: EngineView) -> float:
                return engine.now_s + 0.2

        rows: list[Row] = [(t * MS, 4, 2, 0, ()) for t in (10, 20, 30)]
        record = serve(Later(), rows, batching=batching, async_scheduling=is_async)
        assert record.requests.scheduled_ps.tolist() == [230 * MS] * 3


def test_hold_must_name_a_time() -> None:
    class Never(Policy):
        def hold(self, head: RequestView, engine: EngineView) -> float:
            return float("inf")

    with pytest.raises(UserError, match=r"hold\(\) must return a time in seconds \(got inf\)"):
        serve(Never(), all_at_once(1))


class TestShed:
    class Impatient(Policy):
        """Drops who has waited 50 ms for a seat."""

        disciplines: ClassVar = ("continuous", "static")

        def shed(self, request: RequestView, engine: EngineView) -> str | None:
            return "too late" if engine.now_s - request.arrival_s > 0.05 else None

    @pytest.mark.parametrize("batching", ["continuous", "static"])
    def test_who_waited_too_long_is_dropped_when_the_seat_comes(self, batching: str) -> None:
        rows: list[Row] = [(0, 4, 6, 0, ()), (0, 4, 6, 0, ()), (40 * MS, 4, 2, 0, ())]
        record = serve(self.Impatient(), rows, max_num_seqs=1, batching=batching)
        assert record.requests.reason == {1: "too late"}
        assert record.requests.status.tolist() == [0, REJECTED, 0]
        assert record.requests.scheduled_ps[2] == record.requests.finish_ps[0]

    def test_who_has_run_is_never_dropped(self) -> None:
        """Twelve blocks: the second is preempted, and long past its time when it is admitted again."""
        rows: list[Row] = [(0, 60, 40, 0, ()), (0, 60, 40, 0, ()), (0, 60, 40, 0, ())]
        record = serve(self.Impatient(), rows, num_gpu_blocks=14, max_model_len=128)
        assert record.num_preemptions > 0
        assert (record.requests.status == 0).all()

    def test_it_must_say_why(self) -> None:
        class Mute(Policy):
            def shed(self, request: RequestView, engine: EngineView) -> str | None:
                return ""

        with pytest.raises(UserError, match=r"shed\(\) must return why, in words, or None"):
            serve(Mute(), all_at_once(1))


class TestLanes:
    class Turns(Policy):
        """One line a class; the class that was admitted least goes first."""

        def start(self, engine: EngineView) -> None:
            self.admissions = {0: 0, 1: 0}

        def lane(self, request: RequestView) -> int:
            return request.priority

        def order(self, request: RequestView) -> int:
            return self.admissions[request.priority]

        def admitted(self, request: RequestView) -> None:
            self.admissions[request.priority] += 1

    def test_the_order_changes_while_requests_wait(self) -> None:
        rows: list[Row] = [(0, 4, 1, 0, ()) for _ in range(4)] + [(0, 4, 1, 1, ()) for _ in range(2)]
        assert in_order(serve(self.Turns(), rows, max_num_seqs=1)) == [0, 4, 1, 5, 2, 3]

    def test_a_lane_must_be_a_key(self) -> None:
        class Wrong(self.Turns):  # type: ignore[name-defined]
            def lane(self, request: RequestView) -> object:
                return []

        with pytest.raises(UserError, match=r"lane\(\) must return something that can be a key"):
            serve(Wrong(), all_at_once(1))


class TestTokenBudget:
    class Stingy(Policy):
        def token_budget(self, engine: EngineView) -> int:
            return 1

    def test_no_decode_is_held_back(self) -> None:
        rows: list[Row] = [(0, 1, 20, 0, ()), (0, 1, 20, 0, ()), (50 * MS, 6, 2, 0, ())]
        record = serve(self.Stingy(), rows)
        steps = record.steps or []
        assert [row.scheduled for row in steps[:2]] == [[(0, 1, 0)], [(0, 1, 1)]]  # nothing is left for the second
        assert all(len(row.scheduled) == 1 for row in steps)
        assert (record.requests.status == 0).all()

    def test_it_is_not_asked_without_chunked_prefill(self) -> None:
        settings = {"enable_chunked_prefill": False}
        assert serve(self.Stingy(), all_at_once(5), **settings).steps == serve(VLLM(), all_at_once(5), **settings).steps


class TestStepTime:
    def test_it_is_what_the_step_then_takes(self) -> None:
        seen: list[tuple[float, int]] = []

        class Curious(Policy):
            def token_budget(self, engine: EngineView) -> int:
                seen.append((engine.step_time_s(8), engine.num_decoding))
                return engine.max_num_batched_tokens

        rows: list[Row] = [(0, 4, 9, 0, ()), (0, 4, 9, 0, ()), (35 * MS, 8, 2, 0, ())]
        record = serve(Curious(), rows)
        step = next(row for row in record.steps or [] if (2, 8, 0) in row.scheduled)
        assert seen[-1] == (pytest.approx((step.end_ps - step.start_ps) / S), 2)


class TestPredictor:
    def test_the_stated_error_is_the_spread_of_the_log(self) -> None:
        ratios = [log(predicted_length(str(i), 1000, 0.4, seed=3) / 1000) for i in range(4000)]
        assert statistics.stdev(ratios) == pytest.approx(0.4, rel=0.05)
        assert statistics.mean(ratios) == pytest.approx(0, abs=0.02)
        assert predicted_length("7", 1000, 0.0, seed=3) == 1000
        assert predicted_length("7", 1000, 0.4, seed=3) != predicted_length("7", 1000, 0.4, seed=4)

    def test_a_policy_sees_it_only_if_it_states_its_error(self) -> None:
        class Seer(Policy):
            predictor_error: float = 0.0

            def order(self, request: RequestView) -> float:
                return request.predicted_output_tokens

        rows: list[Row] = [(0, 4, n, 0, ()) for n in (9, 3, 6)]
        assert in_order(serve(Seer(), rows, max_num_seqs=1)) == [1, 2, 0]

        class Peeping(Policy):
            def order(self, request: RequestView) -> float:
                return request.predicted_output_tokens

        with pytest.raises(UserError, match="give the policy a parameter predictor_error"):
            serve(Peeping(), rows)


def test_recomputed_tokens_are_counted() -> None:
    """Seven blocks of 16, so 112 tokens: the second is preempted at 56 + k tokens and computes all of them again."""
    rows: list[Row] = [(0, 40, 40, 0, ()), (0, 40, 40, 0, ())]
    record = serve(VLLM(), rows, num_gpu_blocks=8, max_model_len=96)
    (lost,) = [row for row in record.steps or [] if row.preempted]
    before = [row for row in record.steps or [] if row.step < lost.step][-1]
    computed = next(n + computed for name, n, computed in before.scheduled if name == 1)
    assert record.num_preemptions == 1
    assert record.num_recomputed_tokens == computed
    assert serve(VLLM(), rows).num_recomputed_tokens == 0


class LongestWaitFirst(Policy):
    """vLLM's order, written out as a whole plan."""

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        tokens = {request: n for request in running if (n := request.num_wanted_tokens)}
        for request in waiting[: engine.max_num_seqs - len(running)]:
            tokens[request] = request.num_wanted_tokens
        return Plan(tokens)


class TestWholePlans:
    @pytest.mark.parametrize("is_async", [False, True])
    def test_a_plan_like_vllms_gives_vllms_steps(self, is_async: bool) -> None:
        rows: list[Row] = [(i * 7 * MS, 5 + i, 3 + i % 5, 0, ()) for i in range(30)]
        settings = {"max_num_seqs": 4, "async_scheduling": is_async}
        assert serve(LongestWaitFirst(), rows, **settings).steps == serve(VLLM(), rows, **settings).steps

    def test_a_plan_may_preempt_and_leave_out(self) -> None:
        class Turns(Policy):
            """One request at a time; it loses its seat after three tokens."""

            def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
                tired = [request for request in running if request.num_output_tokens % 3 == 0]
                if running and not (tired and waiting):
                    return Plan({running[0]: running[0].num_wanted_tokens})
                return Plan({waiting[0]: waiting[0].num_wanted_tokens}, preempt=tired)

        record = serve(Turns(), all_at_once(2, output=6))
        assert record.requests.num_preemptions.tolist() == [1, 1]
        assert (record.requests.status == 0).all()

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            (lambda _, waiting: Plan(dict.fromkeys(waiting, 1)), r"request 1: no seat is left of max_num_seqs \(1\)"),
            (
                lambda _, waiting: Plan({waiting[0]: 0}),
                r"request 0: tokens must be a .* number of at least 1 \(got 0\)",
            ),
            (lambda _, waiting: Plan({waiting[0]: 1.5}), r"tokens must be a whole number"),
            (
                lambda running, waiting: Plan({running[0]: 99} if running else {waiting[0]: 4}),
                r"plan\(\) for step 1, request 0: it wants 1 tokens",
            ),
            (lambda _, waiting: Plan({}, preempt=waiting), r"request 0: only a running request can be preempted"),
            (lambda *_: Plan({"x": 1}), r"must name requests by the views"),
            (lambda _, waiting: {waiting[0]: 1}, r"plan\(\) must return a Plan"),
        ],
    )
    def test_a_plan_beyond_the_rules_is_refused(self, answer: Any, message: str) -> None:
        class Wild(Policy):
            def plan(self, running: Any, waiting: Any, engine: EngineView) -> Plan:
                return answer(running, waiting)

        with pytest.raises(UserError, match=rf"policy Wild at .* s: .*{message}"):
            serve(Wild(), all_at_once(3), max_num_seqs=1)

    def test_over_the_budget_and_the_blocks(self) -> None:
        class Greedy(Policy):
            def plan(self, running: Any, waiting: Any, engine: EngineView) -> Plan:
                return Plan({request: request.num_wanted_tokens for request in [*running, *waiting]})

        with pytest.raises(UserError, match=r"over max_num_batched_tokens \(256\)"):
            serve(Greedy(), [(0, 200, 5, 0, ()), (0, 200, 5, 0, ())])
        with pytest.raises(UserError, match=r"request 1: it needs 13 KV blocks and 7 are free"):
            serve(Greedy(), [(0, 20, 5, 0, ()), (0, 200, 5, 0, ())], num_gpu_blocks=10)
