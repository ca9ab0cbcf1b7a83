"""NVIDIA's PyPI package `aiconfigurator-core` (Apache-2.0): kernels measured through vLLM, composed to steps offline.

It holds tables of GEMMs, attention, MLA, experts and all-reduces for nine GPUs, and an engine that adds them up
for a model's config. Of a step with T scheduled tokens, c prompts' chunks of q tokens after h, n decodes at a mean
context k, its parts are taken apart and added again:

    others(T) + c * attention of a chunk(q, h) + attention of decodes(n, k) + sampling(S)

since its own mixed step spreads a prompt's attention over all its chunks. It leaves sampling out. Where a link is
given, its all-reduces, which are some board's, are left out too, and computed. A model that the package has no kernel
of for vLLM is served by other engines' rows: those parts are named in a note. It would ask a hub for a name that it
does not know, with the user's token, so it is only ever given a folder.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.profiler.importers.source import (
    MIXED_NOTE,
    RANDOM_NOTE,
    ImportRequest,
    LinkAllReduce,
    StepLimits,
    TableSource,
    fit_tables,
)
from simbatch.profiler.model.config import SHORT_DTYPES, ModelConfig, model_config_of, read_json
from simbatch.profiler.model.published import published_config
from simbatch.profiler.model.step_parts import SAMPLER_S, SAMPLER_SEQ_S, random_seq_s
from simbatch.profiler.records import Floats, Steps
from simbatch.sim.cost.gpus import Gpu, find_gpu
from simbatch.sim.cost.sections import KVCacheType
from simbatch.sim.errors import Problem, UserError

PACKAGE, BACKEND = "aiconfigurator_core", "vllm"
INSTALL = 'pip install "simbatch[models]"'
CREDIT = "aiconfigurator-core (github.com/ai-dynamo/aiconfigurator): kernel latencies through vLLM, composed to steps"
SYSTEMS = {
    "a100": "a100_sxm", "b200": "b200_sxm", "b300": "b300_sxm", "gb200": "gb200", "gb300": "gb300", "h100": "h100_sxm",
    "h200": "h200_sxm", "l40s": "l40s", "rtxpro6000": "rtx_pro_6000_server",
}  # fmt: skip
# Those have tables of vLLM's; the package has datasheets of others, for which it would invent times.
GEMM_MODES = {"bf16": "bfloat16", "fp16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
MOE_MODES = {**GEMM_MODES, "mxfp4": "w4a16_mxfp4"}
TILES = (16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256, 512, 768, 1024, 1536, 2048, 3072, 4096)
# FP8 products take longer just above a tile's edge than at it: knots stand on both sides.
COUNTS = (1, 2, 4, 8, *(count for edge in TILES for count in (edge, edge + 1)), 8192)
CONTEXT = (1, 16384)
MAX_SEQS, MAX_BATCHED_TOKENS = 1024, 8192  # vLLM's defaults on these GPUs, at the most
MAX_HISTORY = 8192  # prompts of 16,384 were measured: a chunk of 8,192 after as many
MODELLED = ("estimated", "sol")  # sources of parts that no table has; "empirical" ones only move bytes
TABLES = {
    "gemm": ("gemm",),
    "attention": ("context_attention", "generation_attention"),
    "mla": ("mla_context_module", "mla_generation_module"),
    "moe": ("moe",),
    "comm": ("custom_allreduce",),
}
EXCHANGES = re.compile(r"_ar(_\d)?$|_dispatch$")  # parts of a step in which GPUs add up, or send tokens to, each other
MS = 1e-3


class CoreTables:
    """The package's engine for one model on one GPU, as one of `tensor_parallel_size`."""

    def __init__(
        self, engine: Any, config: ModelConfig, gpu: Gpu, *, greedy: bool = False, link: LinkAllReduce | None = None
    ) -> None:
        self._engine, self._config, self._link = engine, config, link
        self.sample_s = 0.0 if greedy else random_seq_s(config.vocab_size, gpu.bandwidth_bytes_per_s)
        self._others = lru_cache(maxsize=None)(self._others_ms)

    @property
    def token_counts(self) -> list[int]:
        """The knots of a fit: the package's tables have more, on grids of their own."""
        return list(COUNTS)

    @property
    def window(self) -> int | None:
        """Tokens that layers with a window look back at."""
        return self._config.window

    def step_time_s(self, steps: Steps) -> Floats:
        """What each step lasts, s; prefills of one step are taken to be alike."""
        times = np.array([self._step_ms(steps, i) for i in range(len(steps.num_decodes))])
        return np.asarray(times * MS + SAMPLER_S + (SAMPLER_SEQ_S + self.sample_s) * steps.num_seqs)

    def limits(self, kv_tokens: int) -> StepLimits:
        """What the tables of its kernels reach to, as far as vLLM's defaults go."""
        seqs = (1, MAX_SEQS)
        return StepLimits(seqs, seqs, CONTEXT, (1, MAX_BATCHED_TOKENS), (0, MAX_HISTORY), MAX_BATCHED_TOKENS, kv_tokens)

    def modelled(self) -> list[str]:
        """Parts of a step that no table has."""
        parts = self._engine.decode_step_per_op(16, 1024, 2)
        parts = [*parts, *(one for kind in self._engine.mixed_step_breakdown_per_op(512, 16, 512, 2) for one in kind)]
        return sorted({name.partition("_")[2] for name, ms, _, source in parts if ms and source in MODELLED})

    def _step_ms(self, steps: Steps, i: int) -> float:
        decodes, context = int(steps.num_decodes[i]), max(1, int(steps.mean_context[i]))
        tokens, prefills = int(steps.prefill_tokens[i]), int(steps.num_prefills[i])
        if not tokens and self._link is None:
            return float(self._engine.decode_step_latency(decodes, context, 2))
        if not tokens:
            return self._over_link_ms(self._engine.decode_step_per_op(decodes, context, 2), decodes)
        chunk = max(1, tokens // prefills)
        history = (int(steps.prefill_context[i]) - tokens) // prefills
        total = self._others(tokens, decodes) + prefills * self._chunk_ms(chunk, history)
        if decodes:
            total += float(self._engine.mixed_step_breakdown(tokens, decodes, context, 2)[3])
        return total

    def _others_ms(self, tokens: int, decodes: int) -> float:
        if self._link is not None:
            parts, *_ = self._engine.mixed_step_breakdown_per_op(tokens, decodes, tokens, 2)
            return self._over_link_ms(parts, tokens + decodes)
        return float(self._engine.mixed_step_breakdown(tokens, decodes, tokens, 2)[1])

    def _over_link_ms(self, parts: Iterable[tuple[str, float, float, str]], tokens: int) -> float:
        """All parts but the tables' all-reduces; in their place two a layer, and that of the embeddings."""
        calls = 2 * self._config.num_hidden_layers + 1
        link_s = 0.0 if self._link is None else calls * float(self._link.time_s(tokens, self._config.hidden_size))
        return sum(ms for name, ms, *_ in parts if not EXCHANGES.search(name)) + link_s / MS

    def _chunk_ms(self, chunk: int, history: int) -> float:
        """The engine divides a prompt's attention by its number of chunks: that is undone."""
        length = chunk + history
        spread = float(self._engine.mixed_step_breakdown(chunk, 0, length, 2, history)[2])
        return spread * -(-length // chunk)


def read_source(request: ImportRequest) -> TableSource:
    """The tables of the package for a model and a GPU; raises UserError for what it does not have."""
    request.refuse(folder="DIR")
    if request.model is None or request.gpu is None:
        raise UserError(Problem("--model", "this source needs --model and --gpu", request.model))
    gpu = find_gpu(request.gpu)
    if gpu.short not in SYSTEMS:
        rule = f"has no tables of vLLM's for it; it has those of {', '.join(SYSTEMS)}"
        mend = "estimate it: `simbatch estimate CONFIG --gpu G`"
        raise UserError(Problem("--gpu", f"{PACKAGE.replace('_', '-')} {rule}", gpu.short, mend))
    if request.kv_cache_dtype not in ("auto", "fp8"):
        raise UserError(Problem("--kv-cache-dtype", "measured were auto and fp8", request.kv_cache_dtype))
    content, quantisers = config_of(request.model, request.model_config)
    stored_as = {} if quantisers is None else {"quantization_config": quantisers.get("quantization")}
    config = model_config_of({**content, **stored_as}, request.model)
    stored = request.quantisation or config.quantisation or SHORT_DTYPES[config.dtype]
    if stored not in MOE_MODES:
        raise UserError(Problem("--quantization", f"measured were {', '.join(MOE_MODES)}", stored))
    engine = _compiled(content, quantisers, gpu, request, config)
    link = None if request.link is None else LinkAllReduce(request.link, request.tensor_parallel_size)
    tables = CoreTables(engine, config, gpu, greedy=request.greedy, link=link)
    kv: KVCacheType = "fp8" if request.kv_cache_dtype == "fp8" else "bfloat16"
    return TableSource(
        model=request.model,
        gpu=gpu.short,
        quantisation=stored,
        kv_cache_dtype=kv,
        vllm_version=vllm_version(SYSTEMS[gpu.short]),
        credit=CREDIT,
        licence="Apache-2.0",
        config=config,
        fit=lambda kv_tokens: fit_tables(tables, kv_tokens),
        notes=_notes(tables, config, SYSTEMS[gpu.short], 1 if request.link else request.tensor_parallel_size),
        link=request.link,
    )


def config_of(model: str, path: Path | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The `config.json` of a model and its `hf_quant_config.json`, by a file, a folder, or a name that is known.

    Raises UserError for a name that neither has: nothing is asked of a hub.
    """
    file = path or (Path(model) / "config.json" if Path(model).is_dir() else None)
    if file is not None:
        beside = (file if file.is_dir() else file.parent) / "hf_quant_config.json"
        file = file / "config.json" if file.is_dir() else file
        return read_json(file), read_json(beside) if beside.is_file() else None
    folder = package_folder() / "model_configs"
    found = folder / f"{model.replace('/', '--')}_config.json"
    if not found.is_file() and (content := published_config(model)) is not None:
        return content, None
    if not found.is_file():
        names = sorted(one.name.removesuffix("_config.json").replace("--", "/") for one in folder.glob("*_config.json"))
        names = [name for name in names if not name.endswith("_hf_quant")]
        near = [name for name in names if model.rsplit("/", 1)[-1].lower()[:8] in name.lower()][:5]
        guess = f"near it: {', '.join(near)}; or " if near else ""
        mend = f"{guess}give its config.json: --model-config FILE (nothing is downloaded)"
        raise UserError(Problem("--model", "the package has no config of it", model, mend))
    beside = folder / found.name.replace("_config.json", "_hf_quant_config.json")
    return read_json(found), read_json(beside) if beside.is_file() else None


def package_folder() -> Path:
    """Where the package lies; raises UserError when it is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(Problem("--from aiconfigurator-core", "the package is not installed", mend=INSTALL))
    return Path(spec.submodule_search_locations[0])


def vllm_version(system: str) -> str:
    """The vLLM that the package's current tables of a system were measured with."""
    from aiconfigurator_core.sdk.perf_database import get_version_slots

    return str((get_version_slots(system, BACKEND) or {})["current"])


def _compiled(
    content: Mapping[str, Any],
    quantisers: Mapping[str, Any] | None,
    gpu: Gpu,
    request: ImportRequest,
    config: ModelConfig,
) -> Any:
    """The package's engine; a UserError says in its words why there is none."""
    package_folder()
    from aiconfigurator_core.sdk.engine import EngineHandle

    modes: dict[str, Any] = {}
    if request.quantisation is not None:
        modes |= {"gemm_quant_mode": GEMM_MODES.get(request.quantisation, "bfloat16")}
        modes |= {"moe_quant_mode": MOE_MODES[request.quantisation]} if config.num_experts > 1 else {}
    if request.kv_cache_dtype == "fp8":
        modes |= {"kvcache_quant_mode": "fp8"}
    degree = request.tensor_parallel_size
    experts = {"moe_tp_size": degree, "moe_ep_size": 1} if config.num_experts > 1 else {}
    with tempfile.TemporaryDirectory() as folder, _offline():
        (Path(folder) / "config.json").write_text(json.dumps(content), encoding="utf-8")
        if quantisers is not None:
            (Path(folder) / "hf_quant_config.json").write_text(json.dumps(quantisers), encoding="utf-8")
        try:
            handle = EngineHandle.compile(folder, SYSTEMS[gpu.short], BACKEND, tp_size=degree, **experts, **modes)
            handle.decode_step_latency(1, 1, 2)  # what was not measured shows when it is first asked for
            handle.mixed_step_breakdown(16, 1, 16, 2)
        except Exception as error:  # the package raises errors of many kinds
            rule = f"aiconfigurator-core has no times of it on {degree} x {gpu.short}: {_first_line(error)}"
            mend = "another number of GPUs or quantisation, or `simbatch estimate CONFIG --gpu G`"
            raise UserError(Problem("--model", rule, request.model, mend)) from None
    return handle


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _offline() -> Iterator[None]:
    """No hub and no warnings of the package's: what it falls back to is said in the profile."""
    before, logger = os.environ.get("HF_HUB_OFFLINE"), logging.getLogger()
    level = logger.level
    os.environ["HF_HUB_OFFLINE"] = "1"
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def other_engines(system: str, config: ModelConfig, num_gpus: int) -> list[str]:
    """Tables that the model needs and that have no rows of vLLM's for a system: those of other engines serve."""
    needed = ["gemm", "mla" if config.has_latent_attention else "attention"]
    needed += ["moe"] if config.num_experts > 1 else []
    needed += ["comm"] if num_gpus > 1 else []
    data = package_folder() / "systems" / "data" / system
    files = [(kind, table) for kind in needed for table in TABLES[kind]]
    return [table for kind, table in files if not any((data / kind / BACKEND).glob(f"*/{table}_perf.parquet"))]


def _notes(tables: CoreTables, config: ModelConfig, system: str, num_gpus: int) -> tuple[str, ...]:
    said = [MIXED_NOTE]
    if tables.sample_s:
        said.append(RANDOM_NOTE.format(microseconds=1e6 * tables.sample_s, vocabulary=config.vocab_size))
    if config.num_experts > 1:
        said.append("experts: tokens are spread over them unevenly, by the power law that the package's tables have")
    if kinds := other_engines(system, config, num_gpus):
        said.append(
            f"not measured through vLLM on this GPU: {', '.join(kinds)}; rows of other engines (TensorRT-LLM, SGLang)"
        )
    if parts := tables.modelled():
        said.append(f"in no table: {', '.join(parts)}; modelled by the package")
    return tuple(said)
