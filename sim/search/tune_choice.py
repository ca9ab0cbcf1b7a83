"""Which of the settings that were tried is the best: what is equal, what decides between equals, and when nothing does.

Settings are equal to the best when their figure is within 1 % of it, less than a profile is off by, or when three runs
or more do not tell them apart (paired differences, 95 %). Of equals goodput decides, then the share within the SLO,
then P99 TTFT; then what needs no code beside vLLM, what is there already, the fewest seats and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from simbatch.sim.results.registry import GOODPUT, SLO_SHARE
from simbatch.sim.scenario import Scenario
from simbatch.sim.search.tune_goal import Goal
from simbatch.sim.search.tune_space import SEQS, TOKENS
from simbatch.sim.search.tune_trial import Trial
from simbatch.sim.statistics.intervals import paired_difference
from simbatch.sim.workload.model import Traffic

CLOSE = 0.01
MIN_RUNS = 3  # two tell almost nothing apart
CLOSED = ("all_at_once", "closed_loop")  # whose requests wait for the system, and not it for them
DECIDES = ("goodput", "the share within the SLO", "P99 TTFT", "fewest seats")


def equals(goal: Goal, trials: Sequence[Trial], *, is_resampled: bool) -> list[Trial]:
    """Those that keep the limits and are equal to the best in the one figure of the goal; none where nothing does."""
    met = [trial for trial in trials if goal.is_met(trial.means)]
    if not met or len(goal.metrics) > 1:
        return []
    best = min(met, key=lambda trial: goal.rank(trial.means))
    return [trial for trial in met if _is_equal(goal.metrics[0].key, best, trial, is_resampled)]


def _is_equal(key: str, best: Trial, other: Trial, is_resampled: bool) -> bool:
    figures, others = ([run[key] or 0.0 for run in trial.by_seed] for trial in (best, other))
    highest = best.means[key] or 0.0
    if abs((other.means[key] or 0.0) - highest) <= CLOSE * abs(highest):
        return True
    return len(figures) >= MIN_RUNS and paired_difference(figures, others, is_resampled=is_resampled).holds(0.0)


def order(scenario: Scenario, trial: Trial) -> tuple[float, ...]:
    """Between equals, the smaller the better."""
    means = trial.means
    goodput, share, ttft = (means[key] for key in (GOODPUT, f"{SLO_SHARE}all", "p99_ttft_ms"))
    return (-(goodput or 0.0), -(share or 0.0), inf if ttft is None else ttft, *preference(scenario, trial))


def preference(scenario: Scenario, trial: Trial) -> tuple[float, ...]:
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
    parts: Sequence[Traffic] = [] if workload.trace is not None else workload.mix or [workload]
    return all(part.resolved_arrival().process not in CLOSED for part in parts)
