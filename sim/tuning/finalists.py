"""A search's finalists under draws of what the profile is in doubt about: whether a gain is larger than that doubt.

All finalists get the same requests, and draw i is off alike for all of them, so a gain is told draw by draw: its band
is the lowest and the highest of 19 ratios. A gain that one of the draws does not show is inside the band.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, TypeVar

from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search.bands import NUM_DRAWS, Bands, all_settings, bands_from, drawn_settings
from simbatch.sim.tuning.goal import Goal
from simbatch.sim.tuning.space import Settings

Choice = TypeVar("Choice")
TIMES, FAR = 2.0, 20.0  # above, a change is said as so many times, or as far more
Evaluate = Callable[[Sequence[tuple[dict[str, Any], int]]], list[Summary]]


@dataclass(frozen=True)
class DrawnGain:
    """How many times another's figure one has, in each draw; infinite where the other has nothing."""

    ratios: Sequence[float]

    @classmethod
    def of(cls, mine: Sequence[float], others: Sequence[float]) -> DrawnGain:
        """Of two choices' figures, draw by draw."""
        return cls([_ratio(own, its) for own, its in zip(mine, others, strict=True)])

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
        """`+1.2 to +4.0 %`, `3.1 to 5.0 times`, `far more`."""
        if self.low > FAR or self.high == inf:
            return "far more"
        if self.high > TIMES:
            return f"{self.low:.1f} to {self.high:.1f} times"
        low, high = (f"{100 * (ratio - 1):+.1f}".replace("-0.0", "+0.0") for ratio in (self.low, self.high))
        return f"{low} to {high} %"

    def as_dict(self) -> dict[str, float | None]:
        """For a results' file; an infinite ratio is null."""
        return {"low": self.low, "high": None if self.high == inf else self.high}


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


@dataclass(frozen=True)
class Finalists:
    """What a search recommends and the scenario as it stands, over the draws; `gain` is of the goal's figure."""

    bands: Bands  # of what is recommended
    gain: DrawnGain | None  # None where the scenario as it stands is recommended, and where a draw has no such figure
    within_limits: int  # draws


def finalists_of(
    scenario: Scenario, best: Settings, goal: Goal, seed: int, evaluate: Evaluate, num_draws: int = NUM_DRAWS
) -> Finalists:
    """Draw both of them."""
    (metric,) = goal.metrics
    bands = bands_of(scenario, best, seed, evaluate, num_draws)
    keys = {each.key: each for each in (metric, *(limit.metric for limit in goal.limits))}
    within = sum(goal.is_met({key: each.of(draw) for key, each in keys.items()}) for draw in bands.draws)
    if not best:
        return Finalists(bands, None, within)
    (base,) = draws_of(scenario, [{}], seed, evaluate, num_draws)
    mine, others = ([metric.of(draw) for draw in draws] for draws in (bands.draws, base))
    known = [value for value in (*mine, *others) if value is not None]
    gain = DrawnGain.of(known[: len(mine)], known[len(mine) :]) if len(known) == len(mine) + len(others) else None
    return Finalists(bands, gain, within)


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
    summaries = iter(evaluate(asked))
    return [[next(summaries) for _ in range(num_draws)] for _ in settings]


def bands_of(
    scenario: Scenario, settings: Settings, seed: int, evaluate: Evaluate, num_draws: int = NUM_DRAWS
) -> Bands:
    """The bands of one of them, with what each part of the profile makes of their width."""
    resolved = resolve(scenario.override(dict(settings)))
    drawn = all_settings(resolved, num_draws)
    return bands_from(resolved, evaluate([({**settings, **each}, seed) for each in drawn]))


def _ratio(own: float, its: float) -> float:
    if its:
        return own / its
    return inf if own else 1.0
