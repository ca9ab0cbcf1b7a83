"""The simulator's own replica in the place of real vLLM, on a clock of its own: a replay on it is a simulation."""

from collections import Counter
from typing import Any, cast

import simpy

from simbatch.policies.vllm import VLLM
from simbatch.profiler.fitting.samples import Entry
from simbatch.profiler.measuring.step_clock import RecordedStep
from simbatch.profiler.measuring.vllm_engine import Output
from simbatch.profiler.validating.replay import SPIN_S
from simbatch.sim.clock import to_ps, to_s
from simbatch.sim.engine.recorder import Recorder
from simbatch.sim.engine.replica import Replica
from simbatch.sim.engine.stepwise import Stepwise
from simbatch.sim.engine.traffic import Traffic
from simbatch.sim.scheduler.request import Request


class Clock:
    """Seconds; it stands still unless somebody works or sleeps."""

    now_s = 1000.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds + SPIN_S


class StandInEngine:
    """What is used of `VllmEngine`; prompts share blocks when their tokens are the same, as in vLLM."""

    on_step = None

    def __init__(self, config, cost, requests, clock):
        self.config, self.cost, self.requests, self.clock = config, cost, requests, clock
        self.guide(None)
        self.alive: dict[int, Request] = {}
        self.chain: dict[Any, int] = {}
        self.aborted: list[str] = []
        self.preemptions = Counter[str]()

    def guide(self, policy, clock=None):
        self.policy_clock = clock
        recorder = Recorder()
        never = Traffic(self.requests, recorder, self.config.max_model_len, None)
        env = cast("Any", simpy.Environment(0))
        self.replica = Replica(env, self.config, self.cost, policy or VLLM(), never, recorder, lambda *_: None)
        self.stepwise = Stepwise(self.replica)

    def add_request(self, request_id, prompt_token_ids, max_tokens, *, priority=0, arrival_time=None, known=None):
        name = (known or {}).get("request_id", request_id)
        request = Request(int(request_id), name, to_ps(arrival_time), len(prompt_token_ids), max_tokens, priority)
        size, before = self.config.block_size, 0
        keys = []
        for end in range(size, len(prompt_token_ids) + 1, size):
            before = self.chain.setdefault((before, tuple(prompt_token_ids[end - size : end])), len(self.chain) + 1)
            keys.append(before)
        if self.config.enable_prefix_caching:
            request.keys = keys
        self.alive[request.index] = request
        request.tenant = (known or {}).get("tenant")
        self.replica.now_ps = self._now_ps()
        overhead_s = to_s(self.replica.door.add(request, self.replica.now_ps))
        self.clock.now_s += overhead_s
        return overhead_s

    def step(self):
        replica, start_s = self.replica, self.clock.now_s
        replica.now_ps = replica.device.free_ps = self._now_ps()
        origin_s = start_s - to_s(replica.now_ps)
        before = {index: request.num_output_tokens for index, request in self.alive.items()}
        step = self.stepwise.launch()
        self.preemptions.update(str(request.index) for request in step.batch.preempted)
        entries = tuple(
            (str(e.request.index), Entry(e.num_computed_tokens, e.num_tokens, e.is_decode)) for e in step.batch.entries
        )
        self.clock.now_s = origin_s + to_s(step.end_ps)
        replica.now_ps = step.end_ps
        assert not list(self.stepwise.update(step))
        if entries and self.on_step is not None:
            counts = (replica.kv.free, len(replica.scheduler.running), replica.num_waiting)
            self.on_step(RecordedStep(start_s, self.clock.now_s, entries, *counts))
        outputs = []
        for index, request in list(self.alive.items()):
            refusal = replica.recorder.reason.get(index)
            ended = request.finish_ps >= 0 or refusal is not None
            if (new := request.num_output_tokens - before[index]) or ended:
                outputs.append(Output(str(index), new, ended, refusal))
            if ended:
                del self.alive[index]
        return outputs

    def _now_ps(self):
        return to_ps(self.clock.now_s) if self.policy_clock is None else self.policy_clock.now_ps()

    def abort(self, request_ids):
        self.aborted += request_ids

    def has_unfinished(self):
        return bool(self.alive)

    def drain(self):
        assert not self.alive
