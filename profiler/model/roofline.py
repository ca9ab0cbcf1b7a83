"""Step times from shapes and datasheet alone: what nobody measured, as an estimate.

A kernel takes a latency, and then as long as its multiplications or its bytes, whichever is longer, at a stated share
of the peak rate:

    step = layers * (matrices(T) + elementwise(T) + attention + launch + 2 * all-reduce(T)) + head(S) + sampler(S)

with T scheduled tokens and S sequences. Latencies and shares are rounded medians of aiconfigurator's kernel tables
(A100, H100, H200, L40S, RTX PRO 6000; Apache-2.0), so steps made of those tables are no independent test of them; the
RTX 4090's are. Elementwise kernels at 0.8 of the bandwidth, launches of 8 us a layer
and a sampler of 30 + 0.6 S us are the recipe that came within -9 % to +1 % of real H100 runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.model.config import SHORT_DTYPES, ModelConfig
from simbatch.profiler.model.memory_plan import kv_bytes_per_token
from simbatch.profiler.model.mixers import Matrix
from simbatch.profiler.model.quantisation import checked_quantisation, compute_dtype
from simbatch.profiler.model.weights import layer_matrices, local_vocab
from simbatch.profiler.records.steps import Floats, Steps
from simbatch.sim.cost.gpus import Gpu
from simbatch.sim.cost.step_time import TwoRegimeStepTime

MATRIX_BYTES_SHARE = 0.8  # measured: 0.75 (A100) to 0.88 (H100)
MATRIX_FLOPS_SHARE = {"bf16": 0.78, "fp8": 0.45, "int8": 0.45}  # bf16 0.62 to 0.81, fp8 0.41 to 0.67; int8: as fp8
MATRIX_S = {"bf16": 4e-6, "fp8": 6e-6, "int8": 6e-6}  # a small product; activations are quantised first
ATTENTION_FLOPS_SHARE, ATTENTION_BYTES_SHARE, ATTENTION_S = 0.55, 0.85, 10e-6
ELEMENTWISE_SHARE = 0.8
LAUNCH_S, SAMPLER_S, SAMPLER_SEQ_S = 8e-6, 30e-6, 0.6e-6
ALL_REDUCE_S, LINK_SHARE = 5e-6, 0.55
# A PCIe link without peer-to-peer, with which a real server of two RTX PRO 6000 is met (docs/profiles.md)
PCIE_S, PCIE_BYTES_PER_S = 40e-6, 16e9
MIXED_CONTEXT = 2.5  # a decode's context beside a prefill costs 1.8 to 3.8 times as much as alone
COUNTS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384)
DECODE_COUNTS = tuple(count for count in COUNTS if count <= 2048)


class Work(NamedTuple):
    """What steps have to do on one GPU, one entry per step."""

    flops: Floats
    bytes: Floats


@dataclass(frozen=True)
class Roofline:
    """A model on a GPU, as one of `tensor_parallel_size`."""

    config: ModelConfig
    gpu: Gpu
    quantisation: str
    kv_cache_dtype: str = "auto"
    tensor_parallel_size: int = 1

    @property
    def matrices(self) -> list[Matrix]:
        """The linear layers of one decoder layer."""
        return layer_matrices(self.config, self.tensor_parallel_size)

    @property
    def head(self) -> Matrix:
        """The last linear layer, which is never quantised."""
        return Matrix("lm_head", self.config.hidden_size, local_vocab(self.config, self.tensor_parallel_size))

    def matrices_s(self, tokens: int, quantisation: str | None = None) -> float:
        """All linear layers of the model for so many tokens, s."""
        stored = quantisation or self.quantisation
        times = [self._product_s(matrix, tokens, stored) for matrix in self.matrices]
        return self.config.num_hidden_layers * sum(times)

    def _product_s(self, matrix: Matrix, tokens: int, stored: str) -> float:
        """One linear layer; of its experts, each token meets a few, and few tokens do not meet all."""
        kind, chosen = compute_dtype(stored), min(matrix.count, self.config.num_experts_per_tok)
        met, share = min(1.0, tokens * chosen / matrix.count), chosen / matrix.count
        flops_s = tokens * share * matrix.flops_per_token / self._matrix_flops_per_s(kind)
        bytes_s = met * matrix.bytes(stored) / (self.gpu.bandwidth_bytes_per_s * MATRIX_BYTES_SHARE)
        return MATRIX_S[kind] + max(flops_s, bytes_s)

    def _matrix_flops_per_s(self, kind: str) -> float:
        """What is reached of the peak; a GPU without that type multiplies in bf16."""
        kind = kind if kind in self.gpu.flops_per_s else "bf16"
        return self.gpu.flops_per_s[kind] * MATRIX_FLOPS_SHARE[kind]

    def rest_s(self, tokens: int) -> float:
        """Elementwise kernels, launches (of attention too) and all-reduces of all layers, s."""
        config, element = self.config, self.config.element_bytes
        inner = config.intermediate_size // self.tensor_parallel_size * config.num_experts_per_tok
        moved = tokens * (10 * config.hidden_size + 3 * inner) * element
        elementwise = moved / (self.gpu.bandwidth_bytes_per_s * ELEMENTWISE_SHARE)
        return config.num_hidden_layers * (elementwise + LAUNCH_S + ATTENTION_S + 2 * self._all_reduce_s(tokens))

    def sequences_s(self, num_seqs: int) -> float:
        """Head and sampler, s."""
        head_s = self._product_s(self.head, num_seqs, SHORT_DTYPES[self.config.dtype])
        return head_s + SAMPLER_S + SAMPLER_SEQ_S * num_seqs

    @property
    def context_token_s(self) -> float:
        """Reading one token's keys and values in all layers, s."""
        moved = kv_bytes_per_token(self.config, self.kv_cache_dtype, self.tensor_parallel_size)
        return moved / (self.gpu.bandwidth_bytes_per_s * ATTENTION_BYTES_SHARE)

    @property
    def attention_unit_s(self) -> float:
        """One unit of q * (2h + q) of a prefill of q tokens after h, s."""
        return self.attention_flops_per_unit / (self.gpu.flops_per_s["bf16"] * ATTENTION_FLOPS_SHARE)

    @property
    def attention_flops_per_unit(self) -> float:
        """Scores and their product with the values, over half of q * (2h + q) pairs, in all layers."""
        heads = self.config.num_attention_heads // self.tensor_parallel_size
        return 2.0 * heads * self.config.head_dim * self.config.num_hidden_layers

    def step_time(self) -> TwoRegimeStepTime:
        """The same as a profile's step times."""
        decode = [self.matrices_s(n) + self.rest_s(n) + self.sequences_s(n) for n in DECODE_COUNTS]
        tokens = [self.matrices_s(n) + self.rest_s(n) + self.sequences_s(1) for n in COUNTS]
        head_s = (self.sequences_s(256) - self.sequences_s(1)) / 255
        mixed = {
            "tokens": knots(COUNTS, tokens),
            "per_decode_seq_s": _short(head_s),
            "per_context_token_s": _short(MIXED_CONTEXT * self.context_token_s),
            "per_prefill_context_token_s": _short(self.context_token_s),
            "per_attention_unit_s": _short(self.attention_unit_s),
        }
        alone = {"seqs": knots(DECODE_COUNTS, decode), "per_context_token_s": _short(self.context_token_s)}
        return TwoRegimeStepTime.model_validate({"form": "two_regime", "decode": alone, "mixed": mixed})

    def work(self, steps: Steps) -> Work:
        """FLOPs and bytes of measured steps: weights once a step, keys and values of every context."""
        config, layers = self.config, self.config.num_hidden_layers
        seqs = steps.num_decodes + steps.num_prefills
        head = self.head
        active = [m.flops_per_token * min(1.0, config.num_experts_per_tok / m.count) for m in self.matrices]
        per_token = layers * sum(active)
        pairs = steps.prefill_attention + 2 * steps.decode_context
        flops = steps.num_tokens * per_token + seqs * head.flops_per_token + pairs * self.attention_flops_per_unit
        weights = layers * sum(matrix.bytes(self.quantisation) for matrix in self.matrices)
        weights += head.bytes(SHORT_DTYPES[config.dtype])
        token_bytes = kv_bytes_per_token(config, self.kv_cache_dtype, self.tensor_parallel_size)
        moved = weights + token_bytes * (steps.decode_context + steps.prefill_context + steps.num_tokens)
        return Work(np.asarray(flops, dtype=np.float64), np.asarray(moved, dtype=np.float64))

    def utilisation(self, steps: Steps, duration_s: Floats) -> Floats:
        """The share of the roofline: the shortest time that the datasheet allows over the measured one."""
        work = self.work(steps)
        peak = self.gpu.peak_flops_per_s(compute_dtype(self.quantisation))
        shortest = np.maximum(work.flops / peak, work.bytes / self.gpu.bandwidth_bytes_per_s)
        return np.asarray(shortest / duration_s)

    def _all_reduce_s(self, tokens: int) -> float:
        size = self.tensor_parallel_size
        if size == 1:
            return 0.0
        moved = 2 * (size - 1) / size * tokens * self.config.hidden_size * self.config.element_bytes
        if not self.gpu.has_fast_link:
            return PCIE_S + moved / PCIE_BYTES_PER_S
        return ALL_REDUCE_S + moved / (self.gpu.link_bytes_per_s * LINK_SHARE)


def roofline_of(
    config: ModelConfig,
    gpu: Gpu,
    quantisation: str | None = None,
    kv_cache_dtype: str = "auto",
    tensor_parallel_size: int = 1,
) -> Roofline:
    """The roofline; weights are stored as the checkpoint says unless `quantisation` is given."""
    stored = checked_quantisation(quantisation or config.quantisation or SHORT_DTYPES[config.dtype])
    return Roofline(config, gpu, stored, kv_cache_dtype, tensor_parallel_size)


def knots(counts: Sequence[int], times_s: Sequence[float]) -> dict[str, list[Any]]:
    """A profile's knots; a value below an earlier one is raised to it."""
    rising = np.maximum.accumulate(np.asarray(times_s, dtype=np.float64))
    return {"count": list(counts), "time_s": [round(float(value), 9) for value in rising]}


def _short(value: float) -> float:
    return float(f"{value:.5g}")
