"""Which kinds of replica there are to choose from: the profiles of one model, by GPU and tensor parallelism.

Prices of a GPU's hour are list prices with their date and source, or the user's own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

from simbatch.sim.commands.choose import shape_of
from simbatch.sim.cost.by_name import load_profile, shipped_names
from simbatch.sim.cost.gpus import find_gpu, known_gpu
from simbatch.sim.cost.profile import INLINE, MeasuredProfile, Profile
from simbatch.sim.cost.sections import GpuPower
from simbatch.sim.errors import Problem, UserError

FLAG = "--price"
MEND = "write --price h100=2.5 (US dollars for one GPU an hour)"
_PRICE = re.compile(r"\$?([0-9.]+(?:e-?[0-9]+)?)\s*(?:\$|usd)?\s*(?:/\s*(?:gpu-?)?(?:h|hr|hour))?", re.I)


@dataclass(frozen=True)
class GpuPrice:
    """US dollars for one GPU an hour, and who says so."""

    per_hour: float
    source: str


# On-demand list prices, read off the providers' pages on the day that is named; they move by tens of per cent a year,
# and differ more than twofold between providers for one GPU. Transcribed by tgarg01/silybench-data (runpod.io/pricing,
# lambda.ai/pricing) and api-evangelist/akash (akash.network/pricing/gpus).
RUNPOD = "RunPod Secure Cloud, on demand, 2026-09-25"
LAMBDA = "Lambda, on demand, 2026-09-25"
AKASH = "Akash, starting at, 2026-09-20"
LIST_PRICES: Mapping[str, GpuPrice] = {
    "rtx4090": GpuPrice(0.74, RUNPOD),
    "l40s": GpuPrice(1.09, RUNPOD),
    "rtxpro6000": GpuPrice(2.04, AKASH),
    "a10": GpuPrice(1.29, LAMBDA),
    "a100-40": GpuPrice(1.99, LAMBDA),
    "a100": GpuPrice(1.59, RUNPOD),
    "a100-pcie": GpuPrice(1.59, RUNPOD),
    "h100": GpuPrice(3.49, RUNPOD),
    "h100-pcie": GpuPrice(2.89, RUNPOD),
    "h100-nvl": GpuPrice(3.19, RUNPOD),
    "gh200": GpuPrice(2.29, LAMBDA),
    "h200": GpuPrice(4.59, RUNPOD),
    "b200": GpuPrice(6.79, RUNPOD),
}


def short_gpu(name: str) -> str:
    """The GPU's short name; of one that is not in the table its own, in lower case."""
    gpu = known_gpu(name)
    return name.strip().lower() if gpu is None else gpu.short


def parse_prices(texts: Iterable[str]) -> dict[str, GpuPrice]:
    """`("h100=2.5/h", "l40s=0.9")` by short names; UserError at what is no price."""
    found = {}
    for text in (part for each in texts for part in each.split(",")):
        name, equals, amount = text.partition("=")
        match = _PRICE.fullmatch(amount.strip())
        if not equals or not name.strip() or match is None:
            raise UserError(Problem(FLAG, "must be a GPU, =, and an amount", text, MEND))
        try:
            price = float(match[1])
        except ValueError:
            price = float("nan")
        if not (isfinite(price) and price >= 0):
            raise UserError(Problem(f"{FLAG} {name.strip()}", "must be a number, 0 or more", amount.strip(), MEND))
        found[short_gpu(name)] = GpuPrice(price, FLAG)
    return found


def price_of(gpu: str, own: Mapping[str, GpuPrice]) -> GpuPrice | None:
    """The user's price, else the list's; None where neither has one."""
    short = short_gpu(gpu)
    return own.get(short, LIST_PRICES.get(short))


def per_million(cost_per_hour: float | None, tokens_per_s: float | None) -> float | None:
    """US dollars for a million tokens at this pace: 12 $/h at 1,000 tokens a second are 12 / 3.6 = 3.33 $."""
    if cost_per_hour is None or not tokens_per_s:
        return None
    return cost_per_hour / (tokens_per_s * 3600) * 1e6


ANY = "any"
PLAIN_KV = ("bfloat16", "float16", "auto")


@dataclass(frozen=True)
class ReplicaKind:
    """One engine on its GPUs; `reference` is what a scenario's `profile` says of it."""

    reference: str | Mapping[str, Any]
    profile: Profile
    price: GpuPrice | None

    @property
    def gpu(self) -> str:
        """The short name of its GPUs."""
        return short_gpu(self.profile.gpu) if isinstance(self.profile, MeasuredProfile) else INLINE

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs of one replica."""
        return self.profile.tensor_parallel_size if isinstance(self.profile, MeasuredProfile) else 1

    @property
    def weights(self) -> str:
        """How its weights are held, and its KV cache where that differs: `fp8, fp8 KV`."""
        if not isinstance(self.profile, MeasuredProfile):
            return "as written"
        kv = self.profile.kv_cache_dtype
        return self.profile.quantisation + ("" if kv in PLAIN_KV else f", {kv} KV")

    @property
    def label(self) -> str:
        """`H100 TP2`, `L40S TP1 (fp8, fp8 KV)` where the weights are not 16 bits."""
        weights = "" if self.weights in ("bf16", "fp16", "as written") else f" ({self.weights})"
        return f"{self.gpu.upper()} TP{self.tensor_parallel_size}{weights}"

    @property
    def power(self) -> GpuPower | None:
        """What one of its GPUs draws, where the profile knows."""
        return self.profile.power if isinstance(self.profile, MeasuredProfile) else None

    @property
    def trust(self) -> tuple[bool, bool]:
        """Smaller is better: computed or measured steps, assumed or measured host."""
        host = self.profile.host
        return self.profile.is_estimate, host is None or host.assumed


@dataclass(frozen=True)
class Wanted:
    """What the user leaves to choose from; None: everything."""

    gpus: Collection[str] | None = None
    sizes: Collection[int] | None = None  # of tensor parallelism
    weights: str | None = None
    prices: Mapping[str, GpuPrice] | None = None
    gpus_per_node: int | None = None

    def takes(self, kind: ReplicaKind) -> bool:
        """Whether GPU, tensor parallelism and node allow it."""
        size = kind.tensor_parallel_size
        return (
            (self.gpus is None or kind.gpu in self.gpus)
            and (self.sizes is None or size in self.sizes)
            and (self.gpus_per_node is None or size <= self.gpus_per_node)
        )


def parse_gpus(text: str) -> list[str]:
    """`h100,l40s` as short names; UserError at one that nobody knows."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError(Problem("--gpus", "names no GPU", text, "for example --gpus h100,l40s"))
    return [name if name == INLINE else find_gpu(name, "--gpus").short for name in names]


def parse_sizes(text: str) -> list[int]:
    """`1,2,4`; UserError at what is no number of GPUs."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1024 for part in parts):
        raise UserError(Problem("--tp", "must be numbers of GPUs, 1 or more", text, "for example --tp 1,2,4"))
    return [int(part) for part in parts]


def kinds_like(reference: str | Mapping[str, Any], own: Profile, wanted: Wanted) -> list[ReplicaKind]:
    """The scenario's own profile, and all that ship of its model with its weights and KV type, or `wanted.weights`."""
    prices = wanted.prices or {}
    gpu = own.gpu if isinstance(own, MeasuredProfile) else INLINE
    kinds = [ReplicaKind(reference, own, price_of(gpu, prices))]
    if isinstance(own, MeasuredProfile):
        weights = (wanted.weights or own.quantisation).lower()
        same_kv = wanted.weights is None
        kinds += [
            kind
            for kind in _shipped(own.model, prices)
            if kind.profile.name != own.name and _is_held(kind, weights, own.kv_cache_dtype if same_kv else None)
        ]
        if wanted.weights not in (None, ANY, own.quantisation):
            kinds = kinds[1:]
    return _chosen(kinds, wanted, gpu)


def kinds_of(model: str, wanted: Wanted) -> list[ReplicaKind]:
    """All that ship of a model: with 16-bit weights where a GPU has such, unless `wanted.weights` says otherwise."""
    kinds = _shipped(model, wanted.prices or {})
    if not kinds:
        raise UserError(_unknown_model(model))
    if wanted.weights is None:
        kept = [kind for kind in kinds if _is_held(kind, "bf16", "bfloat16")]
        plain = {kind.gpu for kind in kept}
        kept += [kind for kind in kinds if kind.gpu not in plain]  # a GPU that is too small for 16 bits
    else:
        kept = [kind for kind in kinds if _is_held(kind, wanted.weights.lower(), None)]
    return _chosen(kept, wanted, model, {kind.weights for kind in kinds})


def _shipped(model: str, prices: Mapping[str, GpuPrice]) -> list[ReplicaKind]:
    """Those of a model with the same layers, by its name: `Qwen3-32B` and `Qwen/Qwen3-32B-FP8` are one model."""
    loaded = [load_profile(name, folder=Path()) for name in shipped_names()]
    return [
        ReplicaKind(profile.name, profile, price_of(profile.gpu, prices))
        for profile in loaded
        if isinstance(profile, MeasuredProfile) and profile.is_gpu and shape_of(profile.model) == shape_of(model)
    ]


def _is_held(kind: ReplicaKind, weights: str, kv_cache_dtype: str | None) -> bool:
    assert isinstance(kind.profile, MeasuredProfile)
    if weights != ANY and kind.profile.quantisation != weights:
        return False
    theirs = kind.profile.kv_cache_dtype
    return kv_cache_dtype is None or theirs == kv_cache_dtype or {theirs, kv_cache_dtype} <= {*PLAIN_KV}


def _chosen(kinds: Sequence[ReplicaKind], wanted: Wanted, what: str, weights: Iterable[str] = ()) -> list[ReplicaKind]:
    """What `wanted` takes; of several alike the first one, which is the scenario's own, or the best known."""
    best: dict[tuple[object, ...], ReplicaKind] = {}
    for kind in [*kinds[:1], *sorted(kinds[1:], key=lambda kind: kind.trust)]:
        if wanted.takes(kind):
            best.setdefault((kind.gpu, kind.tensor_parallel_size, kind.weights), kind)
    if not best:
        rule = "no profile is left to choose from"
        there = sorted({f"{kind.gpu} TP{kind.tensor_parallel_size}" for kind in kinds})
        held = f"weights of this model: {', '.join(sorted(weights))}" if weights else ""
        mend = f"with these weights there are {', '.join(there)}" if there else held
        raise UserError(Problem("plan", rule, what, mend or "`simbatch profiles list` shows what ships"))
    return sorted(best.values(), key=lambda kind: (kind.gpu, kind.tensor_parallel_size, kind.weights))


def other_weights(kind: ReplicaKind, kinds: Sequence[ReplicaKind], wanted: Wanted) -> list[ReplicaKind]:
    """Its model on as many of its GPU with weights that nobody asked for; the best known profile of each."""
    if not isinstance(kind.profile, MeasuredProfile) or wanted.weights is not None:
        return []
    taken = {(each.gpu, each.weights) for each in kinds}
    shape = (kind.gpu, kind.tensor_parallel_size)
    found: dict[str, ReplicaKind] = {}
    for other in sorted(_shipped(kind.profile.model, wanted.prices or {}), key=lambda each: each.trust):
        if (other.gpu, other.tensor_parallel_size) == shape and (other.gpu, other.weights) not in taken:
            found.setdefault(other.weights, other)
    return [found[weights] for weights in sorted(found)]


def left_out(gpus: Iterable[str], kinds: Iterable[ReplicaKind]) -> list[str]:
    """What to say of GPUs that were asked for and of which there is nothing to choose from."""
    there = {kind.gpu for kind in kinds}
    names = [name for name in gpus if name not in there]
    if not names:
        return []
    return [f"left out, since no such profile ships: {', '.join(names)}; `simbatch estimate MODEL --gpu G` makes one."]


def _unknown_model(model: str) -> Problem:
    loaded = (load_profile(name, folder=Path()) for name in shipped_names())
    models = sorted({profile.model for profile in loaded if isinstance(profile, MeasuredProfile)})
    short = {name.rsplit("/", 1)[-1].lower(): name for name in models}
    near = get_close_matches(model.rsplit("/", 1)[-1].lower(), [*short], n=1, cutoff=0.6)
    guess = f"did you mean {short[near[0]]}? " if near else ""
    return Problem("--model", "no profile of it ships", model, f"{guess}known: {', '.join(models)}")
