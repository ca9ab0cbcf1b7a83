"""What vLLM refuses at start, with its flags (vllm/config/scheduler.py, v1/core/kv_cache_utils.py); what is idle."""

from __future__ import annotations

from collections.abc import Iterator

from simbatch.sim.cost.profile import Profile
from simbatch.sim.errors import Problem
from simbatch.sim.scheduler.config import EngineConfig

_GRAPH_KEYS = ("cudagraph_capture_sizes", "max_cudagraph_capture_size", "enforce_eager")
_FRONT_END_KEYS = ("front_end", "api_server_count", "max_num_queued_reqs", "max_num_queued_tokens")


def idle_keys(profile: Profile) -> set[str]:
    """Keys of `engine` whose defaults change nothing on this profile, which does not say what they cost."""
    keys: set[str] = set()
    if profile.host is None:
        keys.add("host_noise")
        if not profile.step_time.padded:
            keys.update(_GRAPH_KEYS)
    if profile.front_end_times() is None:
        keys.update(_FRONT_END_KEYS)
    return keys


def start_problems(config: EngineConfig) -> Iterator[Problem]:
    """Every rule of vLLM's that `config` breaks; places are the keys of the scenario."""
    tokens, seqs, length = config.max_num_batched_tokens, config.max_num_seqs, config.max_model_len
    if tokens < seqs:
        rule = f"vLLM needs --max-num-batched-tokens to be at least --max-num-seqs ({seqs})"
        mend = f"raise it to {seqs}, or lower engine.max_num_seqs to {tokens}"
        yield Problem("engine.max_num_batched_tokens", rule, tokens, mend)
    if not config.enable_chunked_prefill and tokens < length:
        rule = f"without chunked prefill vLLM needs --max-num-batched-tokens to be at least --max-model-len ({length})"
        mend = f"raise it to {length}, lower engine.max_model_len, or set engine.enable_chunked_prefill: true"
        yield Problem("engine.max_num_batched_tokens", rule, tokens, mend)
    if config.max_num_active_seqs is not None and config.max_num_active_seqs > seqs:
        rule = f"vLLM needs --max-num-active-seqs to be at most --max-num-seqs ({seqs})"
        yield Problem("engine.max_num_active_seqs", rule, config.max_num_active_seqs, f"lower it to {seqs}")
    if config.long_prefill_token_threshold > length:
        rule = f"--long-prefill-token-threshold cannot be more than --max-model-len ({length})"
        value = config.long_prefill_token_threshold
        yield Problem("engine.long_prefill_token_threshold", rule, value, "lower it; 0 switches it off")
    yield from _blocks_problem(config)


def _blocks_problem(config: EngineConfig) -> Iterator[Problem]:
    usable_tokens = (config.num_gpu_blocks - 1) * config.block_size
    if usable_tokens < config.max_model_len:
        rule = (
            f"vLLM does not start when the KV cache cannot hold one request of --max-model-len: "
            f"{config.num_gpu_blocks - 1} usable blocks of {config.block_size} hold {usable_tokens} tokens"
        )
        mend = f"set engine.max_model_len to at most {usable_tokens}" if usable_tokens else "give it more KV blocks"
        yield Problem("engine.max_model_len", rule, config.max_model_len, mend)
