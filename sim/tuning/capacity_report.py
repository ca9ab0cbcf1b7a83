"""The capacity in words, as JSON, and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simbatch.sim.files import write_json
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.results.files import Writers, write_csv, write_result
from simbatch.sim.scenario.chance import ONE_RUN, is_resampled, num_blocks, runs_words
from simbatch.sim.search.rates import loads_of
from simbatch.sim.text import number
from simbatch.sim.tuning import capacity_picture
from simbatch.sim.tuning.capacity import Bound, Capacity
from simbatch.sim.tuning.goal import METRICS
from simbatch.sim.tuning.tune_files import OWN_FILES, limit_content
from simbatch.sim.tuning.vllm_flags import set_flags


def report(found: Capacity) -> str:
    """The answer, and where it comes from."""
    return "\n".join([*_lines(found)])


def save(found: Capacity, folder: Path, num_runs: int, more: Writers | None = None) -> list[Path]:
    """tune.json, trials.csv and capacity.png, and what `more` writes (a page)."""
    writers: Writers = {
        **(more or {}),
        "tune.json": lambda path: write_json(path, content(found, num_runs)),
        "trials.csv": lambda path: _write_runs(path, found),
        "capacity.png": lambda path: capacity_picture.write(path, found),
    }
    return write_result(folder, writers, OWN_FILES)


def content(found: Capacity, num_runs: int) -> dict[str, Any]:
    """The content of tune.json; rates are values of `goal.capacity`, and `per_s` times them requests per second."""
    bound = found.bound
    return {
        "scenario": found.scenario.name,
        "seeds": found.seeds,
        "resample_blocks": num_blocks(found.scenario),
        "goal": {"capacity": found.unit.key, "limits": [limit_content(limit) for limit in found.limits]},
        "num_runs": num_runs,
        "feasible": found.is_feasible,
        "rate": bound
        and {
            "bound": bound.rate,
            "bound_per_s": bound.rate * found.unit.times,
            "kept_in": bound.kept,
            "of_seeds": len(bound.seeds),
            "median": found.median,
        },
        "per_s": {"unit": found.unit.words, "times": found.unit.times},
        "rate_as_it_stands": loads_of(found.scenario)[found.unit.key],
        "load": bound and loads_of(found.scenario)[found.unit.key] / bound.rate,
        "rate_by_seed": {str(seed): rate for seed, rate in found.by_seed.items()},
        "rate_of_the_trace_as_it_is": found.as_it_is,
        "lowest_tried": found.lowest,
        "highest_tried": found.highest,
        "binds": found.binding(),
        "is_upper_bound": found.is_upper_bound,
        "set": None if bound is None else set_flags(found.settings(bound.rate)),
    }


def _lines(found: Capacity) -> Iterator[str]:
    limits = " and ".join(map(str, found.limits))
    yield f"{found.scenario.name}: the highest {found.unit.what} with {limits}, and without a queue that keeps growing"
    yield from _runs(found)
    yield ""
    if found.bound is not None:
        yield from _answer(found, found.bound)
    elif not found.is_feasible:
        yield f"No {found.unit.what} holds, not even {_per_s(found, found.lowest)}; the lowest that was tried:"
        run = min(found.tried, key=lambda run: run.rate)
        yield from (f"  {limit.metric.key} {number(run.means[limit.metric.key])}" for limit in found.limits)
    elif found.median is None:
        highest = _per_s(found, found.highest)
        too_few = f"{found.scenario.name} has too few {found.unit.of_them}"
        yield f"No {found.unit.what} fails under every seed, up to {highest}: {too_few}"
        raised = "workload.sessions.num_sessions" if found.unit.is_whole else "workload.num_prompts"
        yield f"to overload it, or lets in only so many at once (max_concurrency). Raise {raised}."
    else:
        yield f"Each seed keeps some {found.unit.what}, and all together none, down to {_per_s(found, found.lowest)}."
    if binds := found.binding():
        where = "just above it" if found.bound is not None else "at the lowest rate" if not found.is_feasible else ""
        total = len(found.seeds)
        words = ", ".join(f"{_words(name)} (in {count} of {total} runs)" for name, count in binds.items())
        yield f"What binds {where}: {words}".replace("  ", " ")
    if found.bound is not None and found.is_upper_bound:
        yield "Only the growing queue decides, which shows late: an upper bound, a few percent high in runs of a"
        yield "thousand requests. Raise workload.num_prompts, or limit a latency."


def _runs(found: Capacity) -> Iterator[str]:
    """How many there were, and of what."""
    if len(found.seeds) == 1:
        yield f"{len(found.tried)} runs under seed {found.seeds[0]}: {ONE_RUN} at each rate"
        return
    yield f"{len(found.tried)} runs under seeds {found.seeds[0]} to {(found.bound or found).seeds[-1]}"
    if is_resampled(found.scenario):
        runs = runs_words(found.scenario, len((found.bound or found).seeds))
        yield f"The trace leaves nothing to the seed: these are {runs}, at its own mean rate times rate_scale."


def _answer(found: Capacity, bound: Bound) -> Iterator[str]:
    num, searched = len(bound.seeds), len(found.seeds)
    higher = "with more" if found.unit.is_whole else "at a rate 0.5 % higher"
    if num == 1:
        yield f"Capacity: {_per_s(found, bound.rate)}; {higher} the limits are broken."
    else:
        which = f"{searched} that were searched, {num - searched} that were not"
        yield f"Capacity: {_per_s(found, bound.rate)}, kept in {bound.kept} of {num} seeds ({which})"
        yield f"Half of the {searched} keep {_per_s(found, found.median)}; by seed:{_by_seed(found)}"
    if found.as_it_is is not None:
        yield f"The trace as it is, one run at each rate: {_per_s(found, found.as_it_is)}"
    own = loads_of(found.scenario)[found.unit.key]
    yield f"As it stands: {_per_s(found, own)}, {own / bound.rate:.0%} of the capacity"
    yield f"To run at it: {set_flags(found.settings(bound.rate))}"


def _per_s(found: Capacity, rate: float | None) -> str:
    """With its unit, and for a trace the factor that makes it."""
    if rate is None:
        return "-"
    factor = f" (rate_scale {rate:.4g})" if is_resampled(found.scenario) else ""
    return f"{rate * found.unit.times:.4g} {found.unit.words}{factor}"


def _by_seed(found: Capacity) -> str:
    return "".join(f" {rate * found.unit.times:.4g}" for rate in found.by_seed.values() if rate is not None)


def _words(name: str) -> str:
    return "a queue that keeps growing" if name == OVERLOADED else name


def _write_runs(path: Path, found: Capacity) -> None:
    runs = sorted(found.tried, key=lambda run: (run.seed, run.rate))
    rows = [[run.seed, run.rate, run.is_met, "; ".join(run.broken), *run.means.values()] for run in runs]
    write_csv(path, ["seed", found.unit.key, "met", "broken", *METRICS], rows)
