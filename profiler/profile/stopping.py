"""When enough was measured, and how far it is: a line that changes for a person, a line now and then for a file.

The held-out error has stopped improving and totals are sure, or the time is over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from simbatch.profiler.fit import HeldOut

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


EVERY_S = 15.0  # between two lines in a file
SOONER = "the time left is at most what is shown: it ends sooner when the held-out error stops improving"


def left_text(seconds: float) -> str:
    """An upper bound, for the budget ends it."""
    return f"at most {_minutes(seconds)} left"


def plan_text(seconds: float) -> str:
    """What the time is for."""
    return (
        f"plan for {_minutes(seconds)}: on a CPU a warm-up; the batch table, {_minutes(MAX_TABLE * seconds)} at most; "
        f"traffic at four loads, {_minutes(TRAFFIC * seconds)}; waves of decodes and prompts until the end; the fit"
    )


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextmanager
def progress(budget: Budget) -> Iterator[Callable[[str], None]]:
    """What to call with the present activity."""
    print(plan_text(budget.seconds), file=sys.stderr)
    print(SOONER, file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        yield from _bar(budget)
    else:
        yield from _lines(budget)


def _bar(budget: Budget) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=budget.seconds)

        def tell(what: str) -> None:
            bar.update(task, completed=budget.elapsed_s, description=f"{left_text(budget.left_s)}: {what}")

        yield tell


def _lines(budget: Budget) -> Iterator[Callable[[str], None]]:
    last, last_s = "", float("-inf")

    def tell(what: str) -> None:
        nonlocal last, last_s
        activity = what.split(":")[0].split(" ")[0]
        if activity != last or budget.elapsed_s - last_s > EVERY_S:
            last, last_s = activity, budget.elapsed_s
            print(f"{left_text(budget.left_s)}: {what}", file=sys.stderr, flush=True)

    yield tell
