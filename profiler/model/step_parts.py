"""What attention costs from shapes and datasheet: contexts that are read, windows of them, states, and prompts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.model.config import ModelConfig
from simbatch.profiler.model.kv_layout import stored_kv_type
from simbatch.profiler.model.layers import Layer
from simbatch.profiler.model.mixers import Attention, Kept, LatentAttention
from simbatch.profiler.records import Floats, Steps
from simbatch.sim.cost.gpus import Gpu
from simbatch.sim.cost.sections import KV_ELEMENT_BYTES
from simbatch.sim.errors import Problem, UserError

SAMPLER_S, SAMPLER_SEQ_S = 30e-6, 0.6e-6
# Random sampling (top-k and top-p sort the vocabulary) on top of that, on an H100: between the kernels and published
# servers of 128,256 and 151,936 tokens 19 to 26 us a sequence are missing. Elsewhere by the memory's bandwidth.
RANDOM_LOGIT_S, RANDOM_BANDWIDTH = 22e-6 / 128_256, 3.35e12


def random_seq_s(vocab_size: int, bandwidth_bytes_per_s: float) -> float:
    """What drawing a token at a temperature above 0 takes for each sequence, s."""
    return RANDOM_LOGIT_S * vocab_size * RANDOM_BANDWIDTH / bandwidth_bytes_per_s


OPTION = "--experts-met"


class Routing(NamedTuple):
    """Experts met by so many tokens, as somebody counted them; without points every expert is as likely.

    Of E experts T tokens that each choose k then meet E * (1 - (1 - k / E) ** T).
    """

    tokens: tuple[int, ...] = ()
    experts: tuple[float, ...] = ()

    def met_share(self, num_experts: int, per_token: int, tokens: Any) -> Any:
        """The share of experts that so many tokens meet: between points on a line over the logarithm of tokens."""
        chosen = min(per_token, num_experts)
        if num_experts == 1:
            return 1.0
        if not self.tokens:
            return 1.0 - (1.0 - chosen / num_experts) ** tokens
        points = (1, *self.tokens) if self.tokens[0] > 1 else self.tokens
        met = (chosen, *self.experts) if self.tokens[0] > 1 else self.experts
        return np.interp(np.log(np.maximum(tokens, 1)), np.log(points), met) / num_experts


EVEN = Routing()


def routing_of(text: str | None, config: ModelConfig) -> Routing:
    """`8:30,64:100`: 8 tokens meet 30 experts, 64 meet 100; UserError for what cannot be, and for a dense model."""
    if text is None:
        return EVEN
    if config.num_experts == 1:
        raise UserError(Problem(OPTION, "the model has no experts", text, "leave it out"))
    pairs = [re.fullmatch(r"\s*(\d+):(\d+(?:\.\d+)?)\s*", one) for one in text.split(",")]
    points = [(int(one[1]), float(one[2])) for one in pairs if one is not None]
    rises = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
    inside = all(n >= 1 and config.num_experts_per_tok <= met <= config.num_experts for n, met in points)
    if len(points) < len(pairs) or not rises or not inside:
        rule = (
            f"must be TOKENS:EXPERTS,... that rise, with {config.num_experts_per_tok} to {config.num_experts} experts"
        )
        raise UserError(Problem(OPTION, rule, text, "for example 8:40,64:110"))
    return Routing(tuple(n for n, _ in points), tuple(met for _, met in points))


FLOPS_SHARE, BYTES_SHARE = 0.55, 0.85


class Attended(NamedTuple):
    """What a token of context costs in one layer, by what is kept of it: bytes, and FLOPs of one query token.

    `window`: tokens beyond which it costs nothing more; None: all of them do. `state_bytes` are a request's.
    """

    bytes: float
    flops: float
    window: int | None
    state_bytes: int


@dataclass(frozen=True)
class AttentionCost:
    """All layers of a model on a GPU, as one of `tensor_parallel_size`; times in s."""

    config: ModelConfig
    gpu: Gpu
    kv_cache_dtype: str
    tensor_parallel_size: int

    @cached_property
    def attended(self) -> tuple[tuple[Attended, int], ...]:
        """What attention costs in each kind of layer, and how many of it there are."""
        return tuple((one, count) for layer, count in self.config.distinct_layers for one in self._attended(layer))

    def _attended(self, layer: Layer) -> list[Attended]:
        mixer, found = layer.mixer, []
        for kept in layer.kept(self.tensor_parallel_size):
            moved = kept.heads * (kept.keys + kept.values) * self._kv_element(kept)
            flops = 2.0 * _query_width(mixer, self.tensor_parallel_size) if kept.form != "indexer" else 0.0
            found.append(Attended(moved, flops, kept.window, kept.state_bytes))
        return found

    def _kv_element(self, kept: Kept) -> float:
        if kept.form == "indexer":
            return 1.0
        stored = stored_kv_type(self.config, self.kv_cache_dtype)
        return self.config.element_bytes if stored == "auto" else KV_ELEMENT_BYTES.get(stored, 1)

    @property
    def window_size(self) -> int | None:
        """Tokens of the layers' window; the largest, should a model have several."""
        return self.config.window

    @property
    def context_token_s(self) -> float:
        """Reading one token's keys and values in all layers that look at all of a context."""
        return sum(count * self._read_s(one) for one, count in self.attended if one.window is None)

    @property
    def window_token_s(self) -> float:
        """Reading one token's keys and values in all layers with a window that it is inside."""
        return sum(count * self._read_s(one) for one, count in self.attended if one.window is not None)

    @property
    def state_s(self) -> float:
        """What a decode takes whatever its context: states read and written."""
        bandwidth = self.gpu.bandwidth_bytes_per_s * BYTES_SHARE
        return sum(count * 2 * one.state_bytes / bandwidth for one, count in self.attended)

    def decode_s(self, context: int) -> float:
        """All that a decode after so many tokens takes."""
        in_window = min(context, self.window_size or 0)
        return self.state_s + context * self.context_token_s + in_window * self.window_token_s

    def _read_s(self, one: Attended) -> float:
        """One token of context in one layer: its bytes, or the products with many heads' queries (MLA)."""
        bytes_s = one.bytes / (self.gpu.bandwidth_bytes_per_s * BYTES_SHARE)
        return max(bytes_s, one.flops / (self.gpu.flops_per_s["bf16"] * FLOPS_SHARE))

    def unit_s(self, *, in_windows: bool = False) -> float:
        """One unit of q * (2h + q) of a prefill of q tokens after h."""
        return self.flops_per_unit(in_windows=in_windows) / (self.gpu.flops_per_s["bf16"] * FLOPS_SHARE)

    def flops_per_unit(self, *, in_windows: bool = False) -> float:
        """Scores and their product with the values, half of q * (2h + q) pairs; of layers with windows or without."""
        total = 0.0
        for layer, count in self.config.distinct_layers:
            if any(one.window is not None for one in self._attended(layer)) == in_windows:
                total += count * _pair_width(layer.mixer, self.tensor_parallel_size)
        return total

    def work(self, steps: Steps) -> tuple[Floats, Floats]:
        """FLOPs and bytes of measured steps: keys and values of every context, states."""
        seqs, tokens = steps.num_seqs, np.asarray(steps.num_tokens, dtype=np.float64)
        pairs = steps.prefill_attention + 2 * steps.decode_context
        flops, moved = pairs * self.flops_per_unit(), 0.0 * tokens
        if (size := self.window_size) is not None:
            flops = flops + np.minimum(pairs, 2 * size * tokens) * self.flops_per_unit(in_windows=True)
        for one, count in self.attended:
            read = steps.decode_context + steps.prefill_context + steps.num_tokens
            if one.window is not None:
                read = np.minimum(read, seqs * one.window)
            moved = moved + count * (one.bytes * read + 2 * one.state_bytes * seqs)
        return np.asarray(flops, dtype=np.float64), np.asarray(moved, dtype=np.float64)


def _query_width(mixer: object, gpus: int) -> float:
    """Numbers of all heads' queries and outputs that meet what is kept of one token of context."""
    if isinstance(mixer, LatentAttention):
        return mixer.num_heads // gpus * (mixer.latent + mixer.kv_lora_rank)
    return 2.0 * (mixer.num_heads // gpus) * mixer.head_dim if isinstance(mixer, Attention) else 0.0


def _pair_width(mixer: object, gpus: int) -> float:
    """Numbers of all heads' keys and values that one query token of a prompt meets in one other token."""
    if isinstance(mixer, LatentAttention):
        width = mixer.qk_nope_head_dim + mixer.qk_rope_head_dim + mixer.v_head_dim
        return float(mixer.num_heads // gpus * width)
    return 2.0 * (mixer.num_heads // gpus) * mixer.head_dim if isinstance(mixer, Attention) else 0.0
