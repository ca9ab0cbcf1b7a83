"""A decoder layer: a mixer and a feed-forward part, dense or of experts, with all its matrices on one GPU.

Inner widths are divided among GPUs; in expert parallelism whole experts are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simbatch.profiler.model.mixers import FP32_PER_16_BITS, Kept, Matrix, Mixer, modules_in


@dataclass(frozen=True)
class Mlp:
    """A dense feed-forward part."""

    inner: int
    is_gated: bool = True
    has_bias: bool = False
    group: str = "mlp"

    def matrices(self, hidden: int, gpus: int, expert_parallel: bool = False) -> list[Matrix]:
        """Up (with a gate) and down."""
        inner, names = self.inner // gpus, ("gate_up_proj", "gate_proj", "up_proj")
        up = "gate_up_proj" if self.is_gated else "up_proj"
        return [
            Matrix(up, hidden, (1 + self.is_gated) * inner, modules=modules_in(self.group, *names, "fc1")),
            Matrix("down_proj", inner, hidden, modules=modules_in(self.group, "down_proj", "fc2")),
        ]

    def others(self, hidden: int, gpus: int) -> int:
        """Biases."""
        return self.has_bias * ((1 + self.is_gated) * self.inner // gpus + hidden)


@dataclass(frozen=True)
class Experts:
    """A router and its experts; beside them experts that every token meets, or a whole dense part."""

    num_experts: int
    per_token: int
    inner: int
    shared_inner: int = 0
    has_shared_gate: bool = False
    is_gated: bool = True
    router_bias: Literal["", "16", "fp32"] = ""
    router_in_fp32: bool = False
    has_bias: bool = False
    pads_to: tuple[int, int] | None = None  # multiples of hidden and inner width (mxfp4's kernels)
    others_per_layer: int = 0
    latent: int = 0  # inputs of the experts where they are not the hidden state
    group: str = "mlp"

    def widths(self, hidden: int, gpus: int) -> tuple[int, int]:
        """Hidden and inner width of an expert on one GPU, as they are allocated."""
        hidden, inner = self.latent or hidden, self.inner // gpus
        if self.pads_to is None:
            return hidden, inner
        return tuple(-(-size // one) * one for size, one in zip((hidden, inner), self.pads_to, strict=True))  # type: ignore[return-value]

    def matrices(self, hidden: int, gpus: int, expert_parallel: bool = False) -> list[Matrix]:
        """The router, the experts (whole ones, fewer, in expert parallelism), what every token meets."""
        number = -(-self.num_experts // gpus) if expert_parallel else self.num_experts
        width, inner = self.widths(hidden, 1 if expert_parallel else gpus)
        experts = f"{self.group}.experts"
        up = modules_in(experts, "gate_up_proj", "gate_proj", "w1", "0.gate_proj", "0.up_proj", "0.w1")
        down = modules_in(experts, "down_proj", "w2", "0.down_proj", "0.w2")
        gates, router = 1 + self.is_gated, "fp32" if self.router_in_fp32 else "bf16"
        found = [
            Matrix("router", hidden, self.num_experts, modules=modules_in(self.group, "gate", "router"), keeps=router),
            Matrix("gate_up_proj", width, gates * inner, number, modules=up),
            Matrix("down_proj", inner, width, number, modules=down),
        ]
        if self.latent:
            found += [
                Matrix("fc1_latent_proj", hidden, self.latent, modules=modules_in(self.group, "fc1_latent_proj")),
                Matrix("fc2_latent_proj", self.latent, hidden, modules=modules_in(self.group, "fc2_latent_proj")),
            ]
        if self.shared_inner:
            name = "shared_expert" if self.has_shared_gate else "shared_experts"
            shared = Mlp(self.shared_inner, self.is_gated, group=f"{self.group}.{name}")
            found += [replace(part, name=f"shared_{part.name}") for part in shared.matrices(hidden, gpus)]
        return found

    def others(self, hidden: int, gpus: int) -> int:
        """Biases of router and experts, the shared experts' gate."""
        width, inner = self.widths(hidden, gpus)
        biases = self.num_experts * ((1 + self.is_gated) * inner + width) if self.has_bias else 0
        router = {"": 0, "16": 1, "fp32": FP32_PER_16_BITS}[self.router_bias] * self.num_experts
        return biases + router + self.has_shared_gate * hidden + self.others_per_layer


@dataclass(frozen=True)
class Layer:
    """One decoder layer; `norms` numbers of the hidden state's width; `parallel` is a dense part beside the experts."""

    mixer: Mixer | None
    feed_forward: Mlp | Experts | None
    norms: int = 2
    parallel: Mlp | None = None

    def matrices(self, hidden: int, gpus: int = 1, expert_parallel: bool = False) -> list[Matrix]:
        """All linear layers on one GPU."""
        found = self.mixer.matrices(hidden, gpus) if self.mixer is not None else []
        for part in (self.feed_forward, self.parallel):
            if part is not None:
                found = [*found, *part.matrices(hidden, gpus, expert_parallel)]
        return found

    def others(self, hidden: int, gpus: int = 1) -> int:
        """Numbers of everything else on one GPU, in 16 bits."""
        parts = (self.mixer, self.feed_forward, self.parallel)
        return self.norms * hidden + sum(part.others(hidden, gpus) for part in parts if part is not None)

    def kept(self, gpus: int = 1) -> list[Kept]:
        """What stays of a token or a request on one GPU."""
        return self.mixer.kept(gpus) if self.mixer is not None else []
