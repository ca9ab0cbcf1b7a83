"""What a GPU costs an hour: list prices with their date and source, and the user's own; what tokens cost then."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite

from simbatch.sim.cost.gpus import known_gpu
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
