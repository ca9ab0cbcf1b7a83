"""vLLM's worker without a model: it takes a step's time on a virtual device and answers with words.

By the names of vLLM 0.32 (vllm/v1/worker/worker_base.py). The engine's loop launches a step (`execute_model`, then
`sample_tokens`), goes on, and asks for its output later, which waits for the device's end: as on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.outputs import AsyncModelRunnerOutput, LogprobsLists, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from simbatch.serving.processes import die_with_parent
from simbatch.serving.recording import device_ran
from simbatch.serving.simulated import rounds
from simbatch.serving.simulated.device import ServeSpec, VirtualGpu, wait_until
from simbatch.serving.simulated.model import AnswerLengths, MadeUpAnswer, allowed_token, made_up_logprobs
from simbatch.sim.cost.model import Features, is_decode, sums_of

LAYER = "model.layers.0.self_attn.attn"
Entry = tuple[str, int, int, bool, int | None]  # request, tokens, computed before, whether it decodes, what it gets


class StepOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
    """A step's tokens, there when the device has ended."""

    def __init__(self, end_s: float, output: ModelRunnerOutput) -> None:
        self._end_s, self.output = end_s, output

    def get_output(self) -> ModelRunnerOutput:
        """Wait for the device."""
        wait_until(self._end_s)
        return self.output

    def get_kv_connector_output(self) -> None:
        """No connector; vLLM 0.33 asks."""


class SimulatedWorker(WorkerBase):  # type: ignore[misc]
    """One device, however many GPUs the profile was measured on."""

    _rounds: rounds.Rounds | None = None

    def init_device(self) -> None:
        """Read what is served."""
        die_with_parent()
        self.device = torch.device("cpu")
        self._spec = spec = ServeSpec.of_environment()
        self._gpu = VirtualGpu(spec.resolved, spec.host)
        self._lengths = AnswerLengths(spec.resolved)
        self._answers: dict[str, MadeUpAnswer] = {}
        self._launched: tuple[StepOutput | None, rounds.WatchedStep | None] = (None, None)
        self._rounds = rounds.begin(spec, self._gpu) if spec.is_watched else None

    def get_kv_cache_spec(self) -> dict[str, FullAttentionSpec]:
        """One layer whose keys and values are as large as all of the profile's."""
        model, parallel = self.model_config, self.parallel_config
        layer = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=model.get_num_kv_heads(parallel),
            head_size=model.get_head_size(),
            dtype=model.dtype,
        )
        self._page_bytes = layer.page_size_bytes
        return {LAYER: layer}

    def determine_available_memory(self) -> int:
        """Bytes for the profile's blocks, no more and no fewer."""
        return self._spec.resolved.engine.num_gpu_blocks * int(self._page_bytes)

    def execute_model(self, scheduler_output: Any) -> ModelRunnerOutput | None:
        """Launch a step on the virtual device."""
        called_s = time.monotonic()
        for new in scheduler_output.scheduled_new_reqs:
            if new.req_id not in self._answers:  # else it comes back after a preemption
                self._answers[new.req_id] = MadeUpAnswer(new.prompt_len, new.sampling_params, self._lengths)
        for ended in scheduler_output.finished_req_ids:
            self._answers.pop(ended, None)
        if not scheduler_output.total_num_scheduled_tokens:
            return ModelRunnerOutput(req_ids=[], req_id_to_index={})
        entries = list(self._entries(scheduler_output))
        features = Features(
            *sums_of(((n, done, decodes) for _, n, done, decodes, _ in entries), windows=self._gpu.windows)
        )
        step = None if self._rounds is None else self._rounds.step_of(scheduler_output)
        launch = self._gpu.launch(features)
        self._gpu.wait_for_launch(launch)
        device_ran(scheduler_output, launch.begin_s, launch.end_s)
        if step is not None:
            step.launched(called_s, launch, [entry[:4] for entry in entries])
        self._launched = StepOutput(launch.end_s, self._output(entries)), step
        return None

    def sample_tokens(self, grammar_output: Any) -> StepOutput | None:
        """The launched step's tokens, when they are there."""
        begin_s = time.monotonic()
        (launched, step), self._launched = self._launched, (None, None)
        if grammar_output is not None and launched is not None:
            tokens, row = launched.output.sampled_token_ids, launched.output.req_id_to_index
            names = grammar_output.structured_output_request_ids
            for name, bits in zip(names, grammar_output.grammar_bitmask, strict=False):
                if tokens[row[name]]:
                    tokens[row[name]] = [allowed_token(bits, self._spec.closers)]
        if step is not None:
            step.line |= {"m0": begin_s, "m1": time.monotonic()}
        return launched

    def _entries(self, scheduler_output: Any) -> Iterator[Entry]:
        tokens, cached = scheduler_output.num_scheduled_tokens, scheduler_output.scheduled_cached_reqs
        for new in scheduler_output.scheduled_new_reqs:
            known = new.prompt_len if new.prefill_token_ids is None else len(new.prefill_token_ids)  # outputs, too
            yield self._entry(new.req_id, tokens[new.req_id], new.num_computed_tokens, known)
        for name, done, outputs in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            known = self._answers[name].num_prompt_tokens + outputs  # those in flight, too
            yield self._entry(name, tokens[name], done, known)

    def _entry(self, name: str, num_tokens: int, done: int, known: int) -> Entry:
        answer, samples = self._answers[name], done + num_tokens >= known
        decodes = is_decode(num_tokens, done, answer.num_prompt_tokens, samples)
        token = answer.token(done + num_tokens - answer.num_prompt_tokens + 1, self._spec.words) if samples else None
        return name, num_tokens, done, decodes, token

    def _output(self, entries: list[Entry]) -> ModelRunnerOutput:
        names = [name for name, *_ in entries]
        sampled = [[] if token is None else [token] for *_, token in entries]
        index, wanted = {name: i for i, name in enumerate(names)}, None
        if asked := [n for name in names if (n := self._answers[name].num_logprobs) is not None]:
            wanted = LogprobsLists(*made_up_logprobs([token for *_, token in entries], max(asked), self._spec.words))
        return ModelRunnerOutput(req_ids=names, req_id_to_index=index, sampled_token_ids=sampled, logprobs=wanted)

    def shutdown(self) -> None:
        """Write the rest of the log."""
        if self._rounds is not None:
            self._rounds.close()

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """There is none."""

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """Any: nothing is laid out."""
        return [layout.name for layout in KVCacheLayout]

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Nothing is allocated."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Nothing is compiled."""
        return CompilationTimes(0.0, 0.0)

    def get_supported_tasks(self) -> tuple[str, ...]:
        """It generates."""
        return ("generate",)

    def get_kv_connector_handshake_metadata(self) -> None:
        """No connector."""

    def take_draft_token_ids(self) -> None:
        """No speculation."""

    def execute_dummy_batch(self) -> None:
        """Nothing to keep in step with."""

    def update_max_model_len(self, max_model_len: int) -> None:
        """Nothing depends on it here."""

    def synchronize_device(self) -> None:
        """Nothing is in flight on a real one."""
