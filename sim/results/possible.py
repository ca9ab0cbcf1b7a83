"""What values a figure can have at all, by its name in summary.json, and how an interval within them is written."""

from __future__ import annotations

import re

from simbatch.sim.results.console import number
from simbatch.sim.statistics.intervals import Interval

_SHARE = re.compile(
    r"(^|\.)(slo_share\.(all|ttft|tpot|e2el)|\w+_tokens_share|device_busy_share|kv_cache\.(mean|peak)_use"
    r"|fairness\.(tenants|requests)|share_of_steps_in_range)$"
)


def bounds_of(key: str) -> tuple[float, float]:
    """Shares and Jain's index lie between 0 and 1, all other figures are times, counts or rates: not below 0."""
    return 0.0, 1.0 if _SHARE.search(key) else float("inf")


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
