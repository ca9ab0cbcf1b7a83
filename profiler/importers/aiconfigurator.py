"""NVIDIA aiconfigurator's kernel latencies, measured through vLLM, composed to steps.

A GPU has a folder with one of vLLM's versions inside (`h100_sxm/vllm-0.24.0/*_perf.parquet`) and a file with its
datasheet beside the folder (`h100_sxm.yaml`). With T scheduled tokens, S sequences and L layers, a step takes

    L * (qkv(T) + o(T) + gate_up(T) + down(T) + context attention per request + generation attention at the mean context
         + elementwise bytes(T) / (0.8 * bandwidth) + 8 us + 2 all-reduces of T * hidden) + lm_head(S) + (30 + 0.6 S) us
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simbatch.profiler.fit.design import StepLimits
from simbatch.profiler.importers.kernels import (
    AllReduce,
    ContextAttention,
    Gemm,
    GenerationAttention,
    LinkAllReduce,
    tables_of,
)
from simbatch.profiler.importers.source import KV_DTYPES, ImportRequest, TableSource, fit_tables
from simbatch.profiler.importers.tables import Floats
from simbatch.profiler.model.config import ModelConfig
from simbatch.profiler.model.sampling import SAMPLER_S, SAMPLER_SEQ_S, random_seq_s
from simbatch.profiler.model.weights import layer_matrices, local_kv_heads, local_vocab
from simbatch.profiler.records.steps import Steps
from simbatch.sim.cost.memory import KVCacheType
from simbatch.sim.cost.provenance import Link
from simbatch.sim.errors import Problem, UserError

CREDIT = (
    "aiconfigurator (github.com/ai-dynamo/aiconfigurator): kernel latencies measured through vLLM, composed to steps"
)
GPUS = {"h100_sxm": "h100", "h200_sxm": "h200", "a100_sxm": "a100", "l40s": "l40s", "rtx_pro_6000_server": "rtxpro6000"}
GEMM_DTYPES = {"bf16": "bfloat16", "fp8": "fp8"}
MOVE_SHARE = 0.8  # of the bandwidth, reached by elementwise kernels
KV_READ_SHARE = 0.87  # of the bandwidth, reached by attention of decodes
KV_READ_S = 6e-6
LAYER_S = 8e-6  # launches of a layer's elementwise kernels
MAX_SEQS, MAX_BATCHED_TOKENS = 1024, 8192  # vLLM's defaults on these GPUs, at the most
MIXED_NOTE = (
    "steps with prefills and decodes: both attentions were measured apart and are added; where the two were measured "
    "together (RTX PRO 6000, LLMServingSim) such steps took 3 to 11 % longer in all than so composed"
)
RANDOM_NOTE = (
    "sampling at a temperature above 0, as models' own generation configs have it: {microseconds:.1f} us a sequence "
    "for {vocabulary:,} tokens are added to the tables; at temperature 0 they are not spent: import with --greedy"
)
MAX_HISTORY = 8192  # prompts of 16,384 were measured: a chunk of 8,192 after as many


class KernelTables:
    """The tables of one GPU for one model, and the step times that they compose to."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        *,
        quantisation: str,
        kv_cache_dtype: str,
        tensor_parallel_size: int,
        link: Link | None = None,
        greedy: bool = False,
    ) -> None:
        self.bandwidth_bytes_per_s = read_bandwidth(folder.parent / f"{folder.name}.yaml")
        self.tables = tables_of(folder)
        self.config = config
        matrices = layer_matrices(config, tensor_parallel_size)
        heads, kv_heads = (
            config.num_attention_heads // tensor_parallel_size,
            local_kv_heads(config, tensor_parallel_size),
        )
        gemm, dtype = self.tables / "gemm_perf.parquet", GEMM_DTYPES[quantisation]
        self._gemms = [Gemm(gemm, dtype, matrix.num_outputs, matrix.num_inputs) for matrix in matrices]
        self._lm_head = Gemm(gemm, "bfloat16", local_vocab(config, tensor_parallel_size), config.hidden_size)
        shape = (heads, kv_heads, config.head_dim, kv_cache_dtype)
        self._context = ContextAttention(self.tables / "context_attention_perf.parquet", *shape)
        self._generation = GenerationAttention(self.tables / "generation_attention_perf.parquet", *shape)
        keys = kv_heads * config.head_dim
        self._kv_token_bytes = 2 * keys * (1 if kv_cache_dtype == "fp8" else 2)
        # Read and written a token: two norms with residuals, queries and keys turned, KV stored, SiLU and product.
        queries, inner = heads * config.head_dim, config.intermediate_size // tensor_parallel_size
        self._moved_bytes = 2 * (8 * config.hidden_size + 2 * (queries + keys) + 4 * keys + 3 * inner)
        self.sample_s = 0.0
        if not greedy:
            self.sample_s = random_seq_s(config.vocab_size, self.bandwidth_bytes_per_s)
        self._all_reduce: AllReduce | LinkAllReduce | None = None
        if tensor_parallel_size > 1 and link is not None:
            self._all_reduce = LinkAllReduce(link, tensor_parallel_size)
        elif tensor_parallel_size > 1:
            self._all_reduce = AllReduce(self.tables / "custom_allreduce_perf.parquet", tensor_parallel_size)

    @property
    def vllm_version(self) -> str:
        """The version in the folder's name."""
        return self.tables.name.removeprefix("vllm-")

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of these tables."""
        sampling = RANDOM_NOTE.format(microseconds=1e6 * self.sample_s, vocabulary=self.config.vocab_size)
        said = (sampling,) if self.sample_s else ()
        if not isinstance(self._all_reduce, AllReduce) or self._all_reduce.vllm_version == self.vllm_version:
            return said
        return (
            *said,
            f"the all-reduce was measured with another vLLM; its table says {self._all_reduce.vllm_version}",
        )

    def step_time_s(self, steps: Steps) -> Floats:
        """What each step lasts, s; prefills of one step are taken to be alike."""
        tokens, seqs = steps.num_tokens, steps.num_prefills + steps.num_decodes
        layer = sum(gemm.time_s(tokens) for gemm in self._gemms) + self._attention_s(steps)
        layer += tokens * self._moved_bytes / (MOVE_SHARE * self.bandwidth_bytes_per_s) + LAYER_S
        if self._all_reduce is not None:
            layer += 2 * self._all_reduce.time_s(tokens, self.config.hidden_size)
        once = self._lm_head.time_s(seqs) + SAMPLER_S + (SAMPLER_SEQ_S + self.sample_s) * seqs
        return np.asarray(self.config.num_hidden_layers * layer + once)

    def _attention_s(self, steps: Steps) -> Floats:
        prefills = np.maximum(1, steps.num_prefills)
        history = (steps.prefill_context - steps.prefill_tokens) / prefills
        context = self._context.time_s(steps.prefill_tokens / prefills, history) * steps.num_prefills
        read = steps.decode_context * self._kv_token_bytes / (KV_READ_SHARE * self.bandwidth_bytes_per_s)
        return context + self._generation.time_s(steps.num_decodes, steps.mean_context, read + KV_READ_S)

    def limits(self, kv_tokens: int) -> StepLimits:
        """What was measured, for a design."""
        most_seqs = min(MAX_SEQS, int(self._generation.seqs[-1]))
        return StepLimits(
            decode_only_seqs=(1, most_seqs),
            mixed_seqs=(1, most_seqs),
            context=(1, int(self._context.lengths[-1])),
            chunk=(1, MAX_BATCHED_TOKENS),
            history=(0, MAX_HISTORY),
            max_num_batched_tokens=MAX_BATCHED_TOKENS,
            kv_tokens=kv_tokens,
        )

    @property
    def token_counts(self) -> list[int]:
        """The tokens at which the matrix products were measured."""
        return [int(count) for count in self._gemms[0].tokens]


def read_source(request: ImportRequest) -> TableSource:
    """Read DIR, one GPU, for a model; raises UserError for what is missing, malformed or not measured."""
    request.refuse(gpu="--gpu", all_reduce="--all-reduce")
    folder = request.directory()
    gpu, quantisation = GPUS.get(folder.name), request.quantisation or "bf16"
    if gpu is None:
        raise UserError(Problem("DIR", f"must end in one of {', '.join(GPUS)}", str(folder)))
    if request.model is None:
        raise UserError(Problem("--model", "the tables name no model", mend="name it, as meta-llama/Llama-3.1-8B"))
    if quantisation not in GEMM_DTYPES:
        raise UserError(Problem("--quantization", f"measured were {', '.join(GEMM_DTYPES)}", quantisation))
    if request.kv_cache_dtype not in ("auto", "fp8"):
        raise UserError(Problem("--kv-cache-dtype", "measured were auto and fp8", request.kv_cache_dtype))
    kv_cache_dtype: KVCacheType = "fp8" if request.kv_cache_dtype == "fp8" else KV_DTYPES[quantisation]
    config, degree = request.config(), request.tensor_parallel_size
    tables = KernelTables(
        folder,
        config,
        quantisation=quantisation,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel_size=degree,
        link=request.link,
        greedy=request.greedy,
    )
    return TableSource(
        model=request.model,
        gpu=gpu,
        quantisation=quantisation,
        kv_cache_dtype=kv_cache_dtype,
        vllm_version=tables.vllm_version,
        credit=CREDIT,
        licence="Apache-2.0",
        config=config,
        fit=lambda kv_tokens: fit_tables(tables, kv_tokens),
        notes=(MIXED_NOTE, *tables.notes),
        link=request.link,
    )


def read_bandwidth(path: Path) -> float:
    """Memory bandwidth in bytes/s from a GPU's datasheet; raises UserError when it is not there."""
    try:
        sheet: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}", mend="it stands beside the folder")) from None
    gpu = sheet.get("gpu") if isinstance(sheet, Mapping) else None
    value = gpu.get("mem_bw") if isinstance(gpu, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise UserError(Problem(f"{path} gpu.mem_bw", "must be a number of bytes/s above 0", value))
    return float(value)
