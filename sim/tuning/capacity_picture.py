"""capacity.png: what binds, over the rate: where the limits are kept and where not, and the rate that holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from simbatch.sim.metrics.metric import Metric
from simbatch.sim.metrics.registry import REGISTRY, WITHIN_SLO
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.report import style
from simbatch.sim.tuning.capacity import Capacity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        xlabel=found.unit.axis,
        ylabel=metric.title,
        title=_binds(found, metric),
    )
    values = _runs(axes, found, metric)
    if not values:
        return
    _value_axis(axes, metric, [*values, *([] if bound is None else [bound])])
    if bound is not None:
        text = style.duration_text(bound) if metric.kind == "ms" else metric.text(bound)
        axes.axhline(bound, color=style.LIMIT, linestyle="--", linewidth=1.2, label=f"limit {text}")
    if found.bound is not None:
        rate = found.bound.rate * found.unit.times
        label = f"{rate:.4g} {found.unit.words}, kept in {found.bound.kept} of {seeds}"
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
    return REGISTRY[f"p99_{latency}_ms"], getattr(found.scenario.slo, f"{latency}_ms")


def _binds(found: Capacity, metric: Metric) -> str:
    words = {OVERLOADED: "a queue that keeps growing"}
    names = [words.get(name, name) for name in found.binding()]
    what = f"what binds: {', '.join(names)}" if names else metric.title
    limited = [limit for limit in found.limits if limit.metric.key == WITHIN_SLO]
    return f"{what} ({100 * limited[0].bound:g} % must be within the SLO)" if limited else what


def _runs(axes: Axes, found: Capacity, metric: Metric) -> list[float]:
    """Draw those near the capacity, and return what is shown."""
    centre, times = (found.bound.rate if found.bound else None), found.unit.times
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
