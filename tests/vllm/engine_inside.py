"""vLLM's whole engine in the tests' own process, step by step, and its asynchronous loop over a stand-in executor.

CPUs never schedule asynchronously, so a GPU is mocked: `LateExecutor` runs batches one after the other, each as long as
its tokens say, on a clock that nobody reads. The engine core's loop, the scheduler and the outputs are vLLM's.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from contextlib import nullcontext
from typing import NamedTuple

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


def made_core(executor):
    """vLLM's own loop over such an executor."""
    from vllm.v1.engine.core import EngineCore

    from parity.vllm_oracle import build_scheduler

    config = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 256,
        "block_size": 16,
        "num_gpu_blocks": 200,
        "async_scheduling": True,
    }
    vllm_config, scheduler, _ = build_scheduler(config)
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
