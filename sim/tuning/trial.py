"""One combination of settings that was tried, and which of those that were tried is the best.

Settings are equal to the best when their figure is within 1 % of it, less than a profile is off by, or when three runs
or more do not tell them apart (paired differences, 95 %). Of equals goodput decides, then the share within the SLO,
then P99 TTFT; then what needs no code beside vLLM, what is there already, the fewest sequences and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from simbatch.sim.metrics.registry import GOODPUT, WITHIN_SLO
from simbatch.sim.results.runs import Means, Runs
from simbatch.sim.scenario import Scenario
from simbatch.sim.statistics.intervals import paired_difference
from simbatch.sim.tuning.goal import Goal
from simbatch.sim.tuning.space import SEQS, TOKENS, Settings
from simbatch.sim.workload.model import TrafficShape


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
