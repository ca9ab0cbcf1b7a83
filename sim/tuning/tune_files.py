"""tune.json, trials.csv and tune.png of a search; nothing in them depends on the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from simbatch.sim.files import write_csv, write_json
from simbatch.sim.metrics.registry import HIGHER, LOWER, THROUGHPUT, Metric
from simbatch.sim.report import style
from simbatch.sim.results.files import Writers, write_result
from simbatch.sim.scenario import Scenario, num_blocks, resolve
from simbatch.sim.statistics import Interval
from simbatch.sim.tuning.finalists import TriedSettings, setting_words
from simbatch.sim.tuning.goal import METRICS, Goal
from simbatch.sim.tuning.space import SEQS
from simbatch.sim.tuning.vllm_flags import own_policy, set_flags, vllm_serve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from simbatch.sim.tuning import Tuned

OWN_FILES = ("tune.json", "trials.csv", "tune.png", "capacity.png", "report.html")
VERSION = "engine.vllm_version"
DEFAULT_COST = "p99_tpot_ms"


def save(tuned: Tuned, folder: Path, num_runs: int, more: Writers | None = None) -> list[Path]:
    """Write everything into `folder`, and what `more` writes (a page); returns the files."""
    writers: Writers = {
        **(more or {}),
        "tune.json": lambda path: write_json(path, content(tuned, num_runs)),
        "trials.csv": lambda path: write_trials(path, tuned),
        "tune.png": lambda path: draw(path, tuned, picture_axes(tuned.goal)),
    }
    return write_result(folder, writers, OWN_FILES, _versions(tuned))


def _versions(tuned: Tuned) -> list[str]:
    """Of vLLM, all that were searched."""
    searched = (axis for axis in tuned.space.axes if axis.key == VERSION)
    tried = [tuned.scenario.override({VERSION: value}) for axis in searched for value in axis.values]
    return [scenario.engine.simulated_version for scenario in (tuned.scenario, *tried)]


def content(tuned: Tuned, num_runs: int) -> dict[str, Any]:
    """The content of tune.json."""
    goal, space, scenario = tuned.goal, tuned.space, tuned.scenario
    return {
        "scenario": scenario.name,
        "seeds": tuned.seeds,
        "resample_blocks": num_blocks(scenario) if len(tuned.seeds) > 1 else None,
        "goal": {
            "maximize": [metric.key for metric in goal.metrics if metric.aim == HIGHER],
            "minimize": [metric.key for metric in goal.metrics if metric.aim == LOWER],
            "limits": [limit.content() for limit in goal.limits],
        },
        "searched": {axis.key: list(axis.values) for axis in space.axes},
        "num_combinations": len(space.points),
        "num_trials": len(tuned.trials),
        "num_runs": num_runs,
        "feasible": tuned.is_feasible,
        "binds": [limit.content() for limit in tuned.binding()],
        "best": tuned.recommended and _best(scenario, tuned.recommended),
        "do_arrivals_bind": tuned.do_arrivals_bind,
        "equals": [trial.number for trial in tuned.equals],
        "baseline": trial_content(tuned.baseline),
        "closest_to_limits": [{"limit": str(limit), **trial_content(tuned.closest_to(limit))} for limit in goal.limits],
        "pareto": [trial_content(trial) for trial in tuned.front],
        "knee": None
        if tuned.knee is None
        else {"number": tuned.front[tuned.knee.index].number, "distance": tuned.knee.distance},
        "confirmation": _confirmation(tuned),
        "finalists": _finalists(tuned),
    }


def _best(scenario: Scenario, trial: TriedSettings) -> dict[str, Any]:
    settings = trial.settings
    return trial_content(trial) | {
        "set": set_flags(settings),
        "vllm_serve": vllm_serve(scenario, settings),
        "policy_outside_vllm": own_policy(scenario, settings),
    }


def trial_content(trial: TriedSettings) -> dict[str, Any]:
    """Settings and measured figures."""
    figures = {key: value for key, value in trial.means.items() if value is not None}
    return {
        "number": trial.number,
        "settings": trial.settings,
        "metrics": figures,
        "overloaded_runs": trial.overloaded,
    }


def interval_content(interval: Interval | None) -> Mapping[str, float] | None:
    """An interval as JSON."""
    if interval is None:
        return None
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high, "confidence": 0.95}


def _confirmation(tuned: Tuned) -> dict[str, Any] | None:
    found = tuned.confirmation
    if found is None:
        return None
    return {
        "seeds": found.seeds,
        "resample_blocks": num_blocks(tuned.scenario),
        "runs_within_limits": found.within_limits,
        "baseline_mean": found.base_mean,
        "difference": interval_content(found.difference),
    }


def _finalists(tuned: Tuned) -> dict[str, Any] | None:
    found = tuned.finalists
    if found is None:
        return None
    return {
        "draws": len(found.bands.draws),
        "draws_within_limits": found.within_limits,
        "gain": found.gain and found.gain.as_dict(),
        "bands": found.bands.content(),
    }


def write_trials(path: Path, tuned: Tuned) -> None:
    """A row per trial: settings, every figure, how it stands."""
    keys = list(dict.fromkeys(key for trial in tuned.trials for key in _flat(trial)))
    front = {trial.number for trial in tuned.front}
    rows = []
    for trial in tuned.trials:
        states = [tuned.goal.is_met(trial.means), trial is tuned.recommended, trial.number in front]
        rows.append([trial.number, *map(_flat(trial).get, keys), *states, trial.overloaded, *trial.means.values()])
    columns = ["number", *keys, "within_limits", "best", "pareto", "overloaded_runs", *METRICS]
    write_csv(path, columns, rows)


def _flat(trial: TriedSettings) -> dict[str, Any]:
    """The settings with the policy's parts as keys of their own."""
    policy = trial.settings.get("policy", {})
    rest = {key: value for key, value in trial.settings.items() if key != "policy"}
    return rest | {f"policy.{key}": value for key, value in policy.items()}


def picture_axes(goal: Goal) -> tuple[Metric, Metric]:
    """What the picture shows upwards and to the right: figures of the goal first, else throughput and p99 TPOT."""
    decides = [METRICS[key] for key in goal.keys]
    up = next((metric for metric in decides if metric.aim == HIGHER), METRICS[THROUGHPUT])
    right = next((metric for metric in decides if metric.aim == LOWER), METRICS[DEFAULT_COST])
    return up, right


TRIED, FRONT, BEST, BASELINE = "#B5B5B5", style.PALETTE[0], style.PALETTE[2], style.PALETTE[3]
LEGEND_WIDTH = 110  # characters
MARGIN = 0.3  # beside a Pareto set, as a share of it
TICKS = ((10, (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)), (1000, (1.0, 2.0, 5.0)), (inf, (1.0,)))  # of logarithmic axes


def draw(path: Path, tuned: Tuned, axes_of: tuple[Metric, Metric]) -> None:
    """A point a trial; `axes_of` is what goes upwards and what goes to the right."""
    up, right = axes_of
    measured = [trial for trial in tuned.trials if None not in (trial.means[up.key], trial.means[right.key])]
    with style.figure(path, 8.6, 6.0) as drawing:
        axes = drawing.add_subplot()
        axes.set(xlabel=right.label, ylabel=up.label)
        within = [trial for trial in measured if tuned.goal.is_met(trial.means)]
        broken = [trial for trial in measured if not tuned.goal.is_met(trial.means)]
        _points(axes, broken, up, right, marker="x", color=TRIED, s=22, linewidths=0.9, label="limit broken")
        _points(axes, within, up, right, marker="o", color=TRIED, s=20, label="tried")
        if tuned.front:
            xs, ys = _coordinates(sorted(tuned.front, key=lambda trial: trial.means[right.key] or 0.0), up, right)
            axes.step(xs, ys, where="post", color=FRONT, linewidth=1.2, marker="o", markersize=4, label="Pareto set")
        _points(axes, [tuned.baseline], up, right, marker="s", color=BASELINE, s=45, label="as it stands")
        if tuned.recommended is not None:
            name = "knee" if tuned.knee else "recommended" if tuned.is_feasible else "least bad"
            label = "\n".join(wrap(f"{name}: {setting_words(tuned.best.settings)}", LEGEND_WIDTH))
            _points(axes, [tuned.best], up, right, marker="*", color=BEST, s=150, label=label, zorder=5)
        _batch_sizes(axes, tuned, up, right)
        _limits(axes, tuned, up, right)
        if tuned.knee:
            _chord(axes, tuned, up, right)
        outside = _frame(axes, tuned, measured, up, right) if measured else 0
        text = f"{tuned.scenario.name}: {len(tuned.trials)} settings tried"
        style.headline(drawing, text + (f", {outside} of them outside the picture" if outside else ""))
        is_long = tuned.recommended is not None and len(setting_words(tuned.best.settings)) > LEGEND_WIDTH / 3
        drawing.legend(loc="outside lower left", ncols=1 if is_long else 3, borderpad=0)
        if measured and not tuned.front:
            _label(axes, tuned, measured, up, right)


def _label(axes: Axes, tuned: Tuned, measured: Sequence[TriedSettings], up: Metric, right: Metric) -> None:
    """The settings beside the points for which there is room, the best first."""
    ranked = sorted(measured, key=lambda trial: tuned.goal.rank(trial.means))
    first = [trial for trial in (tuned.recommended, tuned.baseline) if trial is not None and trial in measured]
    places: dict[tuple[float, float], str] = {}
    for trial in [*first, *ranked]:
        (x,), (y,) = _coordinates([trial], up, right)
        words = [str(value["name"] if isinstance(value, dict) else value) for value in trial.settings.values()]
        places.setdefault((x, y), " / ".join(words) or "as it stands")
    drawn = [(x, y, words) for (x, y), words in places.items()]
    bounds = [limit.bound for limit in tuned.goal.limits if limit.metric.key == right.key]
    style.label_apart(axes, drawn, fontsize=7, uncrossed=bounds, color=style.INK)
    keys = " / ".join(key.rpartition(".")[2] for key in ranked[0].settings)
    axes.set_title(f"names of the points: {keys}", fontsize=8, color="#777777")


def _points(axes: Axes, trials: Sequence[TriedSettings], up: Metric, right: Metric, **style_of: object) -> None:
    xs, ys = _coordinates(trials, up, right)
    if xs:
        axes.scatter(xs, ys, **style_of)  # type: ignore[arg-type]


def _coordinates(trials: Sequence[TriedSettings], up: Metric, right: Metric) -> tuple[list[float], list[float]]:
    pairs = [(trial.means[right.key], trial.means[up.key]) for trial in trials]
    whole = [(x, y) for x, y in pairs if x is not None and y is not None]
    return [x for x, _ in whole], [y for _, y in whole]


def _limits(axes: Axes, tuned: Tuned, up: Metric, right: Metric) -> None:
    for limit in tuned.goal.limits:
        if limit.metric.key == right.key:
            axes.axvline(limit.bound, color=style.LIMIT, linestyle="--", linewidth=1.2, label=str(limit))
        elif limit.metric.key == up.key:
            axes.axhline(limit.bound, color=style.LIMIT, linestyle="--", linewidth=1.2, label=str(limit))


def _chord(axes: Axes, tuned: Tuned, up: Metric, right: Metric) -> None:
    """From end to end of the set: the knee is what is farthest above it."""
    xs, ys = _coordinates([tuned.front[0], tuned.front[-1]], up, right)
    axes.plot(xs, ys, color=FRONT, linewidth=0.9, linestyle=":", label="line between its ends")


def _batch_sizes(axes: Axes, tuned: Tuned, up: Metric, right: Metric) -> None:
    """Each point of a Pareto set carries its max_num_seqs; of those with the same figures the fewest."""
    own = resolve(tuned.scenario).engine.max_num_seqs
    seats: dict[tuple[float | None, float | None], int] = {}
    for trial in tuned.front:
        place = (trial.means[right.key], trial.means[up.key])
        seats[place] = min(trial.settings.get(SEQS, own), seats.get(place, 2**31))
    for place, number in seats.items():
        axes.annotate(f"{number}", place, (5, -9), textcoords="offset points", fontsize=8, annotation_clip=True)
    if seats:
        axes.plot([], [], " ", label="numbers: max_num_seqs")


def _frame(axes: Axes, tuned: Tuned, measured: Sequence[TriedSettings], up: Metric, right: Metric) -> int:
    """Scale both axes; returns how many points are outside: a Pareto set is shown with what is near it.

    A knee is one on linear axes, so that is how its picture is drawn.
    """
    is_near = bool(tuned.front)
    shown = _coordinates([*tuned.front, tuned.baseline] if is_near else measured, up, right)
    outside: set[int] = set()
    for name, values, all_values in zip("xy", shown, _coordinates(measured, up, right), strict=True):
        is_log = tuned.knee is None and name == "x" and min(values) > 0 and _is_wide(values)
        _scale(axes, name, values, is_log=is_log)
        if is_near:
            low, high = _around(values, is_log=is_log)
            getattr(axes, f"set_{name}lim")(low, high)
            outside |= {i for i, value in enumerate(all_values) if not low <= value <= high}
    return len(outside)


def _is_wide(values: Sequence[float]) -> bool:
    return max(values) / min(values) > style.LOG_FROM


def _around(values: Sequence[float], *, is_log: bool) -> tuple[float, float]:
    """What to show of an axis: the values, and beside them a third of what they span."""
    low, high = min(values), max(values)
    if is_log:
        factor = (high / low) ** MARGIN
        return low / factor, high * factor
    margin = max((high - low) * MARGIN, 0.02 * high, 1e-9)
    return max(low - margin, 0.0), high + margin


def _scale(axes: Axes, name: str, values: Sequence[float], *, is_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = getattr(axes, f"{name}axis")
    if is_log:
        getattr(axes, f"set_{name}scale")("log")
        ratio = max(values) / min(values)
        axis.set_major_locator(LogLocator(subs=next(subs for most, subs in TICKS if ratio <= most)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
