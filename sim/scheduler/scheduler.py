"""vLLM V1's scheduler, step by step (v1/core/sched/scheduler.py, vLLM 0.12 to 0.33).

Running requests first, in order of admission, then the head of the queue for as long as it fits; one token budget for
decodes and prefill chunks alike; when blocks run out, a running request is preempted and recomputed later. There is no
prefill or decode phase: a request wants `num_tokens + num_placeholders - num_computed_tokens` more tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.kv_cache import KVCache
from simbatch.sim.scheduler.request import Batch, Entry, Refusal, Request, has_prefill
from simbatch.sim.scheduler.waiting import WaitingQueue

if TYPE_CHECKING:
    from simbatch.sim.scheduler.decisions import Decisions


class Cadence:
    """When prefills are held: until `interval` steps lie between one that had some and the next (vLLM 0.33).

    Not while nobody decodes, nor after a step that was free to admit and left requests waiting: then prefills would
    never catch up.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._num_steps = 0  # that computed something
        self._last_prefill = -interval
        self._is_behind = False

    def holds(self, running: Iterable[Request]) -> bool:
        """Whether the step to be planned leaves prefills out."""
        return (
            not self._is_behind
            and self._num_steps + 1 - self._last_prefill < self.interval
            and any(not request.is_chunk for request in running)
        )

    def note(self, is_empty: bool, has_prefill: bool, left_waiting: bool | None) -> None:
        """A step is planned; `left_waiting` is None where it was not free to admit."""
        if left_waiting is not None:
            self._is_behind = left_waiting
        self._num_steps += not is_empty
        if has_prefill:
            self._last_prefill = self._num_steps


class Scheduler:
    """Decides who runs: `schedule` plans a step, `take_tokens` and `end` take in what came of it."""

    def __init__(self, config: EngineConfig, kv: KVCache, decisions: Decisions) -> None:
        self.config = config
        self.kv = kv
        self.decisions = decisions
        self.running: list[Request] = []  # in order of admission
        self.waiting: WaitingQueue[Request] = decisions.new_queue()
        self.num_preemptions = 0
        self.num_recomputed_tokens = 0  # computed, lost in a preemption, and computed again
        self.may_admit = True  # something has changed since the head of the queue was refused
        self.on_shed: Callable[[Request, str], None]
        self.on_preempt: Callable[[Request, Request | None], None] | None = None
        self.refusal = Refusal("seats")  # of the newest step, if anybody is waiting
        # what is asked at every admission, looked up once
        self._sheds_head: bool = decisions.sheds_head
        self._decides_seats: bool = decisions.decides_seats
        self._max_seats: int = decisions.max_seats
        self._hears_admissions: bool = decisions.hears_admissions
        self._chunks: bool = config.enable_chunked_prefill
        self._reserves_all: bool = config.scheduler_reserve_full_isl
        self._max_prefill: int = config.long_prefill_token_threshold
        self._watermark_blocks = int(config.watermark * config.num_gpu_blocks)  # an admission leaves these free
        self._num_admitted = 0
        changes, takes_anybody = config.changes, not decisions.victim_is_last
        self._follows_victims = "index_follows_victims" in changes
        self._goes_on_behind_victim = takes_anybody and "goes_on_behind_victim" in changes
        self._spares_lone_prefill = "spares_lone_prefill" in changes
        has_interval = config.prefill_schedule_interval > 1 and "interval_alone" in changes
        self.cadence = Cadence(config.prefill_schedule_interval) if has_interval else None
        self._holds_prefills = False  # in the step that is being planned
        self._has_prefill = False

    def schedule(self) -> Batch:
        """Plan the next step: whom it computes, how many tokens each, and whom it preempts."""
        planned: dict[Request, int] = {}
        preempted: list[Request] = []
        threshold = self.long_prefill_threshold()
        if self.cadence is not None:
            self._holds_prefills, self._has_prefill = self.cadence.holds(self.running), False
        budget = self.decisions.budget_of_step(self.running, self.may_admit and bool(self.waiting))
        budget = self._schedule_running(planned, preempted, budget, threshold)
        if preempted:
            self.refusal = Refusal("preemption")
        elif not self.decisions.asked_on_change:
            self.admit_waiting(planned, budget, threshold)
        else:
            if self.may_admit:
                self.admit_waiting(planned, budget, threshold)
            self.may_admit = self.cadence is not None or has_prefill(planned)
        if self.cadence is not None:
            is_free = not (preempted or self._holds_prefills)
            self.cadence.note(not planned, self._has_prefill, bool(self.waiting) if is_free else None)
        return Batch(self._entries(planned), preempted)

    def _schedule_running(
        self, planned: dict[Request, int], preempted: list[Request], budget: int, threshold: int
    ) -> int:
        running, kv = self.running, self.kv
        has_cadence, holds_prefills = self.cadence is not None, self._holds_prefills
        i = 0
        while i < len(running) and budget > 0:
            request = running[i]
            n = request.num_tokens + request.num_placeholders - request.num_computed_tokens
            is_held = holds_prefills and request.is_chunk
            if n <= 0 or is_held or (request.num_placeholders and request.last_token_in_flight):
                i += 1
                continue
            if 0 < threshold < n:
                n = threshold
            if n > budget:
                n = budget
            total = request.num_computed_tokens + n
            num_blocks = kv.blocks(total) - kv.blocks(request.num_computed_tokens)
            while num_blocks > kv.free:
                victim = self.decisions.victim(running)
                position = running.index(victim)
                i -= position < i and (self._follows_victims or victim in planned)
                budget += planned.pop(victim, 0)
                preempted.append(victim)
                self.preempt(victim, position, request)
                if victim is request:
                    break
            else:
                if num_blocks:
                    kv.take(num_blocks)
                self.advance(request, total)
                planned[request] = n
                if has_cadence and request.is_chunk:
                    self._has_prefill = True
                budget -= n
                i += 1
                continue
            if not self._goes_on_behind_victim:
                break
        return budget

    def admit_waiting(self, planned: dict[Request, int], budget: int, threshold: int) -> None:
        """Admit from the head of the queue while seats, budget and blocks last; nobody jumps the head."""
        running, waiting, kv = self.running, self.waiting, self.kv
        decisions, has_cadence = self.decisions, self.cadence is not None
        sheds, decides_seats = self._sheds_head, self._decides_seats
        num_seats = decisions.seats() if decides_seats else self._max_seats
        line = waiting.line
        while budget > 0 and line and len(running) < num_seats:
            request = waiting.head
            if sheds and (reason := decisions.shed(request)) is not None:
                waiting.take()
                self.on_shed(request, reason)
                continue
            num_hits, num_idle = kv.lookup(request)
            num_cached = num_hits * kv.block_size
            n = request.num_tokens - num_cached
            if has_cadence and n > 1 and self._holds_prefills:
                self.refusal = Refusal("interval")
                return
            if 0 < threshold < n:
                n = threshold
            if n > budget:
                if not self._chunks:
                    self.refusal = Refusal("chunk", n, budget)
                    return
                n = budget
            reserved = request.num_tokens if self._reserves_all else num_cached + n
            watermark = self._watermark_blocks if running else 0  # waived when nobody runs
            num_blocks = kv.blocks(reserved) - num_hits + num_idle + watermark
            if num_blocks > kv.free:
                self.refusal = Refusal("blocks", num_blocks, kv.free, watermark)
                return
            waiting.take()
            self.seat(request, num_hits, num_cached + n)
            planned[request] = n
            if has_cadence and request.num_tokens > num_cached + 1:
                self._has_prefill = True
            budget -= n
            if decides_seats and line:
                num_seats = decisions.seats()
        if line:
            self.refusal = Refusal("seats", len(running), num_seats) if budget > 0 else Refusal("budget")

    def seat(self, request: Request, num_hits: int, num_tokens: int) -> None:
        """Give a request a seat, its cached blocks, and room for `num_tokens` tokens in all."""
        if request.num_lost_tokens:
            self.num_recomputed_tokens += max(request.num_lost_tokens - num_hits * self.kv.block_size, 0)
            request.num_lost_tokens = 0
        self.kv.admit(request, num_hits, num_tokens)
        self.advance(request, num_tokens)
        request.seat = self._num_admitted = self._num_admitted + 1
        self.running.append(request)
        if self._hears_admissions:
            self.decisions.admitted(request)

    def take_tokens(self, batch: Batch) -> list[Request]:
        """Give every sampling entry its token, in batch order; returns whose last one that was."""
        finished = []
        for entry in batch.entries:
            request = entry.request
            if not entry.samples:
                continue
            request.num_tokens += 1
            if request.num_placeholders:  # none left: preempted while the token was in flight
                request.num_placeholders -= 1
                self.kv.register(request, request.num_computed_tokens - request.num_placeholders)
            if request.num_output_tokens >= request.max_tokens:
                finished.append(request)
        return finished

    def end(self, request: Request) -> None:
        """Free the seat and the blocks of a request that has its last token."""
        self.may_admit = True
        if request.num_computed_tokens:
            self.kv.release(request)
            self.running.remove(request)
        else:  # its last token was in flight when it was preempted
            self.waiting.drop(request)

    def evict(self) -> list[Request]:
        """Let go of everybody, as an engine that ends; in no order."""
        waiting = self.waiting.requests()
        for request in waiting:
            self.waiting.drop(request)
        requests, self.running[:] = [*self.running, *waiting], []
        self.kv.clear()
        self.may_admit = True
        return requests

    def long_prefill_threshold(self) -> int:
        """Most tokens that one prefill may take in a step, 0 for no limit; no limit for a request that is alone."""
        threshold = self._max_prefill
        if not threshold:
            return 0
        total = len(self.running) + len(self.waiting)
        if total <= 1 and self._spares_lone_prefill:
            return 0
        if self.config.long_prefill_token_threshold_adaptive:
            return max(threshold, self.config.max_num_batched_tokens // total)
        return threshold

    def advance(self, request: Request, num_tokens: int) -> None:
        """A request has `num_tokens` computed tokens once this step is done."""
        request.num_computed_tokens = num_tokens
        if self.kv.shares:
            self.kv.register(request, min(num_tokens, request.num_tokens))

    def _entries(self, planned: dict[Request, int]) -> list[Entry]:
        """The step's entries; one that reaches the end of its known tokens samples the next."""
        entries, is_async, has_cadence = [], self.config.async_scheduling, self.cadence is not None
        for request, n in planned.items():
            computed = request.num_computed_tokens
            samples = computed == request.num_tokens + request.num_placeholders
            if samples and is_async:
                request.num_placeholders += 1
            if has_cadence:
                request.is_chunk = not samples
            entries.append(Entry(request, n, computed - n, samples))
        return entries

    def preempt(self, request: Request, position: int, needed_by: Request | None = None) -> None:
        """Take a running request's blocks and seat, for one that found none free; it is recomputed later."""
        del self.running[position]
        self.kv.release(request)
        self.may_admit = True
        request.num_lost_tokens = request.num_computed_tokens
        request.num_computed_tokens = request.num_placeholders = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        if self.on_preempt is not None:
            self.on_preempt(request, needed_by)
        self.waiting.put_back(request)
