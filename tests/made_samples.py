"""Samples of an engine whose step times are known, as `simbatch profile` would write them down.

Model configurations for tests: a small one, and those of published models where they are at hand.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simbatch.profiler.model.config import model_config_of, read_model_config
from simbatch.profiler.records import predict_s
from simbatch.profiler.records.samples import (
    Admission,
    BatchEntry,
    EngineFacts,
    Samples,
    SampleWriter,
    StepSample,
    steps_of,
)
from simbatch.sim.cost.step_time import TwoRegimeStepTime

MAX_SEQS, MAX_TOKENS = 32, 512
KV_BYTES_PER_TOKEN = 4096
ENGINE = EngineFacts(
    model="maker/tiny",
    architecture={},
    gpu="cpu",
    gpu_name="a made-up CPU",
    total_bytes=2**34,
    quantisation="bf16",
    kv_cache_dtype="bfloat16",
    tensor_parallel_size=1,
    vllm_version="0.32.0",
    gpu_memory_utilization=0.9,
    max_num_seqs=MAX_SEQS,
    max_num_batched_tokens=MAX_TOKENS,
    max_model_len=2048,
    block_size=128,
    num_gpu_blocks=100,
    kv_bytes_per_token=KV_BYTES_PER_TOKEN,
    kv_cache_bytes=100 * 128 * KV_BYTES_PER_TOKEN,
    command="simbatch profile maker/tiny",
)
TRUTH = TwoRegimeStepTime.model_validate(
    {
        "form": "two_regime",
        "decode": {"seqs": {"count": [1, 8, 32], "time_s": [0.004, 0.006, 0.010]}, "per_context_token_s": 2e-7},
        "mixed": {
            "tokens": {"count": [1, 64, 512], "time_s": [0.005, 0.011, 0.06]},
            "per_decode_seq_s": 3e-5,
            "per_context_token_s": 4e-7,
            "per_prefill_context_token_s": 1e-7,
            "per_attention_unit_s": 2e-8,
        },
    }
)


def made_samples(seed=0, episodes=80, truth=TRUTH, noise=0.03, spikes=0.0, drift=0.0):
    """Episodes of eight decodes and four prefills, canaries at the start, in the middle and at the end.

    `noise`: lognormal, standard deviation; `spikes`: the share of steps that take five times as long; `drift`: how much
    slower the engine is at the end.
    """
    rng = np.random.default_rng(seed)
    steps = _canaries()
    for episode in range(episodes):
        steps += _episode(rng, episode)
        if episode == episodes // 2:
            steps += _canaries()
    steps += _canaries()
    features, _, _ = steps_of(steps)
    times = predict_s(truth.cost_model(), features) * np.linspace(1, 1 + drift, len(steps))
    times = times * np.exp(noise * rng.standard_normal(len(times)) - noise**2 / 2)
    is_spike = np.random.default_rng([seed, 1]).random(len(times)) < spikes
    times = np.where(is_spike, 5 * times, times)
    measured = [step._replace(duration_s=float(time_s)) for step, time_s in zip(steps, times, strict=True)]
    return Samples(ENGINE, measured, [Admission(0.00037, 100)] * 40)


def write_samples(samples, path):
    """The file that holds them."""
    writer = SampleWriter(path, samples.engine)
    for step in samples.steps:
        writer.step(step)
    for admission in samples.admissions:
        writer.admission(admission)
    writer.close()
    return path


def _episode(rng, episode):
    num_decodes = 0 if episode % 10 == 0 else int(rng.integers(1, MAX_SEQS))
    contexts = [int(np.exp(rng.uniform(np.log(8), np.log(1500)))) for _ in range(num_decodes)]
    entries = [[BatchEntry(context + i, 1, True) for context in contexts] for i in range(12)]
    if num_decodes:
        yield from (StepSample(episode, False, 1.0, tuple(decodes)) for decodes in entries[:8])
    for decodes in entries[8:]:
        history = int(rng.integers(0, 1000)) * int(rng.integers(0, 2))
        prefill = BatchEntry(history, int(rng.integers(1, MAX_TOKENS - num_decodes)), False)
        yield StepSample(episode, False, 1.0, (*decodes, prefill))


def _canaries():
    decode, prefill = tuple([BatchEntry(100, 1, True)] * 4), (BatchEntry(0, 128, False),)
    return [StepSample(-1, True, 1.0, entries) for entries in (decode, prefill) for _ in range(9)]


SHARED = Path(__file__).parents[2] / "shared" / "models"
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama(**changes):
    """Llama-3.1-8B with other keys; None removes one."""
    content = {key: value for key, value in {**LLAMA_8B, **changes}.items() if value is not None}
    return model_config_of(content, "config.json")


def published(name):
    """A published model's configuration; the test is skipped where it is not there."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no configuration of {name} beside the project")
    return read_model_config(folder)


HOST: dict[str, Any] = {
    "source": "one H100, 2026-11-27",
    "launch": {
        "graph": {"base_s": 0.0067, "per_seq_s": 1e-6},
        "piecewise": {"base_s": 0.0163, "per_seq_s": 3e-5, "per_prefill_s": 0.001, "per_token_s": 1e-6},
        "none": {"base_s": 0.0243},
    },
    "update": {"base_s": 0.0005, "per_seq_s": 2e-6},
    "admit": {"base_s": 0.0003, "per_prompt_token_s": 1e-6},
    "lag_s": 0.0034,
    "tail_s": 0.0001,
    "spread": {"piecewise": {"share": [0, 1], "ratio": [0.5, 1.5]}, "none": {"share": [0, 1], "ratio": [0.9, 1.1]}},
}


FRONT_END = {"per_request_s": 0.003, "per_prompt_token_s": 2e-6, "per_chunk_s": 6e-5, "network_s": 0.002}
