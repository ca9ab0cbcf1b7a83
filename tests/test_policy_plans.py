"""Policies that plan every step: followed as far as the rules allow, refused beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from simbatch.policies import EngineView, Plan, Policy, RequestView
from simbatch.policies.vllm import VLLM
from simbatch.sim.errors import UserError
from tests.engine_cases import MS, Row
from tests.test_policies import all_at_once, serve


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
            (
                lambda running, waiting: Plan(dict.fromkeys(waiting, 1)),
                r"request 1: no seat is left of max_num_seqs \(1\)",
            ),
            (
                lambda running, waiting: Plan({waiting[0]: 0}),
                r"request 0: tokens must be a whole number of at least 1 \(got 0\)",
            ),
            (lambda running, waiting: Plan({waiting[0]: 1.5}), r"tokens must be a whole number"),
            (
                lambda running, waiting: Plan({running[0]: 99} if running else {waiting[0]: 4}),
                r"plan\(\) for step 1, request 0: it wants 1 tokens",
            ),
            (lambda running, waiting: Plan({}, preempt=waiting), r"request 0: only a running request can be preempted"),
            (lambda running, waiting: Plan({"x": 1}), r"must name requests by the views"),
            (lambda running, waiting: {waiting[0]: 1}, r"plan\(\) must return a Plan"),
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
