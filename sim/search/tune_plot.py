"""tune.png: everything that was tried, throughput against latency, with limits, front, knee and what is recommended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simbatch.sim.results.compared import Metric
from simbatch.sim.results.plots import style
from simbatch.sim.search.tune import Trial, Tuned, setting_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRIED, FRONT, BEST, BASELINE = "#B5B5B5", style.PALETTE[0], style.PALETTE[2], style.PALETTE[3]


def draw(path: Path, tuned: Tuned, axes_of: tuple[Metric, Metric]) -> None:
    """A point a trial; `axes_of` is what goes upwards and what goes to the right."""
    up, right = axes_of
    measured = [trial for trial in tuned.trials if None not in (trial.means[up.key], trial.means[right.key])]
    with style.figure(path, 8, 5.2) as drawing:
        style.headline(drawing, f"{tuned.scenario.name}: {len(tuned.trials)} settings tried")
        axes = drawing.add_subplot()
        axes.set(xlabel=right.key, ylabel=up.key)
        within = [trial for trial in measured if tuned.goal.is_met(trial.means)]
        broken = [trial for trial in measured if not tuned.goal.is_met(trial.means)]
        _points(axes, broken, up, right, marker="x", color=TRIED, s=22, linewidths=0.9, label="limit broken")
        _points(axes, within, up, right, marker="o", color=TRIED, s=20, label="tried")
        if tuned.front:
            xs, ys = _coordinates(sorted(tuned.front, key=lambda trial: trial.means[right.key] or 0.0), up, right)
            axes.step(xs, ys, where="post", color=FRONT, linewidth=1.2, marker="o", markersize=4, label="Pareto set")
        _points(axes, [tuned.baseline], up, right, marker="s", color=BASELINE, s=45, label="as it stands")
        name = "knee" if tuned.knee else "recommended" if tuned.is_feasible else "least bad"
        label = f"{name}: {setting_words(tuned.best.settings)}"
        _points(axes, [tuned.best], up, right, marker="*", color=BEST, s=150, label=label, zorder=5)
        _limits(axes, tuned, up, right)
        _scale(axes, [trial.means[right.key] or 0.0 for trial in measured])
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)


def _points(axes: Axes, trials: Sequence[Trial], up: Metric, right: Metric, **style_of: object) -> None:
    xs, ys = _coordinates(trials, up, right)
    if xs:
        axes.scatter(xs, ys, **style_of)  # type: ignore[arg-type]


def _coordinates(trials: Sequence[Trial], up: Metric, right: Metric) -> tuple[list[float], list[float]]:
    pairs = [(trial.means[right.key], trial.means[up.key]) for trial in trials]
    whole = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in whole], [y for _, y in whole]


def _limits(axes: Axes, tuned: Tuned, up: Metric, right: Metric) -> None:
    for limit in tuned.goal.limits:
        if limit.metric.key == right.key:
            axes.axvline(limit.bound, color=style.LIMIT, linestyle="--", linewidth=1.2, label=str(limit))
        elif limit.metric.key == up.key:
            axes.axhline(limit.bound, color=style.LIMIT, linestyle="--", linewidth=1.2, label=str(limit))


def _scale(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import LogFormatter, LogLocator

    if values and min(values) > 0 and max(values) / min(values) > style.LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(10, 10)))
