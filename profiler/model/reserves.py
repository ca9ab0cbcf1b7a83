"""What vLLM takes of a GPU's memory beside weights and KV cache: each part, likely and between bounds.

vLLM measures it when it starts: a profile run of `max_num_batched_tokens` dummy tokens, then sampling for
`max_num_seqs` requests; since 0.20 the CUDA graphs too; and what CUDA and NCCL hold beside PyTorch. Formulas follow its
code. The bounds say how far two starts of one command, builds (FlashInfer or not) and drivers differ: docs/memory.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

from simbatch.profiler.model.config import ModelConfig
from simbatch.profiler.model.layers import Experts
from simbatch.profiler.model.weights import local_vocab
from simbatch.sim.cost.gpus import GIB, Gpu, capture_size_of_model, default_max_capture_size
from simbatch.sim.cost.sections import Peak
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scheduler.config import LAST_PATCH, NEWEST, Version, changes_in

# The sampler's tensors of [max_num_seqs, vocabulary] in the profile run: logits in 16 bits and in fp32 in vLLM's newer
# model runner (v1/worker/gpu), where nothing is sorted; 33 bytes on an H100 in the older one, which sorts.
NEW_LOGIT_BYTES, OLD_LOGIT_BYTES = 6, 33
# Architectures that take the newer runner since this version (config/vllm.py); dense ones since 0.26, all since 0.29.
NEW_RUNNER: dict[str, Version] = {
    "Qwen3ForCausalLM": (0, 22),
    "LlamaForCausalLM": (0, 23),
    "MistralForCausalLM": (0, 23),
    "Qwen2MoeForCausalLM": (0, 24),
    "DeepseekV2ForCausalLM": (0, 24),
}
DENSE_NEW_RUNNER, ALL_NEW_RUNNER = (0, 26), (0, 29)
QUANTISED_NEW_RUNNER: Version = (0, 24)  # before it only unquantised ones
NEW_RUNNER_MEASURES_GRAPHS: Version = (0, 29)  # before it its profile_cudagraph_memory says 0
FIRST_V1: Version = (0, 8)  # before it the engine without chunked prefill, but for models of more than 32,768 tokens
# Of a token in the forward pass: three times the hidden state (two and the residual), and gate, up and their product.
# With that Llama-3.1-8B takes 864 MiB for 8,192 tokens, as vLLM 0.32 said on an H100.
HIDDEN_STATES, INNER_STATES = 3, 3
# Beside PyTorch's tensors: 0.16 GiB in vLLM's log on an H100 (pull request 12126); since 0.27 vLLM counts what the
# driver says is gone, so rounding to segments too: what 0.32 left unexplained on an H100 (gpu/h100-vllm-0.32).
OLD_NON_TORCH_BYTES, NON_TORCH_BYTES = int(0.16 * GIB), int(0.35 * GIB)
COUNTS_DRIVER: Version = (0, 27)
NCCL_BYTES = {1: 0, 2: 358_612_992, 4: 411_041_792}  # aiconfigurator's datasheets (Apache-2.0); the last for more
GRAPH_BYTES = 774 * 2**20 // (32 * 51)  # of a layer and size: vLLM 0.32, an H100, Llama-3.1-8B with its 51 sizes
GRAPH_SIZES = 51
# A first start compiles inside the profile run: the compiler tries whether kernels are faster together
# (`benchmark_combo_kernel`, set by config/compilation.py since 0.12) on made-up arguments, among them a second table of
# embeddings. A restart finds the kernels in its cache. Qwen3-8B on an RTX 4090: 1.16 GiB of table above a peak of 0.23
# are 0.93; two starts differ by 0.95. One log (docs/memory.md) had two tables.
COMPILER_TRIES: Version = (0, 12)
FIRST_STARTS, MOST_TABLES = 0.7, 2  # seven of the ten logs of docs/memory.md in which it shows are of first starts
LATENT_CHUNK_TOKENS = 65_536  # of context that MLA unpacks at once at most (mla/common: chunked_prefill_workspace_size)
ACTIVATIONS, GRAPHS, COMPILED = "activations", "CUDA graphs", "first compilation"
VISION_BYTES = GIB  # the vision tower's own profile run


class Reserve(NamedTuple):
    """One part in bytes, likely and between `low` and `high`, and how it was computed."""

    label: str
    value: int
    low: int
    high: int
    formula: str


@dataclass(frozen=True)
class Limits:
    """What the user may set and the reserves hang on."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    version: Version = (0, 32)
    is_quantised: bool = False

    @property
    def has_new_engine(self) -> bool:
        """Whether this is vLLM's V1 engine."""
        return self.version >= FIRST_V1


def memory_version(text: str | None) -> Version:
    """A version of vLLM; those that are older than a simulation knows are read too, without a patch as its last one."""
    words = (text or NEWEST).split(".")
    if len(words) >= 2 and words[0].isdigit() and words[1].isdigit():
        patch = re.match(r"\d+", words[2]) if len(words) > 2 else None
        return int(words[0]), int(words[1]), int(patch[0]) if patch else LAST_PATCH
    raise UserError(Problem("--vllm-version", "must be a version of vLLM", text, f"for example {NEWEST}"))


def has_new_runner(config: ModelConfig, limits: Limits) -> bool:
    """Whether vLLM runs this model by its newer model runner unasked (config/vllm.py)."""
    version = limits.version
    if version >= ALL_NEW_RUNNER:
        return True
    if limits.is_quantised and version < QUANTISED_NEW_RUNNER:
        return False
    is_dense = config.num_experts == 1 and not config.has_states
    return (is_dense and version >= DENSE_NEW_RUNNER) or version >= NEW_RUNNER.get(config.architecture, ALL_NEW_RUNNER)


def reserves(config: ModelConfig, gpu: Gpu, limits: Limits) -> tuple[list[Reserve], Peak]:
    """All parts, and the formulas by which activations follow the limits."""
    gpus = limits.tensor_parallel_size
    peak = peak_of(config, gpus, limits.max_num_seqs, limits.max_num_batched_tokens, limits)
    activation = peak.bytes_at(limits.max_num_seqs, limits.max_num_batched_tokens)
    rotary = config.max_position_embeddings * config.rotary_dim * config.element_bytes
    peak_formula = _peak_formula(config, peak, limits)
    parts = [
        Reserve(ACTIVATIONS, activation, activation // 2, int(1.6 * activation), peak_formula),
        _compiled(config, activation, limits),
        _graphs(config, gpu, limits),
        Reserve("rotary table", rotary, rotary, rotary, _rotary_formula(config)),
        _libraries(gpu, limits),
    ]
    if config.has_latent_attention:
        parts.append(_latent_workspace(config, limits))
    if config.vision:
        note = "the vision tower's own profile run: by images, not by the text's limits"
        parts.append(Reserve("vision tower's peak", VISION_BYTES, 0, 3 * VISION_BYTES, note))
    return parts, peak


def spread(parts: Sequence[Reserve]) -> tuple[int, int]:
    """How much less and how much more all parts together may be.

    They vary independently of each other; but a restart compiles nothing, whatever the others are.
    """
    compiled = sum(part.value for part in parts if part.label == COMPILED)
    less = sqrt(sum((part.value - part.low) ** 2 for part in parts if part.label != COMPILED))
    more = sqrt(sum((part.high - part.value) ** 2 for part in parts))
    return compiled + int(less), int(more)


def peak_of(
    config: ModelConfig, tensor_parallel_size: int, seqs: int, tokens: int, limits: Limits | None = None
) -> Peak:
    """The two peaks of vLLM's profile run: a forward pass of all tokens, and sampling for all requests.

    Forward: residual and hidden states of every token, and gate, up and their product (of the experts that it meets).
    Sampling: logits of every request, gathered from all GPUs, with the hidden states of all tokens still held.
    """
    limits = limits or Limits(seqs, tokens, config.max_position_embeddings)
    width = HIDDEN_STATES * config.hidden_size + _inner_width(config, tensor_parallel_size)
    logit = NEW_LOGIT_BYTES if has_new_runner(config, limits) else OLD_LOGIT_BYTES
    if not limits.has_new_engine and limits.max_model_len > 32_768:  # chunked prefill: its profile run samples nothing
        logit = 0
    return Peak(
        max_num_seqs=seqs,
        max_num_batched_tokens=tokens,
        num_capture_sizes=GRAPH_SIZES,
        forward_bytes_per_token=width * config.element_bytes,
        sampler_bytes_per_seq=local_vocab(config, 1) * logit,
        sampler_bytes_per_token=config.hidden_size * config.element_bytes,
    )


def _inner_width(config: ModelConfig, gpus: int) -> int:
    """Numbers of a token in the widest feed-forward part.

    Fused experts keep, of each expert that a token meets, gate and up or the output, whichever is wider, and their
    product (fused_moe.py).
    """
    widths = [0]
    for layer, _ in config.distinct_layers:
        part = layer.feed_forward
        if isinstance(part, Experts):
            inner = -(-part.inner // gpus)
            widths.append(part.per_token * (max(2 * inner, config.hidden_size) + inner) + 3 * part.shared_inner // gpus)
        elif part is not None:
            widths.append(INNER_STATES * part.inner // gpus)
    return max(widths)


def _libraries(gpu: Gpu, limits: Limits) -> Reserve:
    """What CUDA (or ROCm) and NCCL hold; logs of one GPU have 0.01 to 1 GiB, of a MI300X 4."""
    base = NON_TORCH_BYTES if limits.version >= COUNTS_DRIVER else OLD_NON_TORCH_BYTES
    links = NCCL_BYTES.get(limits.tensor_parallel_size, NCCL_BYTES[4])
    more = links + (4 * GIB if gpu.name.startswith("AMD") else GIB)
    formula = f"outside PyTorch: {base / GIB:.2f} GiB" + (", and NCCL's buffers between GPUs" if links else "")
    return Reserve("CUDA and NCCL", base + links, int(0.02 * GIB), base + links + more, formula)


def _compiled(config: ModelConfig, activation: int, limits: Limits) -> Reserve:
    """What a first start's compilation adds to the peak, weighed by how many starts are first ones."""
    if limits.enforce_eager or limits.version < COMPILER_TRIES:
        return Reserve(COMPILED, 0, 0, 0, "none: nothing is compiled" if limits.enforce_eager else "none before 0.12")
    table = local_vocab(config, limits.tensor_parallel_size) * config.hidden_size * config.element_bytes
    first, most = (max(0, tables * table - activation) for tables in (1, MOST_TABLES))
    formula = f"{FIRST_STARTS} x what a first start's copy of the embeddings ({table:,} bytes) is above the other peaks"
    return Reserve(COMPILED, int(FIRST_STARTS * first), 0, most, f"{formula}; a restart has none")


def _graphs(config: ModelConfig, gpu: Gpu, limits: Limits) -> Reserve:
    if limits.enforce_eager:
        return Reserve(GRAPHS, 0, 0, 0, "none: enforce_eager")
    if limits.version < (0, 20):
        note = "taken after the KV cache is made, outside the utilisation: vLLM sets them aside since 0.20"
        return Reserve(GRAPHS, 0, 0, 0, note)
    if has_new_runner(config, limits) and limits.version < NEW_RUNNER_MEASURES_GRAPHS:
        return Reserve(GRAPHS, 0, 0, 0, "taken outside the utilisation: this model's runner measures none before 0.29")
    sizes = num_graph_sizes(config, gpu, limits)
    value = GRAPH_BYTES * config.num_hidden_layers * sizes
    formula = f"{config.num_hidden_layers} layers x {sizes} sizes x {GRAPH_BYTES:,} bytes, measured on an H100"
    return Reserve(GRAPHS, value, 0, 2 * value, formula)


def num_graph_sizes(config: ModelConfig, gpu: Gpu, limits: Limits) -> int:
    """How many CUDA graphs vLLM captures unasked."""
    from simbatch.sim.scenario.engine import EngineSettings
    from simbatch.sim.scenario.rules import capture_sizes

    batch = limits.max_num_seqs, max(limits.max_num_batched_tokens, 1), default_max_capture_size(gpu.short)
    changes, of_model = changes_in(".".join(map(str, limits.version))), capture_size_of_model(config.architecture)
    return len(capture_sizes(EngineSettings(), *batch, changes, of_model=of_model))


def _latent_workspace(config: ModelConfig, limits: Limits) -> Reserve:
    """Keys and values of a chunk of context, unpacked for all heads of this GPU, and the chunk itself."""
    mixer = next(layer.mixer for layer in config.layers if layer.mixer is not None)
    heads = config.num_attention_heads // limits.tensor_parallel_size
    width = getattr(mixer, "qk_nope_head_dim", 0) + getattr(mixer, "v_head_dim", 0)
    tokens = min(max(8 * limits.max_model_len, 4 * limits.max_num_seqs * 64), LATENT_CHUNK_TOKENS)
    value = tokens * (heads * width + getattr(mixer, "latent", 0)) * config.element_bytes
    formula = f"MLA: {tokens:,} tokens of context unpacked, {heads} heads x {width} x {config.element_bytes} bytes"
    return Reserve("MLA's workspace", value, value // 8, int(1.2 * value), formula)


def _peak_formula(config: ModelConfig, peak: Peak, limits: Limits) -> str:
    seqs, tokens, element = peak.max_num_seqs, peak.max_num_batched_tokens, config.element_bytes
    hidden = config.hidden_size
    if peak.bytes_at(seqs, tokens) == peak.forward_bytes_per_token * tokens:
        inner = _inner_width(config, limits.tensor_parallel_size)
        return f"forward pass: {tokens:,} tokens x ({HIDDEN_STATES} x {hidden:,} + {inner:,}) x {element} bytes"
    vocabulary = local_vocab(config, 1)
    logits = f"{vocabulary:,} logits x {peak.sampler_bytes_per_seq // vocabulary} bytes"
    return f"sampling: {seqs:,} requests x {logits} + {tokens:,} x {hidden:,} x {element} bytes"


def _rotary_formula(config: ModelConfig) -> str:
    return f"{config.max_position_embeddings:,} positions x {config.rotary_dim} x {config.element_bytes} bytes"
