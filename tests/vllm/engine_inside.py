"""vLLM's whole engine in the tests' own process, step by step: what a server does not let anybody look at."""

import os
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
