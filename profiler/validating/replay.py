"""A workload in real time on a real engine: what vLLM's EngineCore loop does, in this process.

1. Take in every request that is due.
2. When there is anything to do, one step; else sleep until the next request is due.
3. Again, until all have ended.
The requests come through the simulator's own `Traffic` and are written down by its `Recorder`, so that the record of a
real run is made as that of a simulation is.
"""

from __future__ import annotations

import gc
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from simbatch.policies.base import Policy
from simbatch.profiler.measuring.step_clock import RecordedStep
from simbatch.profiler.measuring.vllm_engine import Output, VllmEngine
from simbatch.profiler.validating.real_run import Run, segments_of
from simbatch.profiler.validating.requests import Requests
from simbatch.sim.clock import to_ps, to_s
from simbatch.sim.engine.record import StepRow
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.traffic import FAR, Traffic
from simbatch.sim.results import RunFacts
from simbatch.sim.scheduler.config import EngineConfig
from simbatch.sim.scheduler.request import NEVER, Request

LEAD_S = 0.05  # between the start of the clock and time 0
SPIN_S = 0.001  # a sleep may last that much longer: the rest is waited for awake
Tell = Callable[[int, float], None]  # ended requests, and the time (s) since the start


class Replay:
    """One run of `requests` on `engine`, under `policy`; `now` and `sleep` are its clock, in seconds.

    Without a policy the engine serves as it does. With one, its time is the run's, as in a simulation.

    While it runs it only notes what happens; that is made a record of afterwards, so that the engine does not wait.
    """

    def __init__(
        self,
        engine: VllmEngine,
        config: EngineConfig,
        requests: Requests,
        prompts: Sequence[Sequence[int]],
        *,
        tell: Tell,
        policy: Policy | None = None,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._engine, self._config, self._prompts = engine, config, prompts
        self._policy, self._tell, self._now, self._sleep = policy, tell, now, sleep
        self._recorder = Recorder(keep_steps=True)
        self._traffic = Traffic(requests, self._recorder, config.max_model_len, None)
        self._taken_in_ps = array("q", [NEVER]) * len(requests.all)
        self._sent: dict[str, Request] = {}
        self._steps: list[tuple[float, RecordedStep]] = []  # with when their round began to take requests in, s
        self._outputs: list[tuple[float, list[Output]]] = []  # with when they came, s
        self._origin_s = self._round_s = 0.0
        self._num_ended = 0
        self._admission_s: list[float | None] = [None] * len(requests.all)  # what each `add_request` took

    def run(self, facts: RunFacts) -> Run:
        """Serve everything; aborts what is in the engine when it is interrupted."""
        self._engine.on_step = lambda step: self._steps.append((self._round_s, step))
        self._engine.preemptions.clear()
        try:
            with _no_collections():
                self._origin_s = self._now() + LEAD_S
                if self._policy is not None:
                    self._engine.guide(self._policy, self)
                self._loop()
            self._engine.drain()
            if self._policy is not None:
                self._engine.guide(None)
        except BaseException:
            with suppress(Exception):  # interrupted in the middle of a step, it may not know what it has
                self._engine.abort(list(self._sent))
            raise
        finally:
            self._engine.on_step = None
        return self._run(facts)

    def now_ps(self) -> int:
        """The policy's clock."""
        return self._ps(self._now())

    def arrival_ps(self, arrival_time: float) -> int:
        """When a request came, by what the engine was told of it."""
        return to_ps(arrival_time)

    def _loop(self) -> None:
        while True:
            self._round_s = self._now()
            while self._traffic.next_ps <= self._ps(self._now()):
                self._traffic.take_one(self._add)
            if self._engine.has_unfinished():
                self._step()
            elif self._traffic.next_ps == FAR:
                return
            else:
                self._wait_until(self._origin_s + to_s(self._traffic.next_ps))

    def _wait_until(self, moment_s: float) -> None:
        if (left_s := moment_s - self._now() - SPIN_S) > 0:
            self._sleep(left_s)
        while self._now() < moment_s:
            pass

    def _add(self, request: Request) -> None:
        now_ps = self._ps(self._now())
        self._taken_in_ps[request.index] = now_ps
        if request.num_prompt_tokens >= self._config.max_model_len:  # vLLM raises ValueError
            limit = f"max_model_len ({self._config.max_model_len})"
            rule = f"prompt of {request.num_prompt_tokens} tokens is not shorter than {limit}"
            self._recorder.rejected(request, rule)
            self._gone(request, now_ps)
            return
        name = str(request.index)
        self._sent[name] = request
        known = {"request_id": request.request_id} | ({"tenant": request.tenant} if request.tenant is not None else {})
        self._admission_s[request.index] = self._engine.add_request(
            name,
            self._prompts[request.index],
            request.max_tokens,
            priority=request.priority,
            arrival_time=to_s(request.arrival_ps),
            known=None if self._policy is None else known,
        )

    def _step(self) -> None:
        outputs = self._engine.step()
        now_s = self._now()
        self._outputs.append((now_s, outputs))
        for output in outputs:
            if output.finished:
                self._gone(self._sent[output.request_id], self._ps(now_s))

    def _gone(self, request: Request, now_ps: int) -> None:
        self._num_ended += 1
        self._traffic.left(request, now_ps)
        self._tell(self._num_ended, to_s(now_ps))

    def _run(self, facts: RunFacts) -> Run:
        itl_s = [list[float]() for _ in self._taken_in_ps]
        end_ps, refused = 0, dict[str, str]()
        for now_s, outputs in self._outputs:
            for output in outputs:
                end_ps = self._ps(now_s)
                request = self._sent[output.request_id]
                if output.refusal is not None:
                    refused[output.request_id] = output.refusal
                    continue
                if output.num_new_tokens:
                    if request.first_token_ps < 0:
                        request.first_token_ps = end_ps
                    else:
                        self._recorder.gaps.append(end_ps - request.last_token_ps)
                        itl_s[request.index].append(to_s(end_ps - request.last_token_ps))
                    request.last_token_ps = end_ps
                if output.finished:
                    request.finish_ps = end_ps
        steps = self._step_rows()
        for name, request in self._sent.items():
            request.num_preemptions = self._engine.preemptions[name]
            if name in refused:
                self._recorder.rejected(request, refused[name])
            else:
                self._recorder.finished(request)
        record = self._recorder.record(self._config, end_ps, 0.0, num_preemptions=self._engine.preemptions.total())
        segments = segments_of(steps, record.requests.num_prompt_tokens)
        record = replace(record, segments=segments, steps=steps)
        return Run(record, facts, np.array(self._taken_in_ps), itl_s, self._admission_s)

    def _step_rows(self) -> list[StepRow]:
        """The steps; sets when each request was first scheduled, and what it found in the prefix cache."""
        steps = list[StepRow]()
        device_free_ps = 0
        for round_s, step in self._steps:
            start_ps, end_ps = self._ps(step.start_s), self._ps(step.end_s)
            # what taking requests in costs is part of a step, as in the simulation, unless the device is busy meanwhile
            begun_ps = min(start_ps, max(self._ps(round_s), device_free_ps))
            device_free_ps = end_ps
            scheduled = []
            for name, entry in step.entries:
                request = self._sent.get(name)
                if request is None or end_ps > request.finish_ps:  # asynchronous: its end was not known yet
                    continue
                if request.scheduled_ps < 0:
                    request.scheduled_ps, request.num_cached_tokens = begun_ps, entry.num_computed_tokens
                scheduled.append((request.index, entry.num_tokens, entry.num_computed_tokens))
            counts = (step.free_blocks, step.num_running, step.num_waiting)
            steps.append(StepRow(len(steps), start_ps, end_ps, scheduled, [], [], *counts))
        return steps

    def _ps(self, moment_s: float) -> int:
        return to_ps(moment_s - self._origin_s)


@contextmanager
def _no_collections() -> Iterator[None]:
    """What is there now is not looked at by Python's collector, as in vLLM's own engine process (gc.freeze)."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
