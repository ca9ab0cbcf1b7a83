"""A recommendation as vLLM takes it: a `vllm serve` command, and a file for its `--config`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from simbatch.sim.search.recommend import Recommendation
from simbatch.sim.search.tune_flags import QUANTIZATION_FLAGS

CONFIG_FILE = "vllm.yaml"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def arguments(found: Recommendation) -> dict[str, Any]:
    """Every argument that the recommendation sets, by vLLM's name with dashes; `model` is the first."""
    profile, engine = found.profile, found.scenario.engine
    given: dict[str, Any] = {"model": profile.model}
    if profile.quantisation in QUANTIZATION_FLAGS:
        given["quantization"] = profile.quantisation
    elif profile.quantisation in DTYPES:
        given["dtype"] = DTYPES[profile.quantisation]
    given |= {
        "kv-cache-dtype": profile.kv_cache_dtype if profile.kv_cache_dtype.startswith("fp8") else "auto",
        "tensor-parallel-size": profile.tensor_parallel_size,
        "max-model-len": engine.max_model_len,
        "max-num-seqs": found.chosen.max_num_seqs,
        "max-num-batched-tokens": found.chosen.max_num_batched_tokens,
    }
    if profile.is_gpu:
        given["gpu-memory-utilization"] = profile.memory.gpu_memory_utilization
    return given | {
        "enable-prefix-caching": engine.enable_prefix_caching,
        "enable-chunked-prefill": engine.enable_chunked_prefill,
    }


def command(given: Mapping[str, Any]) -> str:
    """`vllm serve MODEL --flag value ...`."""
    words = ["vllm serve", shlex.quote(str(given["model"]))]
    for name, value in given.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif name != "model":
            words.append(f"--{name} {value}")
    return " ".join(words)


def config_yaml(given: Mapping[str, Any], comment: str) -> str:
    """The same for `vllm serve --config FILE`; off is `no-NAME: true`, for vLLM 0.32 passes over `NAME: false`."""
    import yaml

    data = {f"no-{name}" if value is False else name: value is False or value for name, value in given.items()}
    return f"# {comment}\n{yaml.safe_dump(data, sort_keys=False)}"
