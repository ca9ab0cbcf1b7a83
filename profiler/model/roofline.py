"""Step times from shapes and datasheet alone: what nobody measured, as an estimate.

A kernel takes a latency, and then as long as its multiplications or its bytes, whichever is longer, at a stated share
of the peak rate; layers of each kind are counted:

    step = layers * (matrices(T) + elementwise(T) + attention + launches + 2 * all-reduce(T)) + head(S) + sampler(S)

with T scheduled tokens and S sequences. Tokens meet some of the experts (`routing`): 128 experts with 8 a token are 52
for 8 tokens, and 126 for 64, when all are as likely. Attention reads keys and values of the context (`attention_cost`).

Latencies and shares are rounded medians of aiconfigurator's kernel tables (A100, H100, H200, L40S, RTX PRO 6000;
Apache-2.0), so steps made of those tables are no independent test of them; the RTX 4090's and a real server's are
(docs/profiles.md). Elementwise kernels at 0.8 of the bandwidth, launches of 8 us a layer and a sampler of 30 + 0.6 S us
are the recipe that came within -9 % to +1 % of real H100 runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.model.config import SHORT_DTYPES, ModelConfig
from simbatch.profiler.model.layers import Experts, Layer
from simbatch.profiler.model.mixers import LatentAttention, Matrix
from simbatch.profiler.model.quantisation import checked_quantisation, compute_dtype, is_weight_only_4_bits
from simbatch.profiler.model.step_parts import EVEN, SAMPLER_S, SAMPLER_SEQ_S, AttentionCost, Routing, random_seq_s
from simbatch.profiler.model.weights import layer_matrices, local_vocab
from simbatch.profiler.records import Floats, Steps
from simbatch.sim.cost.gpus import Gpu
from simbatch.sim.cost.step_time import TwoRegimeStepTime

MATRIX_BYTES_SHARE = 0.8  # measured: 0.75 (A100) to 0.88 (H100)
MATRIX_FLOPS_SHARE = {"bf16": 0.78, "fp8": 0.45, "int8": 0.45, "fp4": 0.4}  # bf16 0.62 to 0.81, fp8 0.41 to 0.67
# Products with weights of 4 bits read a tile, turn it to 16 and multiply, one after the other: their sum is within 15 %
# of the tables from 1 to 8,192 tokens (TensorRT-LLM's int4 on an A100: none of vLLM's has int4).
INT4_BYTES_SHARE = 0.58
EXPERT_FLOPS_SHARE = {"bf16": 0.45, "fp8": 0.3, "int8": 0.3, "fp4": 0.25}  # of grouped products
MATRIX_S = {"bf16": 4e-6, "fp8": 6e-6, "int8": 6e-6, "fp4": 8e-6}  # a small product; activations are quantised first
ATTENTION_S = 10e-6
ELEMENTWISE_SHARE = 0.8
LAUNCH_S = 8e-6
ROUTING_S = 20e-6  # choice of the experts, and tokens put in their order
LATENT_S = 80e-6  # MLA: a dozen small kernels a layer
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
    routing: Routing = EVEN
    greedy: bool = False

    @cached_property
    def attention(self) -> AttentionCost:
        """What contexts cost."""
        return AttentionCost(self.config, self.gpu, self.kv_cache_dtype, self.tensor_parallel_size)

    @cached_property
    def kinds(self) -> tuple[tuple[Layer, int, list[Matrix]], ...]:
        """Each kind of layer, how many there are, and its linear layers on one GPU."""
        first = {layer: index for index, layer in reversed(list(enumerate(self.config.layers)))}
        own = self.quantisation == self.config.quantisation
        return tuple(
            (layer, count, self._matrices(layer, first[layer] if own else None))
            for layer, count in self.config.distinct_layers
        )

    def _matrices(self, layer: Layer, index: int | None) -> list[Matrix]:
        """As the checkpoint stores them where the model is stored as it is published."""
        if index is not None:
            return layer_matrices(self.config, self.tensor_parallel_size, index)
        return layer.matrices(self.config.hidden_size, self.tensor_parallel_size)

    @property
    def head(self) -> Matrix:
        """The last linear layer, which is never quantised."""
        return Matrix("lm_head", self.config.hidden_size, local_vocab(self.config, self.tensor_parallel_size))

    def matrices_s(self, tokens: int, quantisation: str | None = None) -> float:
        """All linear layers of the model for so many tokens, s."""
        stored = quantisation or self.quantisation
        total = 0.0
        for layer, count, matrices in self.kinds:
            per_token = _per_token(layer)
            total += count * sum(self._product_s(matrix, tokens, stored, per_token) for matrix in matrices)
        return total

    def _product_s(self, matrix: Matrix, tokens: int, stored: str, per_token: int = 1) -> float:
        """One linear layer; of its experts, each token meets a few, and few tokens do not meet all."""
        kind = compute_dtype(matrix.keeps or stored)
        share = min(matrix.count, per_token) / matrix.count
        met = self.routing.met_share(matrix.count, per_token, tokens)
        if matrix.count == 1 and is_weight_only_4_bits(matrix.keeps or stored):
            read_s = matrix.bytes(stored) / (self.gpu.bandwidth_bytes_per_s * INT4_BYTES_SHARE)
            return MATRIX_S[kind] + read_s + tokens * matrix.flops_per_token / self._matrix_flops_per_s(kind)
        flops_s = tokens * share * matrix.flops_per_token / self._matrix_flops_per_s(kind, matrix.count > 1)
        bytes_s = met * matrix.bytes(stored) / (self.gpu.bandwidth_bytes_per_s * MATRIX_BYTES_SHARE)
        return float(MATRIX_S[kind] + max(flops_s, bytes_s))

    def _matrix_flops_per_s(self, kind: str, of_experts: bool = False) -> float:
        """What is reached of the peak; a GPU without that type multiplies in bf16."""
        kind = kind if kind in self.gpu.flops_per_s else "bf16"
        return self.gpu.flops_per_s[kind] * (EXPERT_FLOPS_SHARE if of_experts else MATRIX_FLOPS_SHARE)[kind]

    def rest_s(self, tokens: int) -> float:
        """Elementwise kernels, launches (of attention too), routing and all-reduces of all layers, s."""
        total = 0.0
        for layer, count, _ in self.kinds:
            moved = tokens * (10 * self.config.hidden_size + 3 * self._inner(layer)) * self.config.element_bytes
            one = moved / (self.gpu.bandwidth_bytes_per_s * ELEMENTWISE_SHARE) + LAUNCH_S + ATTENTION_S
            one += ROUTING_S * isinstance(layer.feed_forward, Experts) + LATENT_S * isinstance(
                layer.mixer, LatentAttention
            )
            total += count * (one + 2 * self._all_reduce_s(tokens))
        return total

    def _inner(self, layer: Layer) -> int:
        """Inner numbers of a token on one GPU: of the experts that it meets, or of the dense part."""
        part, size = layer.feed_forward, self.tensor_parallel_size
        inner = 0 if part is None else part.inner // size
        if isinstance(part, Experts):
            inner = inner * part.per_token + part.shared_inner // size
        return inner + (0 if layer.parallel is None else layer.parallel.inner // size)

    def sequences_s(self, num_seqs: int) -> float:
        """Head and sampler, s."""
        head_s = self._product_s(self.head, num_seqs, SHORT_DTYPES[self.config.dtype])
        return head_s + SAMPLER_S + (SAMPLER_SEQ_S + self.random_seq_s) * num_seqs

    @property
    def random_seq_s(self) -> float:
        """What drawing a sequence's token takes, s: 0 where sampling is greedy."""
        return 0.0 if self.greedy else random_seq_s(self.config.vocab_size, self.gpu.bandwidth_bytes_per_s)

    def decode_step_s(self, num_decodes: int, context: int) -> float:
        """A decode-only step of requests that have as much context each, s."""
        tokens_s = self.matrices_s(num_decodes) + self.rest_s(num_decodes)
        return tokens_s + self.sequences_s(num_decodes) + num_decodes * self.attention.decode_s(context)

    def step_time(self) -> TwoRegimeStepTime:
        """A profile's step times."""
        attention = self.attention
        decode = [self.decode_step_s(n, 0) for n in DECODE_COUNTS]
        tokens = [self.matrices_s(n) + self.rest_s(n) + self.sequences_s(1) for n in COUNTS]
        head_s = (self.sequences_s(256) - self.sequences_s(1)) / 255
        mixed = {
            "tokens": knots(COUNTS, tokens),
            "per_decode_seq_s": _short(head_s + MIXED_CONTEXT * attention.state_s),
            "per_context_token_s": _short(MIXED_CONTEXT * attention.context_token_s),
            "per_prefill_context_token_s": _short(attention.context_token_s),
            "per_attention_unit_s": _short(attention.unit_s()),
        }
        alone = {"seqs": knots(DECODE_COUNTS, decode), "per_context_token_s": _short(attention.context_token_s)}
        window = None
        if attention.window_size is not None:
            window = {
                "size_tokens": attention.window_size,
                "decode_per_token_s": _short(attention.window_token_s),
                "mixed_per_token_s": _short(MIXED_CONTEXT * attention.window_token_s),
                "per_attention_unit_s": _short(attention.unit_s(in_windows=True)),
            }
        content = {"form": "two_regime", "decode": alone, "mixed": mixed, "window": window}
        return TwoRegimeStepTime.model_validate(content)

    def work(self, steps: Steps) -> Work:
        """FLOPs and bytes of measured steps: weights that are met once a step, keys and values of every context."""
        seqs, tokens = steps.num_seqs, np.asarray(steps.num_tokens, dtype=np.float64)
        flops = seqs * self.head.flops_per_token + 0.0
        moved = self.head.bytes(SHORT_DTYPES[self.config.dtype]) + 0.0 * tokens
        for layer, count, matrices in self.kinds:
            per_token = _per_token(layer)
            for matrix in matrices:
                share = min(matrix.count, per_token) / matrix.count
                flops = flops + count * tokens * share * matrix.flops_per_token
                met = self.routing.met_share(matrix.count, per_token, tokens)
                moved = moved + count * met * matrix.bytes(self.quantisation)
        attention_flops, attention_bytes = self.attention.work(steps)
        return Work(np.asarray(flops + attention_flops), np.asarray(moved + attention_bytes))

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
    routing: Routing = EVEN,
    *,
    greedy: bool = False,
) -> Roofline:
    """The roofline; weights are stored as the checkpoint says unless `quantisation` is given.

    `greedy`: sampling at temperature 0; otherwise tokens are drawn, as models' own generation configs have it.
    """
    stored = checked_quantisation(quantisation or config.quantisation or SHORT_DTYPES[config.dtype])
    return Roofline(config, gpu, stored, kv_cache_dtype, tensor_parallel_size, routing, greedy)


def knots(counts: Sequence[int], times_s: Sequence[float]) -> dict[str, list[Any]]:
    """A profile's knots; a value below an earlier one is raised to it."""
    rising = np.maximum.accumulate(np.asarray(times_s, dtype=np.float64))
    return {"count": list(counts), "time_s": [round(float(value), 9) for value in rising]}


def _per_token(layer: Layer) -> int:
    return layer.feed_forward.per_token if isinstance(layer.feed_forward, Experts) else 1


def _short(value: float) -> float:
    return float(f"{value:.5g}")
