"""When enough was measured: the held-out error has stopped improving and totals are sure, or the time is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simbatch.profiler.fitting.from_samples import HeldOut

MIN_WAVES = 40
MAX_TABLE, TRAFFIC = 0.3, 0.2  # of the time budget; the waves have the rest
GROWTH = 1.2  # the error is looked at again when there are that many times the waves
PATIENCE = 3  # looks in a row without improvement
IMPROVEMENT = 0.03  # of the best mean error so far: less is none
SURE = 0.01  # standard error of the totals: means over a long run are as good as that, however noisy its steps


@dataclass
class Budget:
    """Seconds from now on; `now` is a clock."""

    seconds: float
    now: Callable[[], float]
    start_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.start_s = self.now()

    @property
    def elapsed_s(self) -> float:
        """Since it was made."""
        return self.now() - self.start_s

    @property
    def left_s(self) -> float:
        """Never below zero."""
        return max(0.0, self.seconds - self.elapsed_s)


@dataclass
class Stopping:
    """Looks at the held-out error of the regimes now and then; they weigh the same."""

    best: float = float("inf")
    looks_without: int = 0
    next_look: int = MIN_WAVES

    def is_time_to_look(self, num_waves: int) -> bool:
        """Whether enough has come since the last look."""
        return num_waves >= self.next_look

    def look(self, num_waves: int, found: HeldOut | None) -> bool:
        """Whether to stop; None while there is not enough to fit."""
        self.next_look = max(num_waves + 1, int(num_waves * GROWTH))
        if found is None:
            return False
        error = sum(found.errors.values()) / len(found.errors)
        if error < self.best * (1 - IMPROVEMENT):
            self.best, self.looks_without = error, 0
        else:
            self.looks_without += 1
        return self.looks_without >= PATIENCE and max(found.total_errors.values()) <= SURE
