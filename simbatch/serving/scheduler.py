"""vLLM's scheduler with a policy's answers where it decides by itself (vllm/v1/core/sched/scheduler.py, vLLM 0.32).

It keeps its loop, its allocation and its books:

1. `waiting` is a queue in the policy's order (the simulator's own queues).
2. `max_num_active_reqs`, which it reads before each admission, is what the policy's `seats` says.
3. `max_num_scheduled_tokens` is what `token_budget` says, for the length of a step.
4. It preempts by priority, and the policy's `victim` is the lowest of all for the moment in which an allocation fails.
5. Who is turned away ends with an error; ends are told to the policy when those of a simulation are.

A policy that decides nothing (`vllm`) is never asked: all is vLLM's then.

This module and `recorder` alone import vLLM here, whose version `simbatch.vllm_scheduler` checks first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue, SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from simbatch.policies.vllm import VLLM
from simbatch.serving.guide import EngineClock, Guide, ServedClock
from simbatch.serving.options import PLACE, PolicyOptions, refuse_undoable
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import Policy

logger = init_logger("vllm.simbatch")  # vLLM prints what is below its own name
UNTOLD = (RequestStatus.FINISHED_ABORTED, RequestStatus.FINISHED_ERROR)  # ends that are no feedback


class PolicyQueue(RequestQueue):  # type: ignore[misc]
    """The simulator's queue, in the form that vLLM's scheduler works with."""

    def __init__(self, guide: Guide) -> None:
        self._queue: Any = guide.decisions.new_queue()  # of requests that know vLLM's own
        self._served = guide.served

    def add_request(self, request: Any) -> None:
        """A request arrives."""
        self._queue.add(self._served(request))

    def prepend_request(self, request: Any) -> None:
        """A request returns after a preemption."""
        self._queue.put_back(self._served(request))

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Requests return that could not be admitted yet, for a reason of vLLM's own (a grammar not compiled)."""
        for request in requests:
            self.prepend_request(request)

    def peek_request(self) -> Any:
        """Who is admitted next."""
        return self._queue.head.inside

    def pop_request(self) -> Any:
        """Take the head out."""
        return self._queue.take().inside

    def remove_request(self, request: Any) -> None:
        """Take out a request that ended while it waited."""
        self._queue.drop(self._served(request))

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Take out those of `requests` that are here."""
        waiting = set(self._queue.requests())
        for request in filter(waiting.__contains__, map(self._served, requests)):
            self._queue.drop(request)

    def __bool__(self) -> bool:
        return bool(self._queue)

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Any]:
        return (request.inside for request in self._queue.requests())


class PolicyScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler under a policy; where vLLM schedules asynchronously, one that derives from `AsyncScheduler`."""

    waiting: Any  # vLLM's own three
    policy: Any
    max_num_scheduled_tokens: int
    other_keys: tuple[str, ...] = ()  # of additional_config's `simbatch` that are not the policy's
    _guide: Guide | None = None
    _seats = 0
    _is_planning = False
    _is_queueing = True  # False while a request comes that is turned away

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> PolicyScheduler:  # noqa: ARG004 - __init__ has them
        """The one of the two kinds that fits the engine."""
        is_async = cls is PolicyScheduler and vllm_config.scheduler_config.async_scheduling
        return object.__new__(AsyncPolicyScheduler if is_async else cls)

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        self._options = options = PolicyOptions.of(vllm_config.additional_config, self.other_keys)
        policy = options.build()
        super().__init__(vllm_config, *args, **kwargs)
        self._vllm_queue, self._vllm_policy = type(self.waiting), self.policy
        self._allocate = self.kv_cache_manager.allocate_slots
        self.guide(policy)
        logger.info("serving under the simbatch policy %s %s", options.name, dict(options.params))

    def guide(self, policy: Policy | None, clock: ServedClock | None = None) -> None:
        """Serve under `policy` from now on, from its start; None: under vLLM's own. No request may be in the engine."""
        if self.requests:
            raise RuntimeError(f"a policy cannot change while {len(self.requests)} requests are in the engine")
        manager = self.kv_cache_manager
        self._guide, self.policy, manager.allocate_slots = None, self._vllm_policy, self._allocate
        self.waiting = self._vllm_queue()
        if policy is None or type(policy) is VLLM:
            return
        name = type(policy).__name__
        refuse_undoable(policy, f"{PLACE} policy", name)
        if self.policy == SchedulingPolicy.PRIORITY:
            rule = "the policy owns the order, so vLLM's own must be fcfs"
            raise UserError(Problem("--scheduling-policy", rule, "priority", f"leave it out, or the policy {name}"))
        cost = self._options.cost_model(self.vllm_config.compilation_config.cudagraph_capture_sizes or ())
        self._guide = guide = Guide(policy, self, clock or EngineClock(), self._options.seed, cost)
        if not guide.decisions.is_fcfs:
            self.waiting = PolicyQueue(guide)
        manager.allocate_slots = self._guided_allocation
        if not guide.decisions.victim_is_last:
            self.policy = SchedulingPolicy.PRIORITY  # it takes a victim from anywhere; `Guide.mark_victim` says which

    @property
    def max_num_active_reqs(self) -> int:
        """How many requests may run; vLLM reads it before each admission, and then the policy is asked."""
        if self._guide is None or not self._is_planning:
            return self._seats
        return self._guide.seats()

    @max_num_active_reqs.setter
    def max_num_active_reqs(self, seats: int) -> None:
        self._seats = seats

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan vLLM's own step, under the policy's token budget."""
        guide = self._guide
        if guide is None:
            return super().schedule(*args, **kwargs)
        limit = self.max_num_scheduled_tokens
        self._is_planning = True
        try:
            self.max_num_scheduled_tokens = min(limit, guide.begin_step())
            return super().schedule(*args, **kwargs)
        finally:
            self._is_planning = False
            self.max_num_scheduled_tokens = limit
            guide.end_step()

    def add_request(self, request: Any) -> None:
        """Queue a request, unless the policy turns it away."""
        is_new = request.request_id not in self.requests  # else more input of a session
        reason = self._guide.arrives(request) if self._guide is not None and is_new else None
        self._is_queueing = reason is None
        super().add_request(request)
        self._is_queueing = True
        if reason is not None:
            self.turn_away(request, reason)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """Take in a step's tokens, then tell the policy who has ended and the clients who was turned away."""
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        if self._guide is not None:
            for request in self._guide.take_ended():
                if self._guide.decisions.listens and request.inside.status not in UNTOLD:
                    self._guide.decisions.finished(request)
            self._tell_refused(self._guide, outputs)
        return outputs

    def turn_away(self, request: Any, reason: str) -> None:
        """End a waiting request; its client hears of it with the next step's output."""
        assert self._guide is not None
        logger.warning("request %s is turned away: %s", request.request_id, reason)
        self.finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
        self._guide.refused.append((request, reason))

    def set_pause_state(self, pause_state: Any) -> None:
        """Pause or go on; whoever came meanwhile may be admitted then."""
        super().set_pause_state(pause_state)
        if self._guide is not None:
            self._guide.may_admit = True

    def _guided_allocation(self, request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
        """Allocate as vLLM does; when a running request finds no room, the policy chooses who makes some."""
        guide = self._guide
        assert guide is not None
        blocks = self._allocate(request, num_new_tokens, *args, **kwargs)
        if blocks is not None:
            guide.ahead[request.request_id] = num_new_tokens
        elif request.status == RequestStatus.RUNNING and not guide.decisions.victim_is_last:
            guide.mark_victim()
        return blocks

    def _enqueue_waiting_request(self, request: Any) -> None:
        if self._is_queueing:
            super()._enqueue_waiting_request(request)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        if self._guide is not None:
            self._guide.preempts(request)
        super()._preempt_request(request, *args, **kwargs)

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        if self._guide is not None:
            self._guide.step_is_planned(scheduler_output.num_scheduled_tokens)
        super()._update_after_schedule(scheduler_output)

    def _update_request_with_output(self, request: Any, new_token_ids: list[int], **kwargs: Any) -> Any:
        if self._guide is not None and not request.num_output_tokens:
            self._guide.served(request).first_token_ps = self._guide.now_ps
        return super()._update_request_with_output(request, new_token_ids, **kwargs)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if self._guide is not None:
            self._guide.ends(request)
        return super()._free_request(request, *args, **kwargs)

    @staticmethod
    def _tell_refused(guide: Guide, outputs: dict[int, Any]) -> None:
        refused, guide.refused = guide.refused, []
        told = defaultdict[int, list[Any]](list)
        for request, reason in refused:
            output = EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ERROR, stop_reason=reason)
            output.events, output.trace_headers = request.take_events(), request.trace_headers
            told[request.client_index].append(output)
        for client, lines in told.items():
            outputs.setdefault(client, EngineCoreOutputs()).outputs += lines


class AsyncPolicyScheduler(PolicyScheduler, AsyncScheduler):  # type: ignore[misc]
    """The policy's scheduler with two batches in flight: vLLM's default on a GPU."""
