"""One combination of settings that was tried, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from simbatch.sim.results.runs import Runs
from simbatch.sim.search.tune_goal import METRICS, Means, means_over
from simbatch.sim.search.tune_space import Settings


@dataclass(frozen=True)
class Trial:
    """One combination of settings, simulated under every seed."""

    number: int  # 0 is the scenario as it stands
    settings: Settings
    runs: Runs

    @cached_property
    def means(self) -> Means:
        """Every figure that can be searched for, over the seeds."""
        return means_over(self.runs.summaries, list(METRICS.values()))

    @cached_property
    def by_seed(self) -> list[Means]:
        """The same of each run."""
        return [means_over([summary], list(METRICS.values())) for summary in self.runs.summaries]

    @property
    def overloaded(self) -> int:
        """In how many runs the queue kept growing."""
        return self.runs.num_overloaded

    @property
    def warnings(self) -> list[str]:
        """Of the run under the first seed."""
        warnings: list[str] = self.runs.summaries[0]["simbatch"]["warnings"]
        return warnings


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
