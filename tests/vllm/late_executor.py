"""vLLM's own asynchronous loop over a stand-in executor whose results come late, on a clock that nobody reads.

CPUs never schedule asynchronously, so a GPU is mocked: `LateExecutor` runs batches one after the other, each as long as
its tokens say. The engine core's loop, the scheduler and the outputs are vLLM's.
"""

import queue
from collections import deque
from contextlib import nullcontext

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
