"""Bands: what a run's figures would be if its profile is off as far as it says it may be.

A band is the minimum and maximum of 19 draws of the profile, which holds a twentieth draw in exactly 18 of 20 cases:
nine in ten. All draws get the same requests, and the deviations of draw i are the same for every candidate (common
random numbers), so candidates can be compared draw by draw. Which part of the profile makes a band as wide as it is, is
told by runs in which that part alone is off, to both ends of nine in ten: figures bend (a launch hides behind a device
that is slower), so that no line through the draws would tell.

A gain of one choice over another is told draw by draw too: its band is the lowest and the highest of 19 ratios, and one
that some draw does not show is inside the band.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, log
from typing import Any, Generic, TypeVar

from simbatch.sim.cost.uncertainty import PARTS, WORDS, deviations, factors, scaled, uncertainty_of
from simbatch.sim.metrics.registry import REGISTRY, SLO_SHARE, Metric
from simbatch.sim.results.runs import Evaluate, Settings, Summary
from simbatch.sim.scenario import Resolved, Scenario, resolve

NUM_DRAWS = 19
NINE_IN_TEN = 1.645  # standard deviations to each side
SMALLEST = 1e-9  # of a width that is no more than rounding
BANDED = {key: metric for key, metric in REGISTRY.items() if "." not in key or key == f"{SLO_SHARE}all"}
TIMES, FAR = 2.0, 20.0  # above, a change is said as so many times, or as over so many
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


def draws_of(
    scenario: Scenario, settings: Sequence[Settings], seed: int, evaluate: Evaluate, num_draws: int = NUM_DRAWS
) -> list[list[Summary]]:
    """Of each of the settings the summaries of its draws, in their order; all asked for at once."""
    asked = [
        ({**each, **drawn_settings(resolved, draw)}, seed)
        for each in settings
        for resolved in [resolve(scenario.override(dict(each)))]
        for draw in range(num_draws)
    ]
    summaries = evaluate(asked)
    return [summaries[i * num_draws : (i + 1) * num_draws] for i in range(len(settings))]


def bands_of(
    scenario: Scenario, settings: Settings, seed: int, evaluate: Evaluate, num_draws: int = NUM_DRAWS
) -> Bands:
    """The bands of one of them, with what each part of the profile makes of their width."""
    resolved = resolve(scenario.override(dict(settings)))
    drawn = all_settings(resolved, num_draws)
    return bands_from(resolved, evaluate([({**settings, **each}, seed) for each in drawn]))


@dataclass(frozen=True)
class DrawnGain:
    """How many times another's figure one has, in each draw; infinite where the other has nothing."""

    ratios: Sequence[float]

    @classmethod
    def of(cls, mine: Sequence[float], others: Sequence[float]) -> DrawnGain:
        """Of two choices' figures, draw by draw."""
        pairs = zip(mine, others, strict=True)
        return cls([own / its if its else inf if own else 1.0 for own, its in pairs])

    @property
    def low(self) -> float:
        """The least."""
        return min(self.ratios)

    @property
    def high(self) -> float:
        """The most."""
        return max(self.ratios)

    @property
    def is_shown(self) -> bool:
        """Whether every draw shows it."""
        return self.low > 1

    def text(self) -> str:
        """`+1.2 to +4.0 %`, `3.1 to 5.0 times`, `over 20 times as much`."""
        if self.low > FAR or self.high == inf:
            return f"over {FAR:g} times as much"
        if self.high > TIMES:
            return f"{self.low:.1f} to {self.high:.1f} times"
        low, high = (f"{100 * (ratio - 1):+.1f}".replace("-0.0", "+0.0") for ratio in (self.low, self.high))
        return f"{low} to {high} %"

    def as_dict(self) -> dict[str, float | None]:
        """For a results' file; an infinite ratio is null."""
        return {"low": self.low, "high": None if self.high == inf else self.high}


Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Stand(Generic[Choice]):
    """A default that what the search found would have to beat in every draw, and by how much it does."""

    searched: Choice
    default: Choice
    gain: DrawnGain

    @property
    def is_kept(self) -> bool:
        """Whether the default stays."""
        return not self.gain.is_shown
