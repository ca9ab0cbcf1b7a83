"""The capacity in words, as JSON, and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simbatch.sim.results.console import number
from simbatch.sim.results.files import write_json, write_result
from simbatch.sim.results.plots import style
from simbatch.sim.search.capacity import Capacity, rates_of
from simbatch.sim.search.tune import OVERLOADED
from simbatch.sim.search.tune_files import OWN_FILES, interval_content, limit_content
from simbatch.sim.search.tune_flags import set_flags
from simbatch.sim.search.tune_goal import METRICS

FAILS = "#8A8A8A"


def report(found: Capacity) -> str:
    """The answer, and where it comes from."""
    return "\n".join([*_lines(found)])


def save(found: Capacity, folder: Path, num_runs: int) -> list[Path]:
    """tune.json, trials.csv and capacity.png."""
    writers = {
        "tune.json": lambda path: write_json(path, content(found, num_runs)),
        "trials.csv": lambda path: _write_runs(path, found),
        "capacity.png": lambda path: _draw(path, found),
    }
    return write_result(folder, writers, OWN_FILES)


def content(found: Capacity, num_runs: int) -> dict[str, Any]:
    """The content of tune.json."""
    interval = found.interval
    return {
        "scenario": found.scenario.name,
        "seeds": found.seeds,
        "goal": {"capacity": found.key, "limits": [limit_content(limit) for limit in found.limits]},
        "num_runs": num_runs,
        "feasible": found.is_feasible,
        "rate": interval_content(interval),
        "rate_as_it_stands": rates_of(found.scenario)[found.key],
        "rate_by_seed": {str(seed): rate for seed, rate in found.by_seed.items()},
        "lowest_tried": found.lowest,
        "highest_tried": found.highest,
        "binds": found.binding(),
        "is_upper_bound": found.is_upper_bound,
        "set": None if interval is None else set_flags(found.settings(_shown(interval.low))),
    }


def _lines(found: Capacity) -> Iterator[str]:
    limits = " and ".join(map(str, found.limits))
    yield f"{found.scenario.name}: the highest {found.key} with {limits}, and without a queue that keeps growing"
    yield f"{len(found.tried)} runs under seeds {found.seeds[0]} to {found.seeds[-1]}"
    yield ""
    if found.interval is not None:
        yield from _answer(found)
    elif not found.is_feasible:
        yield f"No rate holds, not even {found.lowest:.4g}; the lowest that was tried:"
        run = min(found.tried, key=lambda run: run.rate)
        yield from (f"  {limit.metric.key} {number(run.means[limit.metric.key])}" for limit in found.limits)
    else:
        yield f"No rate fails under every seed, up to {found.highest:.4g}: {found.scenario.name} has too few requests"
        yield "to overload it, or lets in only so many at once (max_concurrency). Raise workload.num_prompts."
    if binds := found.binding():
        where = "just above it" if found.interval is not None else "at the lowest rate" if not found.is_feasible else ""
        total = len(found.seeds)
        words = ", ".join(f"{_words(name)} (in {count} of {total} runs)" for name, count in binds.items())
        yield f"What binds {where}: {words}".replace("  ", " ")
    if found.interval is not None and found.is_upper_bound:
        yield "Only the growing queue decides, which shows late: an upper bound, a few percent high in runs of a"
        yield "thousand requests. Raise workload.num_prompts, or limit a latency."


def _answer(found: Capacity) -> Iterator[str]:
    interval = found.interval
    assert interval is not None
    yield f"Capacity: {interval.estimate:.4g} (95 % interval {interval.low:.4g} to {interval.high:.4g})"
    yield f"As it stands: {rates_of(found.scenario)[found.key]:.4g}"
    rates = " ".join(f"{rate:.4g}" for rate in found.by_seed.values() if rate is not None)
    yield f"By seed: {rates}"
    yield f"To run at its lower end: {set_flags(found.settings(_shown(interval.low)))}"


def _words(name: str) -> str:
    return "a queue that keeps growing" if name == OVERLOADED else name


def _shown(rate: float) -> float:
    return float(f"{rate:.4g}")


def _write_runs(path: Path, found: Capacity) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", found.key, "met", "broken", *METRICS])
        for run in sorted(found.tried, key=lambda run: (run.seed, run.rate)):
            figures = [run.means[key] for key in METRICS]
            writer.writerow([run.seed, run.rate, str(run.is_met).lower(), "; ".join(run.broken), *figures])


def _draw(path: Path, found: Capacity) -> None:
    """The figure that is limited, over the rate: where it holds, where it fails, and the interval."""
    limit = found.limits[0]
    centre = found.interval.estimate if found.interval else None
    with style.figure(path, 8, 4.6) as drawing:
        style.headline(drawing, f"{found.scenario.name}: capacity under {len(found.seeds)} seeds")
        axes = drawing.add_subplot()
        axes.set(xlabel=found.key, ylabel=limit.metric.key)
        near = [run for run in found.tried if centre is None or centre / 2 <= run.rate <= centre * 1.5]
        for is_met, marker, colour, label in ((True, "o", style.PALETTE[0], "holds"), (False, "x", FAILS, "fails")):
            points = [(run.rate, run.means[limit.metric.key]) for run in near if run.is_met == is_met]
            whole = [(x, y) for x, y in points if y is not None]
            if whole:
                xs, ys = [x for x, _ in whole], [y for _, y in whole]
                axes.scatter(xs, ys, color=colour, marker=marker, s=22, label=label)
        axes.axhline(limit.bound, color=style.LIMIT, linestyle="--", linewidth=1.2, label=str(limit))
        if found.interval is not None:
            low, high = found.interval.low, found.interval.high
            axes.axvspan(low, high, color=style.PALETTE[2], alpha=0.25, linewidth=0, label="95 % interval")
            axes.axvline(found.interval.estimate, color=style.PALETTE[2], linewidth=1.2)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4)
