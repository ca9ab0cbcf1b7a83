"""What a measurement is doing, on stderr: a line that changes for a person, a line now and then for a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from simbatch.profiler.measuring.stopping import MAX_TABLE, TRAFFIC, Budget

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
