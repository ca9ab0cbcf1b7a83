"""What a running engine is, as vLLM resolved it: for whoever reads its steps (vllm/config, v1/core, vLLM 0.32).

Called in the engine's process; what its workers alone know is asked for with the first step. A request of vLLM's is
read by its names too, and shown as the simulator knows requests; nothing is imported from vLLM.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from simbatch.profiler.model.checkpoint import checkpoint_of
from simbatch.profiler.model.config import SHORT_DTYPES
from simbatch.sim.cost.gpus import known_gpu
from simbatch.sim.errors import UserError
from simbatch.sim.scheduler.request import NEVER


def engine_facts(vllm_config: Any, kv_cache_config: Any) -> dict[str, Any]:
    """Settings and memory, plain data; bytes are per GPU."""
    from vllm.version import __version__

    cache, model = vllm_config.cache_config, vllm_config.model_config
    scheduling, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    pages = sum(
        len(group.layer_names) * group.kv_cache_spec.page_size_bytes for group in kv_cache_config.kv_cache_groups
    )
    dtype, architecture = str(model.dtype).removeprefix("torch."), _architecture(model)
    gpu, name, total = _device()
    return {
        "vllm_version": __version__,
        "model": model.model,
        "architecture": architecture,
        "vocab_size": int(model.get_vocab_size()),
        "gpu": gpu,
        "gpu_name": name,
        "total_bytes": total,
        "quantization": model.quantization,
        "quantisation": quantisation_name(model.quantization, dtype, architecture),
        "kv_cache_dtype": dtype if cache.cache_dtype == "auto" else cache.cache_dtype,
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "api_server_count": getattr(parallel, "_api_process_count", 1),
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "max_num_seqs": scheduling.max_num_seqs,
        "max_num_batched_tokens": scheduling.max_num_batched_tokens,
        "max_model_len": model.max_model_len,
        "async_scheduling": bool(scheduling.async_scheduling),
        "block_size": cache.block_size,
        "num_gpu_blocks": kv_cache_config.num_blocks,
        "kv_bytes_per_token": pages // cache.block_size,
        "kv_cache_bytes": pages * kv_cache_config.num_blocks,
        "kv_cache_memory_bytes": None if cache.num_gpu_blocks_override else cache.kv_cache_memory_bytes,
        "enable_prefix_caching": bool(cache.enable_prefix_caching),
        "enforce_eager": bool(model.enforce_eager),
        "cudagraph_capture_sizes": list(vllm_config.compilation_config.cudagraph_capture_sizes or ()),
        "settings": _settings(vllm_config),
    }


def worker_memory(worker: Any) -> dict[str, int]:
    """Runs inside a worker: what vLLM's GPU worker measured at its start, bytes; nothing where it did not."""
    snapshot, runner = getattr(worker, "init_snapshot", None), getattr(worker, "model_runner", None)
    activation, graphs = (
        getattr(worker, "peak_activation_memory", None),
        getattr(worker, "cudagraph_memory_estimate", None),
    )
    if activation is not None and graphs is not None:
        from vllm import envs

        if envs.VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS:
            activation -= graphs  # vLLM adds them there
    found = {
        "total_bytes": getattr(snapshot, "total_memory", None),
        "weights_bytes": getattr(runner, "model_memory_usage", None),
        "activation_bytes": activation,
        "graphs_bytes": graphs,
    }
    return {key: int(value) for key, value in found.items() if value}


def quantisation_name(method: str | None, dtype: str, architecture: dict[str, Any]) -> str:
    """The quantisation as profile names spell it (bf16, fp16, fp8, int8, awq, gptq, int4), from vLLM's own name."""
    if method is None:
        return SHORT_DTYPES.get(dtype, dtype)
    if (stored := architecture.get("quantization_config")) is not None:
        try:
            return checkpoint_of(stored, "quantization_config").main or method
        except UserError:  # vLLM knows more of them than the planner
            return method
    return method  # quantised while loading, as --quantization fp8 does


def _settings(vllm_config: Any) -> dict[str, Any]:
    """The scheduler's and the KV cache's settings that are plain, by the names of their flags."""
    scheduling = vars(vllm_config.scheduler_config)
    given = {**vars(vllm_config.cache_config), **scheduling, "scheduling_policy": scheduling["policy"]}
    return {key: value for key, value in given.items() if isinstance(value, bool | int | float | str)}


def _architecture(model: Any) -> dict[str, Any]:
    """The model's config.json, as published when it is a folder."""
    path = Path(model.model) / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else model.hf_config.to_dict()
    return json.loads(json.dumps(content, default=str))  # type: ignore[no-any-return]


def _device() -> tuple[str, str, int]:
    """Short name, full name and bytes of memory of the first device."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.utils.cpu_resource_utils import get_memory_node_info

        return "cpu", _cpu_name(), int(get_memory_node_info(0).total_memory)
    name = str(current_platform.get_device_name(0))
    gpu = known_gpu(name)
    short = name.lower().replace(" ", "-") if gpu is None else gpu.short
    return short, name, int(current_platform.get_device_total_memory(0))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(found, platform.processor() or platform.machine())}, {os.cpu_count()} cores"


UNASKED = object()


class ServedRequest:
    """A request of vLLM's (`inside`) as the simulator's decisions and views know requests; what changes is read live.

    `ahead` holds what the step in planning has given out so far: vLLM adds it up when the step is planned, the
    simulator at once. What vLLM does not know of a request comes with it, in `vllm_xargs`, which become
    `SamplingParams.extra_args`.
    """

    first_token_ps = finish_ps = NEVER
    predicted_output_tokens: float | None = None
    view: object = None  # what policies see of it

    def __init__(self, index: int, inside: Any, arrival_ps: int, max_model_len: int, ahead: dict[str, int]) -> None:
        self.index, self.inside, self.arrival_ps, self._ahead = index, inside, arrival_ps, ahead
        self.max_tokens = min(inside.max_tokens, max_model_len - inside.num_prompt_tokens)
        self.priority = inside.priority
        extra = getattr(inside.sampling_params, "extra_args", None) or {}
        self.tenant = extra.get("tenant")
        self.session_id = extra.get("session_id")
        self.turn = int(extra.get("turn", 0))
        self.has_next_turn = bool(extra.get("has_next_turn", False))
        self.foretold = extra.get("predicted_output_tokens")  # by whoever sent it
        self._name = extra.get("request_id") or own_name(inside.request_id)
        self.is_seated = False  # as far as the policy has been told
        self.lane: Hashable = UNASKED

    @property
    def request_id(self) -> str:
        """The name it came with."""
        return self._name

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return int(self.inside.num_prompt_tokens)

    @property
    def num_tokens(self) -> int:
        """The prompt and the outputs received."""
        return int(self.inside.num_tokens)

    @property
    def num_output_tokens(self) -> int:
        """Tokens produced and received so far."""
        return self.num_tokens - self.num_prompt_tokens

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the KV cache, or being computed."""
        return int(self.inside.num_computed_tokens) + self._ahead.get(self.inside.request_id, 0)

    @property
    def num_placeholders(self) -> int:
        """Tokens sampled by steps in flight."""
        return int(self.inside.num_output_placeholders)

    @property
    def num_preemptions(self) -> int:
        """How often it has lost its blocks."""
        return int(self.inside.num_preemptions)


def own_name(inside: str) -> str:
    """The name that a request came with: vLLM adds a dash and eight random digits (v1/engine/input_processor.py)."""
    name, dash, digits = inside.rpartition("-")
    return name if dash and name and len(digits) == 8 and set(digits) <= set("0123456789abcdef") else inside
