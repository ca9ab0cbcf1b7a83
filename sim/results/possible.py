"""What values a figure can have at all, by its name in summary.json, and how an interval within them is written."""

from __future__ import annotations

from simbatch.sim.results.registry import REGISTRY
from simbatch.sim.results.text import number
from simbatch.sim.statistics.intervals import Interval

# of a class or a tenant too, whose names stand before them
_UP_TO_1 = tuple(key.removeprefix("simbatch.") for key, metric in REGISTRY.items() if metric.bounds[1] == 1)
_UP_TO_1 += ("share_of_steps_in_range",)


def bounds_of(key: str) -> tuple[float, float]:
    """Shares and Jain's index lie between 0 and 1, all other figures are times, counts or rates: not below 0."""
    is_share = key.removeprefix("simbatch.") in _UP_TO_1 or key.endswith(tuple(f".{name}" for name in _UP_TO_1))
    return 0.0, 1.0 if is_share else float("inf")


def possible(interval: Interval, key: str) -> Interval:
    """The part of an interval of a mean in which the figure can be; the truth is there anyway."""
    return interval.within(*bounds_of(key))


def possible_difference(interval: Interval, key: str) -> Interval:
    """The same of a difference of two such means."""
    low, high = bounds_of(key)
    return interval.within(low - high, high - low)


def plus_minus(mean: float, low: float, high: float, decimals: int, scale: float = 1.0) -> str:
    """`± 9.8`, or `(94.50 to 100.00)` where the interval was cut and its ends are not alike, to the digits shown."""
    below, above = (number(scale * reach, decimals) for reach in (mean - low, high - mean))
    if below == above:
        return f"± {above}"
    return f"({number(scale * low, decimals)} to {number(scale * high, decimals)})"
