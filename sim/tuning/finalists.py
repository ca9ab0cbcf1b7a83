"""A search's finalists under draws of what the profile is in doubt about: whether a gain is larger than that doubt.

All finalists get the same requests, and draw i is off alike for all of them, so a gain is told draw by draw: its band
is the lowest and the highest of 19 ratios. A gain that one of the draws does not show is inside the band.

Which trial is the best: settings are equal to the best when their figure is within 1 % of it, less than a profile is
off by, or when three runs or more do not tell them apart (paired differences, 95 %). Of equals goodput decides, then
the share within the SLO, then P99 TTFT; then what needs no code beside vLLM, what is there already, the fewest
sequences and tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Generic, TypeVar

from simbatch.sim.metrics.registry import GOODPUT, WITHIN_SLO
from simbatch.sim.results.runs import Means, Runs, Summary
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search.bands import NUM_DRAWS, Bands, all_settings, bands_from, drawn_settings
from simbatch.sim.statistics import paired_difference
from simbatch.sim.tuning.goal import Goal
from simbatch.sim.tuning.space import SEQS, TOKENS, Settings
from simbatch.sim.workload.model import TrafficShape

Choice = TypeVar("Choice")
TIMES, FAR = 2.0, 20.0  # above, a change is said as so many times, or as over so many
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


@dataclass(frozen=True)
class TriedSettings:
    """One combination of settings, simulated under every seed."""

    number: int  # 0 is the scenario as it stands
    settings: Settings
    runs: Runs

    @property
    def means(self) -> Means:
        """Every figure that can be searched for, over the seeds."""
        return self.runs.means

    @property
    def overloaded(self) -> int:
        """In how many runs the queue kept growing."""
        return self.runs.num_overloaded

    @property
    def warnings(self) -> list[str]:
        """Of the run under the first seed, without what all runs say of their trace."""
        ours = self.runs.summaries[0]["simbatch"]
        return [warning for warning in ours["warnings"] if warning not in ours.get("unread", ())]


def setting_words(settings: Settings) -> str:
    """Settings in a few words: `max_num_seqs 48, policy adaptive (target_tpot_ms 40)`."""
    words = []
    for key, value in settings.items():
        if key == "policy":
            rest = ", ".join(
                f"{name} {each:g}" if isinstance(each, float) else f"{name} {each}"
                for name, each in value.items()
                if name != "name"
            )
            words.append(f"policy {value['name']}" + (f" ({rest})" if rest else ""))
        else:
            words.append(f"{key.removeprefix('engine.')} {value}")
    return ", ".join(words) or "as it stands"


CLOSE = 0.01
MIN_RUNS = 3  # two tell almost nothing apart
CLOSED = ("all_at_once", "closed_loop")  # whose requests wait for the system, and not it for them
DECIDES = ("goodput", "the share within the SLO", "P99 TTFT", "the smallest max_num_seqs")


def equals(goal: Goal, trials: Sequence[TriedSettings]) -> list[TriedSettings]:
    """Those that keep the limits and are equal to the best in the one figure of the goal; none where nothing does."""
    met = [trial for trial in trials if goal.is_met(trial.means)]
    if not met or len(goal.metrics) > 1:
        return []
    best = min(met, key=lambda trial: goal.rank(trial.means))
    return [trial for trial in met if _is_equal(goal.metrics[0].key, best, trial)]


def _is_equal(key: str, best: TriedSettings, other: TriedSettings) -> bool:
    figures, others = ([run.means[key] or 0.0 for run in trial.runs.each] for trial in (best, other))
    highest = best.means[key] or 0.0
    if abs((other.means[key] or 0.0) - highest) <= CLOSE * abs(highest):
        return True
    if len(figures) < MIN_RUNS:
        return False
    return paired_difference(figures, others, is_resampled=best.runs.is_resampled).holds(0.0)


def order(scenario: Scenario, trial: TriedSettings) -> tuple[float, ...]:
    """Between equals, the smaller the better."""
    means = trial.means
    goodput, share, ttft = (means[key] for key in (GOODPUT, WITHIN_SLO, "p99_ttft_ms"))
    return (-(goodput or 0.0), -(share or 0.0), inf if ttft is None else ttft, *preference(scenario, trial))


def preference(scenario: Scenario, trial: TriedSettings) -> tuple[float, ...]:
    """Of those with the same figures: vLLM's own policy; what is there; the fewest seats and tokens.

    Seats and tokens that bring nothing cost memory.
    """
    settings = trial.settings
    policy: str = settings.get("policy", {}).get("name", scenario.policy.name)
    sizes = (settings.get(SEQS, 0), settings.get(TOKENS, 0))
    return (policy != "vllm", bool(settings), *sizes, trial.number)


def has_open_arrivals(scenario: Scenario) -> bool:
    """Whether requests arrive at times of their own, so that no more can be served than comes."""
    workload = scenario.workload
    if workload.max_concurrency is not None:
        return False
    if workload.sessions is not None:
        return workload.sessions.concurrency is None and workload.sessions.begins().process not in CLOSED
    parts: Sequence[TrafficShape] = [] if workload.trace is not None else workload.mix or [workload]
    return all(part.resolved_arrival().process not in CLOSED for part in parts)
