"""One figure of a run's summary: what it is called, how it is read, how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from simbatch.sim.metrics.latencies import Number
from simbatch.sim.metrics.run_figures import RunFigures
from simbatch.sim.text import number, percent, plus_minus

LOWER, HIGHER = "lower", "higher"
STEADY = "simbatch.steady_state"


@dataclass(frozen=True)
class Metric:
    """One figure of a summary; `kind` is number, share, count, ms, or index (of fairness, 0 to 1).

    `better` is None where neither end is; `goal` is the end that a search makes for, which may be there all the same.
    `heading` is the label where a column is narrow.
    """

    key: str  # as in summary.json, dots between the levels
    label: str
    better: str | None = None
    kind: str = "number"
    compute: Callable[[RunFigures], Number] | None = None
    is_compared: bool = False
    is_reported: bool = False
    heading: str = ""
    goal: str | None = None
    path: tuple[str, ...] = ()  # the levels one by one, where names in them may have dots

    @property
    def decimals(self) -> int:
        """Shown behind the point."""
        return {"count": 0, "ms": 1, "index": 3}.get(self.kind, 2)

    @property
    def is_share(self) -> bool:
        """Shown in percent."""
        return self.kind == "share"

    @property
    def bounds(self) -> tuple[float, float]:
        """What values it can have: shares and Jain's index 0 to 1; times, counts and rates are not below 0."""
        return 0.0, 1.0 if self.kind in ("share", "index") else inf

    def text(self, value: float | None, decimals: int = 0) -> str:
        """As people read it, with so many decimals at least: `97.35 %`, `1,204.5`, `-` for what was not measured."""
        return percent(value) if self.is_share else number(value, max(self.decimals, decimals))

    def text_with(self, mean: float | None, low: float | None, high: float | None, decimals: int = 0) -> str:
        """A mean and its interval, `215.1 ± 9.8`; the mean alone where there is none."""
        text = self.text(mean, decimals)
        if mean is None or low is None or high is None:
            return text
        return f"{text} {plus_minus(mean, low, high, max(self.decimals, decimals), 100 if self.is_share else 1)}"

    def named(self) -> dict[str, str | None]:
        """What compare.json says of it."""
        return {"key": self.key, "label": self.label, "better": self.better}

    @property
    def title(self) -> str:
        """For a picture, whose axis has the unit of a time."""
        return self.label.removesuffix(" (ms)")

    @property
    def aim(self) -> str | None:
        """Which end a search makes for; None where the figure cannot be searched for."""
        return self.goal or self.better

    @property
    def is_steady(self) -> bool:
        """A claim about the steady state rather than a figure of the run."""
        return self.key.startswith(STEADY)

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """The figure in a summary; None when it has none."""
        value = value_at(summary, *(self.path or (self.key,)))
        return None if value is None else float(value) if isinstance(value, float) else int(value)


def value_at(summary: Mapping[str, Any], *path: str) -> Any:
    """What stands in a summary below these names; of a single one the dots are levels. None where there is nothing."""
    value: Any = summary
    for part in path if len(path) > 1 else path[0].split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
