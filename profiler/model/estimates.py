"""Profiles that nobody measured: from the roofline, and from a measured profile whose weights are stored smaller."""

from __future__ import annotations

from typing import Any

import numpy as np

from simbatch.profiler.model.config import ModelConfig
from simbatch.profiler.model.memory_plan import kv_bytes_per_token, plan_memory
from simbatch.profiler.model.quantisation import checked_quantisation
from simbatch.profiler.model.roofline import Roofline, knots, roofline_of
from simbatch.profiler.model.step_parts import routing_of
from simbatch.profiler.model.weights import weights_of
from simbatch.sim.cost.gpus import GPUS, Gpu, profile_name
from simbatch.sim.cost.profile import MeasuredProfile
from simbatch.sim.cost.sections import FrontEndSection, HostSection, Memory
from simbatch.sim.cost.step_time import Knots, TwoRegimeStepTime
from simbatch.sim.errors import Problem, UserError

GRAPH_S = 0.0027  # to launch a whole step on one GPU
GRAPH_MORE_S = {1: 0.0, 2: 0.0003, 4: 0.0006, 8: 0.0011}  # GPUs; between them the next larger one's
NONE_S, PIECEWISE_S, PREFILL_S = 0.012, 0.008, 0.001
FRONT_END = {"per_request_s": 0.0002, "per_prompt_token_s": 1e-6, "per_chunk_s": 3e-5, "network_s": 0.014}
HOST_SOURCE = (
    "assumed, not measured with this model on this GPU: what published streams of vLLM on 8 x H100 in 2026 take "
    "(Scicom-AI-Enterprise-Organization/llm-benchmaq, MIT), rounded; floors of a step on several GPUs: published stages"
)
FRONT_END_SOURCE = (
    "assumed, not measured on this server: what requests take to come in at published servers of 8 x H100 in 2026 "
    "(Scicom-AI-Enterprise-Organization/llm-benchmaq, MIT), rounded; published stages say some 8 ms a request"
)


def assumed_sections(tensor_parallel_size: int) -> dict[str, Any]:
    """`host` and `front_end` for a server of so many GPUs."""
    more_s = next((value for size, value in GRAPH_MORE_S.items() if size >= tensor_parallel_size), GRAPH_MORE_S[8])
    launch = {
        "graph": {"base_s": round(GRAPH_S + more_s, 6)},
        "piecewise": {"base_s": PIECEWISE_S, "per_prefill_s": PREFILL_S},
        "none": {"base_s": NONE_S, "per_prefill_s": PREFILL_S},
    }
    return {
        "host": HostSection.model_validate({"source": HOST_SOURCE, "assumed": True, "launch": launch}),
        "front_end": FrontEndSection.model_validate({"source": FRONT_END_SOURCE, "assumed": True, **FRONT_END}),
    }


NOT_MEASURED = (
    "an estimate from shapes and datasheet: nobody measured this model on this GPU; where somebody did, such estimates "
    "of steps were 3 to 20 % off on average (docs/memory.md)"
)


def roofline_profile(
    config: ModelConfig,
    gpu: Gpu,
    *,
    model: str,
    quantisation: str | None = None,
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
    experts_met: str | None = None,
    greedy: bool = False,
    command: str = "",
    assumed: tuple[str, ...] = (),
) -> MeasuredProfile:
    """Estimate a whole profile, `assumed` among its notes; `experts_met`: counted ones (`routing_of`).

    Raises UserError where the model does not fit or cannot be divided.
    """
    routing = routing_of(experts_met, config)
    roofline = roofline_of(config, gpu, quantisation, kv_cache_dtype, tensor_parallel_size, routing, greedy=greedy)
    plan = plan_memory(
        config,
        gpu,
        quantisation=roofline.quantisation,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel_size=tensor_parallel_size,
    )
    memory = plan.memory()
    kv_tokens = (memory.num_gpu_blocks - 1) * memory.block_size
    resolved = config.dtype if kv_cache_dtype == "auto" else kv_cache_dtype
    return MeasuredProfile.model_validate(
        {
            "name": profile_name(gpu.short, model, roofline.quantisation, resolved, tensor_parallel_size),
            "model": model,
            "gpu": gpu.short,
            "quantisation": roofline.quantisation,
            "kv_cache_dtype": resolved,
            "tensor_parallel_size": tensor_parallel_size,
            "vllm_version": "0.32.0",
            "source": "roofline of the model's shapes and the GPU's datasheet",
            "licence": "Apache-2.0",
            "command": command,
            "estimate": True,
            "notes": (NOT_MEASURED, *shape_notes(roofline), *assumed, length_note(config, kv_tokens)),
            "max_model_len": min(config.max_position_embeddings, kv_tokens),
            "memory": memory,
            "step_time": roofline.step_time(),
            "error": None,
            "range": None,
            **assumed_sections(tensor_parallel_size),
        }
    )


def shape_notes(roofline: Roofline) -> list[str]:
    """What an estimate takes for granted of experts, sampling and windows."""
    notes, size, routing = [], roofline.attention.window_size, roofline.routing
    if routing.tokens:
        points = ", ".join(f"{n} tokens {met:g}" for n, met in zip(routing.tokens, routing.experts, strict=True))
        notes.append(f"experts met, as given: {points}; between them on a line over the logarithm of tokens")
    elif roofline.config.num_experts > 1:
        notes.append("experts: every one as likely to be chosen; uneven routing meets fewer of them in small batches")
    if drawn_s := roofline.random_seq_s:
        drawn = "sampling at a temperature above 0, as models' own generation configs have it"
        notes.append(f"{drawn}: {1e6 * drawn_s:.1f} us a sequence; at temperature 0 they are not spent: --greedy")
    if size is not None:
        notes.append(f"layers with a window of {size:,} tokens: of a context they cost what is inside it")
    return notes


def scaled_weights_profile(
    base: MeasuredProfile, config: ModelConfig, quantisation: str, command: str = ""
) -> MeasuredProfile:
    """Estimate what a measured profile becomes when its weights are stored smaller (int4: weight-only).

    Each matrix gets faster by the bytes that need no reading, as far as its multiplications let it; everything else
    stays as measured. The memory that the weights free becomes KV cache. Raises UserError for weights that do not get
    smaller, and for a profile that has no matrices to scale.
    """
    checked_quantisation(quantisation)
    step_time = base.step_time
    if base.gpu not in GPUS or not isinstance(step_time, TwoRegimeStepTime):
        raise UserError(Problem("--base", "must be a measured profile of a known GPU", base.name))
    _check_same_model(base, config)
    shape = base.quantisation, base.kv_cache_dtype, base.tensor_parallel_size
    roofline = roofline_of(config, GPUS[base.gpu], *shape, greedy=True)
    memory = _memory_with(base, config, quantisation)
    decode = step_time.decode.model_copy(update={"seqs": _faster(step_time.decode.seqs, roofline, quantisation)})
    mixed = step_time.mixed.model_copy(update={"tokens": _faster(step_time.mixed.tokens, roofline, quantisation)})
    kv_tokens = (memory.num_gpu_blocks - 1) * memory.block_size
    note = (
        f"an estimate: step times of {base.name}, less the time of the weights' bytes that {quantisation} need not "
        "read, as far as int4 kernels reach the bandwidth; prompts may be slower than in bf16 (docs/memory.md); "
        "the KV cache has the memory that is freed"
    )
    changed = {
        "name": profile_name(base.gpu, base.model, quantisation, base.kv_cache_dtype, base.tensor_parallel_size),
        "quantisation": quantisation,
        "estimate": True,
        "command": command,
        "notes": (note, length_note(config, kv_tokens)),
        "max_model_len": min(config.max_position_embeddings, kv_tokens),
        "memory": memory,
        "step_time": step_time.model_copy(update={"decode": decode, "mixed": mixed}),
        "error": None,
        "real_runs": None,
        "noise": None,
    }
    return MeasuredProfile.model_validate(dict(base) | changed)


def _faster(measured: Knots, roofline: Roofline, quantisation: str) -> Knots:
    """The function with its matrices' share shrunk as the roofline's shrink; the share itself is the measured one.

    So a matrix that reads from memory keeps the bandwidth that was measured, and one that multiplies gains nothing.
    """
    counts = sorted({*measured.count, *(2**power for power in range(15) if 2**power < measured.count[-1])})
    times = np.interp(counts, measured.count, measured.time_s)
    others = np.array([roofline.rest_s(count) + roofline.sequences_s(1) for count in counts])
    kept = np.array([roofline.matrices_s(count, quantisation) / roofline.matrices_s(count) for count in counts])
    return Knots.model_validate(
        knots(counts, list(times - np.maximum(times - others, 0.0) * (1 - np.minimum(kept, 1))))
    )


def _check_same_model(base: MeasuredProfile, config: ModelConfig) -> None:
    """By the KV bytes of a token: names differ from folder to folder."""
    ours, theirs = kv_bytes_per_token(config, base.kv_cache_dtype, base.tensor_parallel_size), base.memory
    if ours != theirs.kv_bytes_per_token:
        rule = f"is of another model than {base.name}: {ours:,} KV bytes per token, not {theirs.kv_bytes_per_token:,}"
        raise UserError(Problem("--model-config", rule, mend=f"name the config.json of {base.model}"))


def _memory_with(base: MeasuredProfile, config: ModelConfig, quantisation: str) -> Memory:
    memory = base.memory
    weights = weights_of(config, quantisation, base.tensor_parallel_size).total
    if weights >= memory.weights_bytes:
        rule = f"weights of {weights:,} bytes are no smaller than those of {base.name} ({memory.weights_bytes:,})"
        raise UserError(Problem("--quantization", rule, quantisation))
    kv_bytes = memory.kv_bytes(memory.gpu_memory_utilization) + memory.weights_bytes - weights
    blocks = kv_bytes // (memory.kv_bytes_per_token * memory.block_size)
    update = {"weights_bytes": weights, "num_gpu_blocks": blocks, "num_gpu_blocks_from": "estimate"}
    return Memory.model_validate(memory.model_dump() | update)


def length_note(config: ModelConfig, kv_tokens: int) -> str:
    """Whose `max_model_len` a profile's is."""
    own = config.max_position_embeddings
    if own > kv_tokens:
        return f"max_model_len is what the KV cache holds: vLLM would not start with the model's own {own}"
    return f"max_model_len is the model's own {own}"
