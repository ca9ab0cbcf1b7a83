"""How sure a figure is: intervals of means and of paired differences, and what one run says of the steady state."""

from simbatch.sim.statistics.batches import Batches, Refusal
from simbatch.sim.statistics.drift import is_trending, keeps_growing
from simbatch.sim.statistics.intervals import Interval, mean_interval, paired_difference, paired_ratio

__all__ = [
    "Batches",
    "Interval",
    "Refusal",
    "is_trending",
    "keeps_growing",
    "mean_interval",
    "paired_difference",
    "paired_ratio",
]
