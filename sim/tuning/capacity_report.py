"""The capacity in words, as JSON, and drawn.

capacity.png shows what binds, over the rate: where the limits are kept and where not, and the rate that holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.files import write_csv, write_json
from simbatch.sim.metrics.registry import REGISTRY, SESSIONS, SESSIONS_WITHIN_SLO, WITHIN_SLO, Metric
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.report import style
from simbatch.sim.results.files import Writers, write_result
from simbatch.sim.scenario import ONE_RUN, is_resampled, num_blocks, runs_words
from simbatch.sim.text import number
from simbatch.sim.tuning.goal import METRICS
from simbatch.sim.tuning.tune_files import OWN_FILES
from simbatch.sim.tuning.vllm_flags import set_flags

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from simbatch.sim.tuning.capacity import Bound, Capacity


SIZE = (8.0, 4.8)  # inches
FAILS = "#8A8A8A"
NEAR = (0.5, 1.5)  # of the capacity: what is shown of all rates
QUEUE = REGISTRY["simbatch.queue.mean_waiting"]


def write(path: Path, found: Capacity) -> None:
    """The picture as a PNG."""
    with style.figure(path, *SIZE) as drawing:
        draw(drawing, found)


def draw(drawing: Figure, found: Capacity) -> None:
    """A point a run, times on a logarithmic axis; the limit and the rate that holds as lines."""
    metric, bound = shown_metric(found)
    seeds = len((found.bound or found).seeds)
    style.headline(drawing, f"{found.scenario.name}: capacity under {seeds} seed{'s' if seeds > 1 else ''}")
    axes = drawing.add_subplot()
    axes.set(
        xlabel=found.load.axis,
        ylabel=metric.title,
        title=_binds(found, metric),
    )
    values = _draw_runs(axes, found, metric)
    if not values:
        return
    _value_axis(axes, metric, [*values, *([] if bound is None else [bound])])
    if bound is not None:
        text = style.duration_text(bound) if metric.kind == "ms" else metric.text(bound)
        axes.axhline(bound, color=style.LIMIT, linestyle="--", linewidth=1.2, label=f"limit {text}")
    if found.bound is not None:
        rate = found.bound.rate * found.load.times
        label = f"{rate:.4g} {found.load.words}, kept in {found.bound.kept} of {seeds}"
        axes.axvline(rate, color=style.PALETTE[2], linewidth=1.4, label=label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4)


def shown_metric(found: Capacity) -> tuple[Metric, float | None]:
    """What breaks first under most seeds, and where; of an SLO the latency's P99, of a growing queue its mean."""
    name = next(iter(found.binding()), str(found.limits[0]))
    limit = next((limit for limit in found.limits if str(limit) == name), None)
    if limit is not None:
        return limit.metric, limit.bound
    if name == OVERLOADED:
        return QUEUE, None
    latency = name.removeprefix("slo.").removesuffix("_ms")
    of_session = latency.removeprefix("session_")
    key = f"p99_{latency}_ms" if of_session == latency else f"{SESSIONS}p99_{of_session}_ms"
    return REGISTRY[key], getattr(found.scenario.slo, f"{latency}_ms")


def _binds(found: Capacity, metric: Metric) -> str:
    words = {OVERLOADED: "a queue that keeps growing"}
    names = [words.get(name, name) for name in found.binding()]
    what = f"what binds: {', '.join(names)}" if names else metric.title
    limited = [limit for limit in found.limits if limit.metric.key in (WITHIN_SLO, SESSIONS_WITHIN_SLO)]
    return f"{what} ({100 * limited[0].bound:g} % must be within the SLO)" if limited else what


def _draw_runs(axes: Axes, found: Capacity, metric: Metric) -> list[float]:
    """Draw those near the capacity, and return what is shown."""
    centre, times = (found.bound.rate if found.bound else None), found.load.times
    near = [run for run in found.tried if centre is None or NEAR[0] <= run.rate / centre <= NEAR[1]]
    shown: list[float] = []
    for is_met, marker, colour, label in ((True, "o", style.PALETTE[0], "holds"), (False, "x", FAILS, "fails")):
        points = [(run.rate * times, run.runs.mean(metric)) for run in near if run.is_met == is_met]
        whole = [(x, y) for x, y in points if y is not None]
        if whole:
            xs, ys = [x for x, _ in whole], [y for _, y in whole]
            axes.scatter(xs, ys, color=colour, marker=marker, s=24, label=label, zorder=3)
            shown += ys
    return shown


def _value_axis(axes: Axes, metric: Metric, shown: list[float]) -> None:
    """Times are logarithmic, however near: just below the capacity they double within a few per cent of the rate."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if metric.kind != "ms" or min(shown) <= 0:
        style.value_axis(axes, "y", shown, is_time=metric.kind == "ms")
        if metric.is_share:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        return
    ratio = max(shown) / min(shown)
    axes.set_yscale("log")
    subs = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0) if ratio < 10 else (1.0, 2.0, 5.0) if ratio < 300 else (1.0, 3.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.duration_text(value)))
    axes.set_ylim(min(shown) / ratio**0.08, max(shown) * ratio**0.08)


def report(found: Capacity) -> str:
    """The answer, and where it comes from."""
    return "\n".join([*_lines(found)])


def save(found: Capacity, folder: Path, num_runs: int, more: Writers | None = None) -> list[Path]:
    """tune.json, trials.csv and capacity.png, and what `more` writes (a page)."""
    writers: Writers = {
        **(more or {}),
        "tune.json": lambda path: write_json(path, content(found, num_runs)),
        "trials.csv": lambda path: _write_runs(path, found),
        "capacity.png": lambda path: write(path, found),
    }
    return write_result(folder, writers, OWN_FILES, [found.scenario.engine.simulated_version])


def content(found: Capacity, num_runs: int) -> dict[str, Any]:
    """The content of tune.json; rates are values of `goal.capacity`, and `per_s` times them requests per second."""
    bound = found.bound
    return {
        "scenario": found.scenario.name,
        "seeds": found.seeds,
        "resample_blocks": num_blocks(found.scenario),
        "goal": {"capacity": found.load.key, "limits": [limit.content() for limit in found.limits]},
        "num_runs": num_runs,
        "feasible": found.is_feasible,
        "rate": bound
        and {
            "bound": bound.rate,
            "bound_per_s": bound.rate * found.load.times,
            "kept_in": bound.kept,
            "of_seeds": len(bound.seeds),
            "median": found.median,
        },
        "per_s": {"unit": found.load.words, "times": found.load.times},
        "rate_as_it_stands": found.load.own,
        "load": bound and found.load.own / bound.rate,
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
    yield f"{found.scenario.name}: the highest {found.load.what} with {limits}, and without a queue that keeps growing"
    yield from _runs(found)
    yield ""
    if found.bound is not None:
        yield from _answer(found, found.bound)
    elif not found.is_feasible:
        yield f"No {found.load.what} holds, not even {_per_s(found, found.lowest)}; the lowest that was tried:"
        run = min(found.tried, key=lambda run: run.rate)
        yield from (f"  {limit.metric.key} {number(run.means[limit.metric.key])}" for limit in found.limits)
    elif found.median is None:
        highest = _per_s(found, found.highest)
        yield f"No {found.load.what} fails under every seed, up to {highest}: {found.scenario.name} {_never(found)}"
    else:
        yield f"Each seed keeps some {found.load.what}, and all together none, down to {_per_s(found, found.lowest)}."
    if binds := found.binding():
        where = "just above it" if found.bound is not None else "at the lowest rate" if not found.is_feasible else ""
        total = len(found.seeds)
        words = ", ".join(f"{_words(name)} (in {count} of {total} runs)" for name, count in binds.items())
        yield f"What binds {where}: {words}".replace("  ", " ")
    if found.bound is not None and found.is_upper_bound:
        yield "Only the growing queue decides, which shows late: an upper bound, a few percent high in runs of a"
        yield f"thousand requests. {_more(found)}, or limit a latency."


def _runs(found: Capacity) -> Iterator[str]:
    """How many there were, and of what."""
    if len(found.seeds) == 1:
        yield f"{len(found.tried)} runs under seed {found.seeds[0]}: {ONE_RUN} at each rate"
        return
    yield f"{len(found.tried)} runs under seeds {found.seeds[0]} to {(found.bound or found).seeds[-1]}"
    if is_resampled(found.scenario):
        runs = runs_words(found.scenario, len((found.bound or found).seeds))
        pace = "" if found.load.is_users else ", at its own mean rate times rate_scale"
        yield f"The trace leaves nothing to the seed: these are {runs}{pace}."


def _answer(found: Capacity, bound: Bound) -> Iterator[str]:
    num, searched = len(bound.seeds), len(found.seeds)
    higher = "with more" if found.load.is_users else "at a rate 0.5 % higher"
    if num == 1:
        yield f"Capacity: {_per_s(found, bound.rate)}; {higher} the limits are broken."
    else:
        which = f"{searched} that were searched, {num - searched} that were not"
        yield f"Capacity: {_per_s(found, bound.rate)}, kept in {bound.kept} of {num} seeds ({which})"
        yield f"Half of the {searched} keep {_per_s(found, found.median)}; by seed:{_by_seed(found)}"
    if found.as_it_is is not None:
        yield f"The trace as it is, one run at each rate: {_per_s(found, found.as_it_is)}"
    own = found.load.own
    yield f"As it stands: {_per_s(found, own)}, {own / bound.rate:.0%} of the capacity"
    yield f"To run at it: {set_flags(found.settings(bound.rate))}"


def _never(found: Capacity) -> str:
    """Why no load may fail, and what to raise."""
    late = ", or lets in only so many at once (max_concurrency)"
    if found.load.is_users:
        late = ", or they come too seldom for more to be there at once" if found.scenario.workload.trace else ""
    return f"has too few {found.load.of_them}\nto overload it{late}. {_more(found)}."


def _more(found: Capacity) -> str:
    """How a longer run is had."""
    workload = found.scenario.workload
    if workload.trace is not None:
        return "Take a longer trace" + (", or raise rate_scale" if found.load.is_users else "")
    return f"Raise workload.{'sessions.num_sessions' if workload.sessions else 'num_prompts'}"


def _per_s(found: Capacity, rate: float | None) -> str:
    """With its unit, and for a trace the factor that makes it."""
    if rate is None:
        return "-"
    factor = f" (rate_scale {rate:.4g})" if found.load.key.endswith("rate_scale") else ""
    words = "user" if found.load.is_users and rate == 1 else found.load.words
    return f"{rate * found.load.times:.4g} {words}{factor}"


def _by_seed(found: Capacity) -> str:
    return "".join(f" {rate * found.load.times:.4g}" for rate in found.by_seed.values() if rate is not None)


def _words(name: str) -> str:
    return "a queue that keeps growing" if name == OVERLOADED else name


def _write_runs(path: Path, found: Capacity) -> None:
    runs = sorted(found.tried, key=lambda run: (run.seed, run.rate))
    rows = [[run.seed, run.rate, run.is_met, "; ".join(run.broken), *run.means.values()] for run in runs]
    write_csv(path, ["seed", found.load.key, "met", "broken", *METRICS], rows)
