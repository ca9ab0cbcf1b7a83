"""The kinds of mixers of decoders: their matrices, their other parameters, and what they keep of a token.

A mixer is attention of some kind, or a state that is updated token by token. Shapes follow vLLM's: queries, keys and
values are one matrix; heads are divided among GPUs, key and value heads are repeated where there are fewer than GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from simbatch.profiler.model.quantisation import GROUP, matrix_bytes

FP32_PER_16_BITS = 2  # a parameter in fp32 counts as two of the model's 16 bits


@dataclass(frozen=True)
class Matrix:
    """A linear layer on one GPU, `count` of them in a layer of the model.

    `modules` are its parts as a checkpoint calls them, below the layer. `keeps` is the type it is stored in whatever
    the model's quantisation is: a router's, or one that the checkpoint says of this layer.
    """

    name: str
    num_inputs: int
    num_outputs: int
    count: int = 1
    group_size: int = GROUP
    modules: tuple[str, ...] = ()
    keeps: str | None = None

    def bytes(self, quantisation: str) -> int:
        """Bytes of all of them where most of the model is stored so."""
        return self.count * matrix_bytes(self.num_inputs, self.num_outputs, self.keeps or quantisation, self.group_size)

    @property
    def num_weights(self) -> int:
        """Of all of them."""
        return self.count * self.num_inputs * self.num_outputs

    @property
    def flops_per_token(self) -> int:
        """A multiplication and an addition for every weight."""
        return 2 * self.num_weights


class Kept(NamedTuple):
    """What one layer keeps on one GPU: numbers for each token, or a state for each request.

    `heads` x (`keys` + `values`) numbers a token in the KV cache's type; for a state `state_bytes` in all, and how many
    `checkpoints` of it are kept for prompts that others may share. Layers whose
    `form` differs never share a group although their bytes may be equal.
    """

    kind: Literal["full", "sliding", "chunked", "state"]
    heads: int = 0
    keys: int = 0
    values: int = 0
    window: int | None = None
    state_bytes: int = 0
    checkpoints: int = 0
    form: Literal["gqa", "mla", "indexer"] = "gqa"


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention over all tokens, a window of them, or chunks.

    `keeps` is false where another layer's keys and values are read.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    is_chunked: bool = False
    keeps: bool = True
    has_gate: bool = False
    has_head_gates: bool = False
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    qk_norm: Literal["", "head", "all"] = ""
    has_sinks: bool = False
    group: str = "self_attn"

    def local_kv_heads(self, gpus: int) -> int:
        """Key and value heads on one GPU."""
        return max(1, self.num_kv_heads // gpus)

    def matrices(self, hidden: int, gpus: int) -> list[Matrix]:
        """Projections to queries, keys and values, and back."""
        queries = self.num_heads // gpus * self.head_dim
        keys = 2 * self.local_kv_heads(gpus) * self.head_dim if self.keeps else 0
        names = ("qkv_proj", "q_proj", "k_proj", "v_proj") if self.keeps else ("q_proj",)
        gates = [Matrix("g_proj", hidden, self.num_heads // gpus, modules=modules_in(self.group, "g_proj"))]
        return [
            Matrix("qkv_proj", hidden, queries * (1 + self.has_gate) + keys, modules=modules_in(self.group, *names)),
            Matrix("o_proj", queries, hidden, modules=modules_in(self.group, "o_proj")),
            *(gates if self.has_head_gates else []),
        ]

    def others(self, hidden: int, gpus: int) -> int:
        """Numbers of biases, norms of heads and sinks."""
        inward = self.matrices(hidden, gpus)[0]
        biases = self.has_qkv_bias * inward.num_outputs + self.has_o_bias * hidden
        heads, kv_heads = self.num_heads // gpus, self.local_kv_heads(gpus)
        norms = {"": 0, "head": 2 if self.keeps else 1, "all": heads + kv_heads}[self.qk_norm] * self.head_dim
        return biases + norms + self.has_sinks * heads

    def kept(self, gpus: int) -> list[Kept]:
        """Keys and values of each token."""
        if not self.keeps:
            return []
        kind: Literal["full", "sliding", "chunked"] = "full"
        if self.window is not None:
            kind = "chunked" if self.is_chunked else "sliding"
        return [Kept(kind, self.local_kv_heads(gpus), self.head_dim, self.head_dim, self.window)]


@dataclass(frozen=True)
class LatentAttention:
    """DeepSeek's MLA: one compressed vector a token for all heads, on every GPU; sparse attention has an indexer."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_heads: int = 0
    index_head_dim: int = 0
    group: str = "self_attn"

    @property
    def latent(self) -> int:
        """Numbers that are kept of a token."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def matrices(self, hidden: int, gpus: int) -> list[Matrix]:
        """Down to the latent vector (on every GPU), up to the heads (divided), and back; then the indexer's."""
        heads, query = self.num_heads // gpus, self.qk_nope_head_dim + self.qk_rope_head_dim
        down: tuple[str, ...] = ("kv_a_proj_with_mqa",)
        found = []
        if self.q_lora_rank is None:
            found.append(Matrix("q_proj", hidden, heads * query, modules=modules_in(self.group, "q_proj")))
        else:
            down = ("fused_qkv_a_proj", "q_a_proj", *down)
            found.append(
                Matrix("q_b_proj", self.q_lora_rank, heads * query, modules=modules_in(self.group, "q_b_proj"))
            )
        width, up = self.latent + (self.q_lora_rank or 0), self.qk_nope_head_dim + self.v_head_dim
        found += [
            Matrix("kv_a_proj", hidden, width, modules=modules_in(self.group, *down)),
            Matrix("kv_b_proj", self.kv_lora_rank, heads * up, modules=modules_in(self.group, "kv_b_proj")),
            Matrix("o_proj", heads * self.v_head_dim, hidden, modules=modules_in(self.group, "o_proj")),
        ]
        if self.index_heads and self.q_lora_rank is not None:
            width = self.index_heads * self.index_head_dim
            wk = self.index_head_dim + self.index_heads
            found += [
                Matrix("wq_b", self.q_lora_rank, width, modules=modules_in(f"{self.group}.indexer", "wq_b")),
                Matrix("wk_weights_proj", hidden, wk, modules=modules_in(f"{self.group}.indexer", "wk"), keeps="bf16"),
            ]
        return found

    def others(self, hidden: int, gpus: int) -> int:
        """Norms; of the indexer in fp32 with a bias."""
        indexer = 2 * FP32_PER_16_BITS * self.index_head_dim if self.index_heads else 0
        return self.kv_lora_rank + (self.q_lora_rank or 0) + indexer

    def absorbed(self, gpus: int) -> int:
        """Numbers of the copy of kv_b_proj in 16 bits that vLLM makes after loading (mla_attention.py)."""
        return self.num_heads // gpus * (self.qk_nope_head_dim + self.v_head_dim) * self.kv_lora_rank

    def kept(self, gpus: int) -> list[Kept]:
        """The latent vector, and the indexer's key in fp8 with a scale of 4 bytes for 128 of it."""
        found = [Kept("full", 1, self.latent, 0, form="mla")]
        if self.index_heads:
            found.append(Kept("full", 1, self.index_head_dim + self.index_head_dim // 128 * 4, 0, form="indexer"))
        return found


@dataclass(frozen=True)
class GatedDeltaNet:
    """Linear attention of Qwen3-Next and Qwen3.5: a short convolution and a matrix for each head as state."""

    num_k_heads: int
    num_v_heads: int
    head_k_dim: int
    head_v_dim: int
    conv_width: int
    state_element_bytes: int = 2
    group: str = "linear_attn"

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.num_k_heads * self.head_k_dim + self.num_v_heads * self.head_v_dim

    def matrices(self, hidden: int, gpus: int) -> list[Matrix]:
        """In (with the output's gate), the two gates of the state, and out."""
        values = self.num_v_heads * self.head_v_dim
        names = ("in_proj_qkvz", "in_proj_qkv", "in_proj_z")
        return [
            Matrix("in_proj_qkvz", hidden, (self.conv_dim + values) // gpus, modules=modules_in(self.group, *names)),
            Matrix(
                "in_proj_ba",
                hidden,
                2 * self.num_v_heads // gpus,
                modules=modules_in(self.group, "in_proj_ba", "in_proj_b", "in_proj_a"),
            ),
            Matrix("out_proj", values // gpus, hidden, modules=modules_in(self.group, "out_proj")),
        ]

    def others(self, hidden: int, gpus: int) -> int:
        """Convolution, time steps and decays (the latter in fp32), and the norm of a head."""
        heads = self.num_v_heads // gpus
        return self.conv_dim // gpus * self.conv_width + heads + FP32_PER_16_BITS * heads + self.head_v_dim

    def kept(self, gpus: int) -> list[Kept]:
        """The convolution's last inputs in 16 bits, and a matrix for each head."""
        conv = self.conv_dim // gpus * (self.conv_width - 1) * 2
        state = self.num_v_heads // gpus * self.head_v_dim * self.head_k_dim * self.state_element_bytes
        return [Kept("state", state_bytes=conv + state)]


@dataclass(frozen=True)
class Mamba2:
    """Mamba 2, as in Nemotron-H."""

    num_heads: int
    head_dim: int
    num_groups: int
    state_size: int
    conv_width: int
    has_conv_bias: bool = True
    state_element_bytes: int = 4
    group: str = "mixer"

    def _conv_dim(self, gpus: int) -> int:
        groups = max(self.num_groups, gpus)
        return (self.num_heads * self.head_dim + 2 * groups * self.state_size) // gpus

    def matrices(self, hidden: int, gpus: int) -> list[Matrix]:
        """In and out."""
        inner, heads = self.num_heads * self.head_dim // gpus, self.num_heads // gpus
        return [
            Matrix("in_proj", hidden, inner + self._conv_dim(gpus) + heads, modules=modules_in(self.group, "in_proj")),
            Matrix("out_proj", inner, hidden, modules=modules_in(self.group, "out_proj")),
        ]

    def others(self, hidden: int, gpus: int) -> int:
        """Convolution, decays (fp32), skips, time steps, and the gated norm."""
        heads, conv = self.num_heads // gpus, self._conv_dim(gpus)
        return conv * (self.conv_width + self.has_conv_bias) + (2 + FP32_PER_16_BITS) * heads + heads * self.head_dim

    def kept(self, gpus: int) -> list[Kept]:
        """The convolution's last inputs in 16 bits, and a matrix for each head."""
        conv = self._conv_dim(gpus) * (self.conv_width - 1) * 2
        state = self.num_heads // gpus * self.head_dim * self.state_size * self.state_element_bytes
        return [Kept("state", state_bytes=conv + state, checkpoints=1)]


@dataclass(frozen=True)
class ShortConv:
    """A gated convolution over the last few tokens, as in LFM2."""

    width: int
    conv_width: int
    has_bias: bool = False
    group: str = "conv"

    def matrices(self, hidden: int, gpus: int) -> list[Matrix]:
        """In (input and two gates), and out."""
        width = self.width // gpus
        return [
            Matrix("in_proj", self.width, 3 * width, modules=modules_in(self.group, "in_proj")),
            Matrix("out_proj", width, self.width, modules=modules_in(self.group, "out_proj")),
        ]

    def others(self, hidden: int, gpus: int) -> int:
        """Convolution, and biases where there are any."""
        return self.width // gpus * self.conv_width + self.has_bias * (4 * self.width // gpus + self.width)

    def kept(self, gpus: int) -> list[Kept]:
        """The convolution's last inputs in 16 bits."""
        return [Kept("state", state_bytes=self.width // gpus * (self.conv_width - 1) * 2)]


Mixer = Attention | LatentAttention | GatedDeltaNet | Mamba2 | ShortConv


def modules_in(group: str, *names: str) -> tuple[str, ...]:
    """Names of modules below a group."""
    return tuple(f"{group}.{name}" for name in names)
