"""Bands: what a run's figures would be if its profile is off as far as it says it may be.

A band is the minimum and maximum of 19 draws of the profile, which holds a twentieth draw in exactly 18 of 20 cases:
nine in ten. All draws get the same requests, and the deviations of draw i are the same for every candidate (common
random numbers), so candidates can be compared draw by draw. Where figures are as good as linear in the logarithms of
the factors, least squares over the draws says which part of the profile makes the band as wide as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any

import numpy as np

from simbatch.sim.cost.profile import Profile
from simbatch.sim.cost.uncertainty import PARTS, WORDS, deviations, factors, scaled, uncertainty_of
from simbatch.sim.metrics.registry import REGISTRY, SLO_SHARE, Metric
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import Resolved
from simbatch.sim.search.cells import Settings

NUM_DRAWS = 19
BANDED = {key: metric for key, metric in REGISTRY.items() if "." not in key or key == f"{SLO_SHARE}all"}
HEADLINES = ("p99_ttft_ms", "p99_tpot_ms", "mean_ttft_ms", "mean_tpot_ms")


@dataclass(frozen=True)
class Band:
    """The lowest and the highest of the draws."""

    low: float
    high: float


@dataclass(frozen=True)
class Bands:
    """Of one candidate: its draws' summaries, and how far each draw is off in each part that is in doubt."""

    draws: Sequence[Summary]
    off: Sequence[Mapping[str, float]]

    def of(self, metric: Metric) -> Band | None:
        """None where a draw has no such figure."""
        values = [metric.of(summary) for summary in self.draws]
        known = [value for value in values if value is not None]
        return Band(min(known), max(known)) if known and len(known) == len(values) else None

    def content(self) -> dict[str, dict[str, float]]:
        """For summary.json: `{metric: {low, high}}`."""
        found = {key: self.of(metric) for key, metric in BANDED.items()}
        return {key: {"low": band.low, "high": band.high} for key, band in found.items() if band is not None}

    def shares(self, metric: Metric) -> dict[str, float]:
        """Which part of the profile makes how much of the metric's spread, the most first; none where nothing moves."""
        values = [metric.of(summary) for summary in self.draws]
        parts = [part for part in PARTS if any(part in off for off in self.off)]
        if not parts or any(value is None or value <= 0 for value in values):
            return {}
        logs = np.array([log(value) for value in values if value])
        columns = np.array([[off.get(part, 0.0) for part in parts] for off in self.off])
        slopes = np.linalg.lstsq(np.column_stack([columns, np.ones(len(logs))]), logs, rcond=None)[0][:-1]
        weights = (slopes**2).tolist()
        if sum(weights) < 1e-12:
            return {}
        shares = {part: weight / sum(weights) for part, weight in zip(parts, weights, strict=True)}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def narrow(self, keys: Sequence[str] = HEADLINES) -> str | None:
        """What to measure to narrow the widest of these bands most; None where no band has a width."""
        found = [(band.high / band.low, key) for key in keys if (band := self.of(REGISTRY[key])) and band.low > 0]
        width, key = max(found, default=(1.0, ""))
        if width <= 1 or not (shares := self.shares(REGISTRY[key])):
            return None
        part, share = next(iter(shares.items()))
        return f"{WORDS[part]} ({100 * share:.0f} % of what widens {REGISTRY[key].title}): {HOW[part]}"


HOW = {
    "decode": "profile this model on this GPU (docs/profiling.md), or fit two benchmark runs (docs/fitting.md)",
    "mixed": "profile this model on this GPU (docs/profiling.md), or fit two benchmark runs (docs/fitting.md)",
    "host": "a minute with the real server (docs/hosts.md)",
    "front_end": "a minute with the real server (docs/hosts.md)",
    "num_gpu_blocks": 'set engine.num_gpu_blocks_override to what vLLM prints at its start ("GPU KV cache size")',
}


def doubts(resolved: Resolved) -> dict[str, str]:
    """What is uncertain in a scenario's profiles, as `profiles show` says it."""
    found: dict[str, str] = {}
    for one in _engines(resolved):
        prefix = "" if resolved.fleet is None or len(resolved.fleet.groups) == 1 else f"{one.profile.name} "
        found |= {f"{prefix}{part}": each.text() for part, each in uncertainty_of(one.profile).items()}
    return found


def drawn_settings(resolved: Resolved, draw: int, seed: int | None = None) -> Settings:
    """The changes of the scenario that put a draw of its profiles in their place; `seed` is the scenario's."""
    seed = resolved.scenario.seed if seed is None else seed
    fleet = resolved.fleet
    settings: dict[str, Any] = _drawn(resolved, "", seed, draw)
    if fleet is not None and resolved.scenario.cluster is not None and resolved.scenario.cluster.groups is not None:
        for i, group in enumerate(fleet.groups):
            settings |= _drawn(group.resolved, f"cluster.groups.{i}.", seed, draw)
    if resolved.scenario.host is not None:
        settings["host"] = None  # what it named stands in the drawn profile
    return settings


def bands_of(
    resolved: Resolved, run: Callable[[Sequence[Settings]], Sequence[Summary]], num_draws: int = NUM_DRAWS
) -> Bands:
    """Simulate the draws of a scenario by `run`, which may do them in parallel."""
    settings = [drawn_settings(resolved, draw) for draw in range(num_draws)]
    return Bands(run(settings), deviations_of(resolved, num_draws))


def deviations_of(resolved: Resolved, num_draws: int = NUM_DRAWS) -> list[dict[str, float]]:
    """How far each draw is off, of the parts that are in doubt in any profile; blocks only where nobody wrote them."""
    parts = {part for one in _engines(resolved) for part in uncertainty_of(one.profile)}
    if all(one.scenario.engine.num_gpu_blocks_override is not None for one in _engines(resolved)):
        parts.discard("num_gpu_blocks")
    return [
        {part: off for part, off in deviations(resolved.scenario.seed, draw).items() if part in parts}
        for draw in range(num_draws)
    ]


def turns(metric: Metric, first: Bands, other: Bands) -> float | None:
    """In which share of the draws the other is ahead of the first; None where a draw has no such figure."""
    pairs = [(metric.of(a), metric.of(b)) for a, b in zip(first.draws, other.draws, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < len(pairs):
        return None
    sign = -1 if metric.aim == "lower" else 1
    return sum(sign * (b - a) > 0 for a, b in known) / len(known)


def _engines(resolved: Resolved) -> list[Resolved]:
    return [resolved] if resolved.fleet is None else [group.resolved for group in resolved.fleet.groups]


def _drawn(resolved: Resolved, place: str, seed: int, draw: int) -> dict[str, Any]:
    by = factors(resolved.profile, seed, draw)
    if not by:
        return {}
    settings: dict[str, Any] = {f"{place}profile": scaled(resolved.profile, by)}
    if resolved.scenario.engine.num_gpu_blocks_override is None and "num_gpu_blocks" in by:
        settings[f"{place}engine.num_gpu_blocks_override"] = _blocks(resolved, by["num_gpu_blocks"])
    return settings


def _blocks(resolved: Resolved, factor: float) -> int:
    """Never so few that vLLM would not start: whoever sees it start has enough for one request."""
    engine = resolved.engine
    least = ceil(engine.max_model_len / engine.block_size) + 1
    return max(round(engine.num_gpu_blocks * factor), min(least, engine.num_gpu_blocks))


def is_in_doubt(profiles: Sequence[Profile]) -> bool:
    """Whether any of them has anything to draw."""
    return any(map(uncertainty_of, profiles))
