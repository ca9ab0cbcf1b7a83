"""What a recommendation tries: a batch, the load it is tried at, and how its runs went."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from simbatch.sim.metrics.metric import Metric
from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.results.runs import Runs

PEAK = 1.25


class BatchChoice(NamedTuple):
    """What is searched."""

    max_num_seqs: int
    max_num_batched_tokens: int

    def settings(self) -> dict[str, int]:
        """As keys of a scenario."""
        return {f"engine.{name}": value for name, value in self._asdict().items()}


@dataclass(frozen=True)
class TriedChoice:
    """A choice and its runs: `at_load` and `at_peak` by seed (without a rate both are the same)."""

    choice: BatchChoice
    at_load: Runs
    at_peak: Runs
    goal: str

    @property
    def score(self) -> float:
        """The mean of the goal over all runs."""
        return fmean(self.scores())

    def scores(self) -> list[float]:
        """One a seed."""
        goal = REGISTRY[self.goal]
        pairs = zip(self.at_load.values(goal), self.at_peak.values(goal), strict=True)
        return [fmean(value or 0.0 for value in pair) for pair in pairs]

    def mean(self, key: str) -> float | None:
        """The mean at the load of a figure in summary.json, dots between the levels."""
        return self.at_load.mean(REGISTRY.get(key) or Metric(key, key))


@dataclass(frozen=True)
class CaseLoad:
    """Requests a second: of the saturated engine, and of the comparison; no rate when all come at once."""

    saturated: float
    share: float | None = None
    rate: float | None = None
    is_enough: bool = True

    @property
    def peak(self) -> float | None:
        """A quarter more."""
        return None if self.rate is None else rounded(self.rate * PEAK)


def rounded(rate: float) -> float:
    """A rate to four digits, as it is written in a scenario."""
    return float(f"{rate:.4g}")
