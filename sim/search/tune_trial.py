"""One combination of settings that was tried, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass

from simbatch.sim.search.tune_goal import Means
from simbatch.sim.search.tune_space import Settings


@dataclass(frozen=True)
class Trial:
    """One combination of settings, simulated under every seed; `means` has every metric of tune_goal."""

    number: int  # 0 is the scenario as it stands
    settings: Settings
    means: Means
    runs: tuple[Means, ...]  # one a seed
    overloaded: int  # in how many runs the queue kept growing
    warnings: tuple[str, ...] = ()  # of the run under the first seed


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
