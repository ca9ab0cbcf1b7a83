"""The scheduler's questions, answered by the policy and checked: a policy's arithmetic is never trusted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from hashlib import blake2b
from math import exp, isfinite
from statistics import NormalDist
from typing import Any, TypeVar

from simbatch.sim.clock import to_ps
from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.plugins import defined_at, place_of
from simbatch.sim.plugins.policy import Plan, Policy
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import KnownRequest, is_decoding, is_partial
from simbatch.sim.scheduler.views import PolicyEngine, PolicyRequest, request_of, view_of
from simbatch.sim.scheduler.waiting import FcfsQueue, LaneQueue, SortedQueue, WaitingQueue

R = TypeVar("R", bound=KnownRequest)


class Decisions:
    """What the policy decides; whatever it leaves to vLLM costs nothing here."""

    def __init__(self, config: EngineConfig, policy: Policy) -> None:
        self.config = config
        self.policy = policy
        self.view: PolicyEngine
        self._first_key: Any = None  # what the policy's keys must compare with
        self._by_priority = config.scheduling_policy == "priority"
        self.max_seats = config.max_num_active_seqs or config.max_num_seqs
        self.has_lanes = policy.overrides("lane")
        self.is_fcfs = not (policy.overrides("order") or self.has_lanes or self._by_priority)
        self.victim_is_last = not (policy.overrides("victim") or self._by_priority)
        self.decides_seats = policy.overrides("seats")
        self.decides_budget = policy.overrides("token_budget") and config.enable_chunked_prefill
        self.rejects = policy.overrides("reject")
        self.holds = policy.overrides("hold")
        self.sheds = policy.overrides("shed")
        self.sheds_head = self.sheds and config.batching == "continuous"
        self.listens = policy.overrides("finished")
        self.hears_admissions = policy.overrides("admitted")
        self.plans = policy.overrides("plan")
        # asked after something has changed and at no other time, whether steps are leapt over or not
        self.asked_on_change = self.decides_seats or self.decides_budget or self.sheds_head or self.has_lanes
        # whether an arrival leaves it as it is who is admitted next, and how much of it
        self.head_is_stable = not (
            self.asked_on_change or not self.is_fcfs or config.long_prefill_token_threshold_adaptive
        )
        self.predicts = hasattr(policy, "predictor_error")

    def start(self, view: PolicyEngine) -> None:
        """Show the policy its engine, before the run."""
        self.view = view
        self._ask("start", view)

    def new_queue(self) -> WaitingQueue[Any]:
        """The queue in the policy's order."""
        if self.is_fcfs:
            return FcfsQueue()
        if self.has_lanes:
            return LaneQueue(self._lane, self._policy_order)
        return SortedQueue(self._vllm_priority if self._by_priority else self._policy_order)

    def seats(self) -> int:
        """How many requests may run."""
        if not self.decides_seats:
            return self.max_seats
        try:
            num_seats = self.policy.seats(self.view)
        except Exception as error:
            raise self._failed("seats", error) from error
        return self._checked("seats()", num_seats, self.max_seats, "max_num_seqs")

    def token_budget(self) -> int:
        """How many tokens the next step may take."""
        limit = self.config.max_num_batched_tokens
        if not self.decides_budget:
            return limit
        try:
            budget = self.policy.token_budget(self.view)
        except Exception as error:
            raise self._failed("token_budget", error) from error
        return self._checked("token_budget()", budget, limit, "max_num_batched_tokens")

    def budget_of_step(self, running: Sequence[KnownRequest], is_admitting: bool) -> int:
        """What a step may take: the policy is asked if there may be prompts to compute, and holds no decode back."""
        if not self.decides_budget or not (is_admitting or any(map(is_partial, running))):
            return self.config.max_num_batched_tokens
        return max(self.token_budget(), sum(map(is_decoding, running)))

    def victim(self, running: list[R]) -> R:
        """Who loses its blocks."""
        if self.victim_is_last:
            return running[-1]
        if self._by_priority:  # the first of the equals, in order of admission
            return max(running, key=lambda request: (request.priority, request.arrival_ps))
        chosen = self._ask("victim", [self._shown(request) for request in running])
        if isinstance(chosen, PolicyRequest) and request_of(chosen) in running:
            victim: R = request_of(chosen)
            return victim
        raise self.broken("victim() must return one of the running requests", chosen)

    def plan(self, running: Sequence[KnownRequest], waiting: Sequence[KnownRequest]) -> Plan:
        """The whole next step; whether it can be followed is for the scheduler to see."""
        plan = self._ask("plan", [self._shown(r) for r in running], [self._shown(r) for r in waiting], self.view)
        if isinstance(plan, Plan):
            return plan
        raise self.broken("plan() must return a Plan", plan)

    def reject(self, request: KnownRequest) -> str | None:
        """Why the policy turns the request away, if it does."""
        reason = self._ask("reject", self._shown(request), self.view) if self.rejects else None
        if reason is None or (isinstance(reason, str) and reason):
            return reason
        raise self.broken("reject() must return why, in words, or None", reason)

    def predict(self, request: KnownRequest) -> None:
        """Write down what the policy's predictor says of an arriving request, unless it came foretold."""
        if request.predicted_output_tokens is not None:
            return
        error: float = self.policy.predictor_error  # type: ignore[attr-defined]
        request.predicted_output_tokens = predicted_length(
            request.request_id, request.max_tokens, error, self.config.seed
        )

    def shed(self, request: KnownRequest) -> str | None:
        """Why the policy drops a request rather than admit it, if it does; never one that has run."""
        if request.num_preemptions:
            return None
        reason = self._ask("shed", self._shown(request), self.view)
        if reason is None or (isinstance(reason, str) and reason):
            return reason
        raise self.broken("shed() must return why, in words, or None", reason)

    def hold_until_ps(self, head: KnownRequest) -> int:
        """Until when the policy waits for a fuller batch."""
        until_s = self._ask("hold", self._shown(head), self.view)
        if isinstance(until_s, int | float) and isfinite(until_s):
            return to_ps(max(until_s, 0.0))
        raise self.broken("hold() must return a time in seconds", until_s)

    def finished(self, request: KnownRequest) -> None:
        """Tell the policy that a request has ended; only one that listens need be told."""
        self._ask("finished", self._shown(request))

    def admitted(self, request: KnownRequest) -> None:
        """Tell the policy that a request has got a seat; only one that hears admissions need be told."""
        self._ask("admitted", self._shown(request))

    def _lane(self, request: KnownRequest) -> Hashable:
        lane = self._ask("lane", self._shown(request))
        if isinstance(lane, Hashable):
            return lane
        raise self.broken("lane() must return something that can be a key of a dictionary", lane)

    def _vllm_priority(self, request: KnownRequest) -> Any:
        return request.priority, request.arrival_ps, request.request_id

    def _policy_order(self, request: KnownRequest) -> Any:
        key = self._ask("order", self._shown(request))
        if self._first_key is None:
            self._first_key = key
        try:
            if key == key and (key < self._first_key) in (True, False):
                return key
        except TypeError:
            pass
        raise self.broken("order() must return values that can be compared with each other", key)

    def _shown(self, request: KnownRequest) -> PolicyRequest:
        return view_of(request, self.view)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self.policy, method)(*arguments)
        except Exception as error:
            raise self._failed(method, error) from error

    def _failed(self, method: str, error: Exception) -> UserError:
        place, mend = place_of(error, type(self.policy))
        rule = f"{method}() failed: {type(error).__name__}: {error}"
        return UserError(Problem(f"{place} {self._when()}", rule, mend=mend))

    def _checked(self, what: str, value: int, limit: int, name: str) -> int:
        if isinstance(value, int) and 1 <= value <= limit:
            return value
        raise self.broken(f"{what} must be a whole number from 1 to {name} ({limit})", value)

    def broken(self, rule: str, value: object = NOTHING) -> UserError:
        """The error that says which rule the policy's answer breaks."""
        method = getattr(self.policy, rule.partition("(")[0], self.policy.plan)
        place = f"{defined_at(method)} {self._when()}"
        return UserError(Problem(place, rule, value, "mend the policy or its parameters"))

    def _when(self) -> str:
        return f"policy {type(self.policy).__name__} at {self.view.now_s:.6f} s"


_NORMAL = NormalDist()


def predicted_length(request_id: str, num_output_tokens: int, error: float, seed: int) -> float:
    """What the predictor says, tokens, at least 1: the true length times exp(error * z).

    z is standard normal, the same for a request whenever it is asked (by its name and the seed), so `error` is the
    standard deviation of ln(predicted / true); the median prediction is right. 0 is an oracle.
    """
    if not error:
        return float(num_output_tokens)
    drawn = int.from_bytes(blake2b(f"{seed}:{request_id}".encode(), digest_size=7).digest())
    return max(num_output_tokens * exp(error * _NORMAL.inv_cdf((drawn + 0.5) / 2**56)), 1.0)
