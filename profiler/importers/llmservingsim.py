"""LLMServingSim's op latencies, measured through vLLM, composed to steps.

A folder holds `meta.yaml` and, per tensor-parallel degree, `tp<N>/dense.csv` (layer, tokens), `per_sequence.csv`
(layer, sequences), `attention.csv` (prefill_chunk, kv_prefill, n_decode, kv_decode) and `skew_fit.csv`; times in us.
With T scheduled tokens, S sequences and L layers, a step takes

    embedding(T) + final_layernorm(T) + lm_head(S) + sampler(S)
    + L * (2 layernorm(T) + qkv_proj(T) [+ qk_norm(T)] + rotary_emb(T) + o_proj(T) + gate_up_proj(T) + act_fn(T)
           + down_proj(T) + attention [+ 2 all-reduces of T * hidden])

Norms and the sampler do not change with the degree and are read from tp1; the all-reduce is not in the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simbatch.profiler.importers.llmservingsim_tables import AttentionTable, Floats, read_columns
from simbatch.profiler.importers.source import (
    KV_DTYPES,
    ImportRequest,
    LinkAllReduce,
    StepLimits,
    TableSource,
    fit_tables,
)
from simbatch.profiler.model.config import ModelConfig
from simbatch.profiler.records import Steps
from simbatch.sim.cost.gpus import GPUS, known_gpu
from simbatch.sim.errors import Problem, UserError

LAYER_OPS = {
    "layernorm": 2,
    "qkv_proj": 1,
    "rotary_emb": 1,
    "o_proj": 1,
    "gate_up_proj": 1,
    "act_fn": 1,
    "down_proj": 1,
}
QK_NORM_OPS = {"qk_norm": 1}  # Qwen3 normalises queries and keys
STEP_OPS = {"embedding": 1, "final_layernorm": 1}
SEQUENCE_OPS = {"lm_head": 1, "sampler": 1}
SAME_AT_EVERY_DEGREE = ("layernorm", "final_layernorm", "qk_norm", "sampler")
MEASURED_VARIANTS = ("bf16", "fp16")
MAX_BATCHED_TOKENS = 2048
US = 1e-6
CREDIT = "LLMServingSim (github.com/casys-kaist/LLMServingSim): op latencies measured through vLLM, composed to steps"


class OpTables:
    """The tables of one model on one GPU, and the step times that they compose to."""

    def __init__(
        self, folder: Path, config: ModelConfig, tensor_parallel_size: int, all_reduce: LinkAllReduce | None
    ) -> None:
        self.folder = folder
        self.config = config
        self.meta = read_meta(folder / "meta.yaml")
        self._all_reduce = all_reduce
        self._tables = folder / f"tp{tensor_parallel_size}"
        if not self._tables.is_dir():
            rule = f"{folder} has no folder tp{tensor_parallel_size}"
            raise UserError(Problem("--tensor-parallel-size", rule, tensor_parallel_size))
        by_layer = self._curves("dense.csv", "tokens", LAYER_OPS | (QK_NORM_OPS if config.qk_norm else {}))
        by_step = self._curves("dense.csv", "tokens", STEP_OPS)
        layers = config.num_hidden_layers
        self._by_tokens = (by_layer[0], layers * by_layer[1] + np.interp(by_layer[0], *by_step))
        self._by_sequences = self._curves("per_sequence.csv", "sequences", SEQUENCE_OPS)
        self.attention = AttentionTable(self._tables, self.meta, tensor_parallel_size)

    def step_time_s(self, steps: Steps) -> Floats:
        """What each step lasts, s."""
        per_step = np.interp(steps.num_tokens, *self._by_tokens)
        per_step += np.interp(steps.num_seqs, *self._by_sequences)
        total_s = (per_step + self.config.num_hidden_layers * self.attention.time_us(steps)) * US
        if self._all_reduce is not None:
            calls = 2 * self.config.num_hidden_layers
            total_s += calls * self._all_reduce.time_s(steps.num_tokens, self.config.hidden_size)
        return np.asarray(total_s)

    def limits(self, kv_tokens: int) -> StepLimits:
        """The measured grid, for a design."""
        return self.attention.limits(min(MAX_BATCHED_TOKENS, self.token_counts[-1]), kv_tokens)

    @property
    def token_counts(self) -> list[int]:
        """The scheduled tokens that were measured."""
        return [int(count) for count in self._by_tokens[0]]

    @property
    def window(self) -> int | None:
        """None: only models that look at all of a context were measured."""
        return None

    def _curves(self, file: str, count: str, ops: Mapping[str, int]) -> tuple[Floats, Floats]:
        """The weighted sum of ops (us) over all the counts at which any was measured."""
        curves = {op: self._curve(file, count, op) for op in ops}
        at = np.unique(np.concatenate([counts for counts, _ in curves.values()]))
        total = np.zeros(len(at))
        for op, weight in ops.items():
            total += weight * np.interp(at, *curves[op])
        return at, total

    def _curve(self, file: str, count: str, op: str) -> tuple[Floats, Floats]:
        path = (self.folder / "tp1" if op in SAME_AT_EVERY_DEGREE else self._tables) / file
        (layers,), (counts, times) = read_columns(path, ["layer"], [count, "time_us"])
        rows = np.flatnonzero(np.array(layers) == op)
        if not len(rows):
            raise UserError(Problem(str(path), f"ops missing: {op}", sorted(set(layers))))
        rows = rows[np.argsort(counts[rows])]
        return counts[rows], times[rows]


def read_source(request: ImportRequest) -> TableSource:
    """Read DIR, one model on one GPU; raises UserError for what is missing, malformed or not measured."""
    request.refuse(gpu="--gpu", model="--model", quantisation="--quantization", greedy="--greedy")
    folder = request.directory()
    if request.kv_cache_dtype != "auto":
        raise UserError(Problem("--kv-cache-dtype", "was not measured here", request.kv_cache_dtype, "leave it out"))
    degree = request.tensor_parallel_size
    if degree > 1 and request.link is None:
        rule, mend = "the all-reduce between GPUs is not in LLMServingSim's tables", "give it and --link-gb-per-s"
        raise UserError(Problem("--link-us", rule, mend=mend))
    config = request.config()
    meta = read_meta(folder / "meta.yaml")
    gpu, variant = known_gpu(str(meta["gpu"])), meta["variant"]
    if gpu is None or variant not in MEASURED_VARIANTS:
        rule = f"gpu must be one of {', '.join(GPUS)}, and variant one of {', '.join(MEASURED_VARIANTS)}"
        raise UserError(Problem(str(folder / "meta.yaml"), rule, (meta["gpu"], variant)))
    all_reduce = None if request.link is None else LinkAllReduce(request.link, degree)
    tables = OpTables(folder, config, degree, all_reduce)
    return TableSource(
        model=meta["model"],
        gpu=gpu.short,
        quantisation=variant,
        kv_cache_dtype=KV_DTYPES[variant],
        vllm_version=str(meta["vllm_version"]),
        credit=CREDIT,
        licence="MIT",
        config=config,
        fit=lambda kv_tokens: fit_tables(tables, kv_tokens),
        notes=_notes(tables),
        link=request.link,
    )


def _notes(tables: OpTables) -> tuple[str, ...]:
    if tables.attention.alpha_default_is_stated:
        return ()
    lacking = f"uneven decode contexts: buckets that skew_fit.csv lacks take {tables.attention.alpha_default:g}"
    return (f"{lacking}, its median weighted by samples, since meta.yaml states no default",)


def read_meta(path: Path) -> Mapping[str, Any]:
    """Read `meta.yaml`; raises UserError when it is none."""
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(Problem(str(path), f"cannot be read: {error}")) from None
    wanted = ("gpu", "model", "variant", "vllm_version")
    missing = [key for key in wanted if not isinstance(meta, dict) or key not in meta]
    if missing:
        raise UserError(
            Problem(str(path), f"keys missing: {', '.join(missing)}", mend="give LLMServingSim's meta.yaml")
        )
    return dict(meta)
