"""vLLM's whole engine in the tests' own process, step by step, and its asynchronous loop over a stand-in executor.

CPUs never schedule asynchronously, so a GPU is mocked: `LateExecutor` runs batches one after the other, each as long as
its tokens say, on a clock that nobody reads. The engine core's loop, the scheduler and the outputs are vLLM's. The
policies here decide by everything a policy may know, so that a number that is wrong in vLLM decides otherwise.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from contextlib import nullcontext
from typing import NamedTuple

from simbatch import Policy
from simbatch.profiler.server.start import environment, require_vllm
from simbatch.serving.engine_facts import engine_facts


class Output(NamedTuple):
    """What one step gave one request; `refusal` is why a policy turned it away."""

    request_id: str
    num_new_tokens: int
    finished: bool
    refusal: str | None = None


class EngineInside:
    """vLLM's LLMEngine with its engine core in this process; requests' own ids are `names` by vLLM's inner ones."""

    def __init__(self, options):
        require_vllm()
        os.environ.update(environment(options) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
        from vllm import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        # the defaults that `vllm serve` takes, not those of offline batches
        context = UsageContext.OPENAI_API_SERVER
        arguments = EngineArgs(**options.engine_args(), disable_log_stats=True)
        self.engine = LLMEngine.from_engine_args(arguments, usage_context=context)
        self.core = self.engine.engine_core.engine_core
        self.scheduler, self.names = self.core.scheduler, {}
        self.facts = engine_facts(self.engine.vllm_config, self.scheduler.kv_cache_config)
        self.vocab_size = self.facts["vocab_size"]

    def add_request(self, request_id, prompt, max_tokens, *, priority=0, arrival_time=None, known=None):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=dict(known) if known else None,
        )
        tokens = {"prompt_token_ids": list(prompt)}
        inside = self.engine.add_request(request_id, tokens, params, arrival_time=arrival_time, priority=priority)
        self.names[inside] = request_id

    def step(self):
        return [_output(output) for output in self.engine.step()]

    def guide(self, policy, clock=None):
        """Serve under `policy` from now on; nothing may be waiting."""
        while self.scheduler.has_requests() or self.core.batch_queue:
            self.step()
        self.scheduler.guide(policy, clock)

    def has_unfinished(self):
        return bool(self.engine.has_unfinished_requests())

    def reset_prefix_cache(self):
        self.engine.reset_prefix_cache()

    def close(self):
        self.engine.engine_core.shutdown()


def _output(output):
    tokens = output.outputs[0]
    refusal = str(tokens.stop_reason) if tokens.finish_reason == "error" else None
    return Output(output.request_id, len(tokens.token_ids), output.finished, refusal)


BASE_S, TOKEN_S = 0.010, 0.001


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def lasts(scheduler_output):
    return (
        BASE_S + TOKEN_S * scheduler_output.total_num_scheduled_tokens if scheduler_output.num_scheduled_tokens else 0
    )


class LateExecutor:
    """Stands in for a GPU worker: takes a batch at once, has its tokens when the device has done it and all before."""

    def __init__(self, clock, scheduler):
        self.clock, self.scheduler, self.device_free_s = clock, scheduler, 0.0
        self.launched = []

    def execute_model(self, scheduler_output, non_block):
        from vllm.v1.outputs import ModelRunnerOutput

        assert non_block
        self.device_free_s = max(self.device_free_s, self.clock.now_s) + lasts(scheduler_output)
        ids = list(scheduler_output.num_scheduled_tokens)
        samples = [[] if self.scheduler.requests[i].is_prefill_chunk else [7] for i in ids]
        output = ModelRunnerOutput(ids, {name: i for i, name in enumerate(ids)}, samples)
        self.launched.append((self.device_free_s, output))
        return self._future()

    def sample_tokens(self, grammar_output, non_block):
        return self._future()

    def _future(self):
        done_s, output = self.launched[-1]
        clock = self.clock

        class Future:
            def result(self):
                clock.now_s = max(clock.now_s, done_s)
                return output

        return Future()


def made_core(executor, **given):
    """vLLM's own loop over such an executor."""
    from vllm.v1.engine.core import EngineCore

    from parity.vllm_parts import build_scheduler

    config = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
        "block_size": 16,
        "num_gpu_blocks": 200,
        "async_scheduling": True,
    }
    vllm_config, scheduler, _ = build_scheduler(config, **given)
    clock = Clock()
    made = object.__new__(EngineCore)  # without a model
    made.vllm_config, made.scheduler, made.model_executor = vllm_config, scheduler, executor(clock, scheduler)
    made.batch_queue_size, made.batch_queue = 2, deque(maxlen=2)
    made.aborts_queue = queue.Queue()
    made.is_mm_encoder_only = made.is_pooling_model = made.check_for_draft_tokens = made.log_stats = False
    made._weight_version = "default"
    made.log_error_detail = lambda _: nullcontext()
    return made


def add(core, name, num_prompt_tokens, max_tokens):
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False)
    core.scheduler.add_request(Request(name, list(range(num_prompt_tokens)), params, None))


class ShortestPrompt(Policy):
    def order(self, request):
        return request.num_prompt_tokens


class MostComputedGivesWay(Policy):
    """Tokens given out earlier in the step count."""

    def victim(self, running):
        return max(running, key=lambda request: (request.num_computed_tokens, request.num_output_tokens))


class MostBlocksGivesWay(Policy):
    def start(self, engine):
        self.engine = engine

    def order(self, request):
        return request.num_preemptions, -request.arrival_s

    def victim(self, running):
        return max(running, key=self.engine.blocks_freed_by)


class LastTurnsFirst(Policy):
    """What a client says of sessions."""

    def order(self, request):
        return request.has_next_turn, -request.turn, request.session_id


class Chunked(Policy):
    def seats(self, engine):
        return max(1, min(engine.max_num_seqs, engine.free_blocks // 2 + 1))

    def token_budget(self, engine):
        return max(1, engine.max_num_batched_tokens // (1 + engine.num_decoding))


class InTurns(Policy):
    """Lanes whose order changes while requests wait, by what has been admitted and what has ended."""

    def start(self, engine):
        self.served = {}

    def lane(self, request):
        return request.priority

    def order(self, request):
        return self.served.get(request.priority, 0)

    def admitted(self, request):
        tokens = request.num_prompt_tokens + request.num_computed_tokens + request.num_wanted_tokens
        self.served[request.priority] = self.served.get(request.priority, 0) + tokens

    def finished(self, request):
        self.served[request.priority] += request.num_output_tokens


class Impatient(Policy):
    """Turns away who finds a full queue, drops who has waited too long, and serves the last first."""

    longest_wait_s: float = 1.0
    most_waiting: int = 12

    def order(self, request):
        return -request.arrival_s

    def shed(self, request, engine):
        waited_s = engine.now_s - request.arrival_s
        return f"waited {waited_s:.3f} s" if waited_s > self.longest_wait_s else None

    def reject(self, request, engine):
        return f"{engine.num_waiting} are waiting" if engine.num_waiting > self.most_waiting else None


class Guessing(Policy):
    predictor_error: float = 0.5

    def order(self, request):
        return request.predicted_output_tokens

    def victim(self, running):
        return max(running, key=lambda request: request.predicted_output_tokens - request.num_output_tokens)


class Feedback(Policy):
    """As many seats as the latencies of those that ended allow."""

    def start(self, engine):
        self.num_seats = 4

    def seats(self, engine):
        return max(1, min(self.num_seats, engine.max_num_seqs))

    def finished(self, request):
        is_fast = (request.tpot_s or request.ttft_s) < 0.011 or request.e2el_s < 0.1
        self.num_seats = self.num_seats + 1 if is_fast else max(1, self.num_seats - 1)

    def admitted(self, request):
        self.num_seats -= request.num_preemptions > 0 and self.num_seats > 1


class Planned(Policy):
    def plan(self, running, waiting, engine):
        return super().plan(running, waiting, engine)


class Remembering(Policy):
    """Keeps the views of all that it has admitted, and decides by what they say later."""

    def start(self, engine):
        self.kept = []

    def admitted(self, request):
        self.kept.append(request)

    def seats(self, engine):
        shown = sum(
            view.num_computed_tokens
            + 3 * view.num_output_tokens
            + 5 * view.num_wanted_tokens
            + 7 * view.num_preemptions
            for view in self.kept
        )
        return 1 + shown % engine.max_num_seqs
