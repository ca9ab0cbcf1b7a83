"""LLMServingSim's op latencies, measured through vLLM, composed to steps.

A folder holds `meta.yaml` and, per tensor-parallel degree, `tp<N>/dense.csv` (layer, tokens), `per_sequence.csv`
(layer, sequences), `attention.csv` (prefill_chunk, kv_prefill, n_decode, kv_decode) and `skew_fit.csv`; times in us.
With T scheduled tokens, S sequences and L layers, a step takes

    embedding(T) + final_layernorm(T) + lm_head(S) + sampler(S)
    + L * (2 layernorm(T) + qkv_proj(T) [+ qk_norm(T)] + rotary_emb(T) + o_proj(T) + gate_up_proj(T) + act_fn(T)
           + down_proj(T) + attention)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from simbatch.profiler.fitting.steps import Steps
from simbatch.profiler.importers.attention import AttentionTable
from simbatch.profiler.importers.tables import Floats, read_columns
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
US = 1e-6


class OpTables:
    """The tables of one model on one GPU, and the step times that they compose to."""

    def __init__(self, folder: Path, num_layers: int, *, qk_norm: bool) -> None:
        self.folder = folder
        self.num_layers = num_layers
        self.meta = read_meta(folder / "meta.yaml")
        dense, per_sequence = folder / "tp1" / "dense.csv", folder / "tp1" / "per_sequence.csv"
        by_layer = _curves(dense, "tokens", LAYER_OPS | (QK_NORM_OPS if qk_norm else {}))
        by_step = _curves(dense, "tokens", STEP_OPS)
        self._by_tokens = (by_layer[0], num_layers * by_layer[1] + np.interp(by_layer[0], *by_step))
        self._by_sequences = _curves(per_sequence, "sequences", SEQUENCE_OPS)
        self.attention = AttentionTable(folder / "tp1", self.meta)

    def step_time_s(self, steps: Steps) -> Floats:
        """What each step lasts, s."""
        per_step = np.interp(steps.num_tokens, *self._by_tokens)
        per_step += np.interp(steps.num_prefills + steps.num_decodes, *self._by_sequences)
        return np.asarray((per_step + self.num_layers * self.attention.time_us(steps)) * US)

    @property
    def token_counts(self) -> list[int]:
        """The scheduled tokens that were measured."""
        return [int(count) for count in self._by_tokens[0]]


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


def _curves(path: Path, count: str, ops: Mapping[str, int]) -> tuple[Floats, Floats]:
    """The weighted sum of ops (us) over all the counts at which any was measured."""
    (layers,), (counts, times) = read_columns(path, ["layer"], [count, "time_us"])
    names = np.array(layers)
    missing = [op for op in ops if op not in layers]
    if missing:
        raise UserError(Problem(str(path), f"ops missing: {', '.join(missing)}", sorted(set(layers))))
    at = np.unique(counts[np.isin(names, list(ops))])
    total = np.zeros(len(at))
    for op, weight in ops.items():
        rows = np.flatnonzero(names == op)
        rows = rows[np.argsort(counts[rows])]
        total += weight * np.interp(at, counts[rows], times[rows])
    return at, total
