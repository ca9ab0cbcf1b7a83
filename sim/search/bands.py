"""Bands: what a run's figures would be if its profile is off as far as it says it may be.

A band is the minimum and maximum of 19 draws of the profile, which holds a twentieth draw in exactly 18 of 20 cases:
nine in ten. All draws get the same requests, and the deviations of draw i are the same for every candidate (common
random numbers), so candidates can be compared draw by draw. Which part of the profile makes a band as wide as it is, is
told by runs in which that part alone is off, to both ends of nine in ten: figures bend (a launch hides behind a device
that is slower), so that no line through the draws would tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import TYPE_CHECKING, Any

from simbatch.sim.cost.uncertainty import PARTS, WORDS, deviations, factors, scaled, uncertainty_of
from simbatch.sim.metrics.registry import LOWER, REGISTRY, SLO_SHARE, Metric
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import Resolved

if TYPE_CHECKING:
    from simbatch.sim.search.cells import Settings

NUM_DRAWS = 19
NINE_IN_TEN = 1.645  # standard deviations to each side
SMALLEST = 1e-9  # of a width that is no more than rounding
BANDED = {key: metric for key, metric in REGISTRY.items() if "." not in key or key == f"{SLO_SHARE}all"}
HEADLINES = ("p99_ttft_ms", "p99_tpot_ms", "mean_ttft_ms", "mean_tpot_ms")


@dataclass(frozen=True)
class Band:
    """The lowest and the highest of the draws."""

    low: float
    high: float


@dataclass(frozen=True)
class Bands:
    """Of one candidate: its draws' summaries, and those in which one part alone is off, low and high."""

    draws: Sequence[Summary]
    alone: Mapping[str, tuple[Summary, Summary]]

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
        """Which part of the profile makes how much of the metric's width, the most first; none where nothing moves."""
        widths = {}
        for part, runs in self.alone.items():
            low, high = (metric.of(summary) for summary in runs)
            widths[part] = abs(log(high / low)) if low and high else 0.0
        total = sum(widths.values())
        if total < SMALLEST:
            return {}
        return dict(sorted(((part, width / total) for part, width in widths.items()), key=lambda item: -item[1]))

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
    "growth": "fit a benchmark run with as many requests at once as yours will have (docs/fitting.md)",
    "num_gpu_blocks": 'set engine.num_gpu_blocks_override to what vLLM prints at its start ("GPU KV cache size")',
}


def drawn_settings(resolved: Resolved, draw: int) -> Settings:
    """The changes of the scenario that put a draw of its profiles in their place."""
    return settings_off(resolved, deviations(resolved.scenario.seed, draw))


def settings_off(resolved: Resolved, off: Mapping[str, float]) -> Settings:
    """The settings of a run whose profile is so many standard deviations off in each part that is named."""
    fleet, cluster = resolved.fleet, resolved.scenario.cluster
    settings = _of_engine(resolved, "", off)
    if fleet is not None and cluster is not None and cluster.groups is not None:
        for i, group in enumerate(fleet.groups):
            settings |= _of_engine(group.resolved, f"cluster.groups.{i}.", off)
    if settings and resolved.scenario.host is not None:
        settings["host"] = None  # what it named stands in the drawn profile
    return settings


def all_settings(resolved: Resolved, num_draws: int = NUM_DRAWS) -> list[Settings]:
    """The draws, then each part that is in doubt alone, to both ends of nine in ten."""
    alone = [settings_off(resolved, {part: end}) for part in doubtful(resolved) for end in (-NINE_IN_TEN, NINE_IN_TEN)]
    return [*(drawn_settings(resolved, draw) for draw in range(num_draws)), *alone]


def bands_from(resolved: Resolved, summaries: Sequence[Summary]) -> Bands:
    """Of the summaries of `all_settings`."""
    parts = doubtful(resolved)
    draws, alone = summaries[: len(summaries) - 2 * len(parts)], iter(summaries[len(summaries) - 2 * len(parts) :])
    return Bands(draws, {part: (next(alone), next(alone)) for part in parts})


def doubtful(resolved: Resolved) -> list[str]:
    """The parts that are in doubt in any of its profiles; blocks only where nobody wrote them."""
    found = set()
    for one in [resolved] if resolved.fleet is None else [group.resolved for group in resolved.fleet.groups]:
        parts = uncertainty_of(one.profile).keys()
        found |= parts - ({"num_gpu_blocks"} if one.scenario.engine.num_gpu_blocks_override is not None else set())
    return [part for part in PARTS if part in found]


def turns(metric: Metric, first: Bands, other: Bands) -> float | None:
    """In which share of the draws the other is ahead of the first; None where a draw has no such figure."""
    pairs = [(metric.of(a), metric.of(b)) for a, b in zip(first.draws, other.draws, strict=True)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < len(pairs):
        return None
    sign = -1 if metric.aim == LOWER else 1
    return sum(sign * (b - a) > 0 for a, b in known) / len(known)


def _of_engine(resolved: Resolved, place: str, off: Mapping[str, float]) -> dict[str, Any]:
    by = factors(resolved.profile, off)
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


def add_bands(summary: dict[str, Any], bands: Bands) -> None:
    """Put them into a run's summary, where summary.json and the report find them."""
    summary["simbatch"]["bands"] = bands.content()


def band_lines(summary: Summary, bands: Bands) -> Iterator[str]:
    """The headline figures with their bands, and what would narrow them most."""
    if not bands.alone:
        yield "Bands: the step times are as written, so nothing is in doubt and they have no width."
        return
    yield f"Nine in ten ({len(bands.draws)} draws of what the profile is in doubt about; `simbatch profiles show`):"
    for key in HEADLINES:
        metric = REGISTRY[key]
        if (band := bands.of(metric)) is not None:
            text = f"{metric.text(metric.of(summary))} [{metric.text(band.low)} to {metric.text(band.high)}]"
            yield f"  {metric.label + ':':<24}{text}"
    if (advice := bands.narrow()) is not None:
        yield f"What to measure to narrow this most: {advice}."


@dataclass(frozen=True)
class BandedCandidates:
    """The bands of several candidates, and whose order could turn; the summaries are of the profiles as they stand."""

    summaries: Mapping[str, Summary]
    bands: Mapping[str, Bands]

    def lines(self) -> Iterator[str]:
        """Each headline figure of each candidate with its band; then who may as well be ahead."""
        first = next(iter(self.bands.values()))
        yield f"Nine in ten ({len(first.draws)} draws of what the profiles are in doubt about, the same for all):"
        for key in HEADLINES:
            metric = REGISTRY[key]
            cells = [f"{label} {metric.text(b.low)} to {metric.text(b.high)}" for label, b in self._known(metric)]
            if cells:
                yield f"  {metric.label}: {', '.join(cells)}"
        yield from self._turning()

    def as_dict(self) -> dict[str, Any]:
        """By candidate: `{metric: {low, high}}`; and in which share of the draws each is better than the first."""
        first, *others = self.bands
        better = {
            other: {key: turns(REGISTRY[key], self.bands[first], self.bands[other]) for key in HEADLINES}
            for other in others
        }
        return {"bands": {label: bands.content() for label, bands in self.bands.items()}, "better_in": better}

    def _known(self, metric: Metric) -> list[tuple[str, Band]]:
        found = [(label, bands.of(metric)) for label, bands in self.bands.items()]
        return [(label, band) for label, band in found if band is not None]

    def _turning(self) -> Iterator[str]:
        """An order that some of the draws turn is no order."""
        first, *others = self.bands
        for other in others:
            for key in HEADLINES:
                metric = REGISTRY[key]
                share = turns(metric, self.bands[first], self.bands[other])
                a, b = (metric.of(self.summaries[label]) for label in (first, other))
                if share is None or a is None or b is None or a == b:
                    continue
                ahead = (b < a) == (metric.aim == LOWER)
                against = 1 - share if ahead else share
                if against:
                    winner, loser = (other, first) if ahead else (first, other)
                    yield f"  {metric.title}: {winner} is ahead of {loser}; in {against:.0%} of the draws it is not."
