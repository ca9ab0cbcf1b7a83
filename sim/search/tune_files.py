"""tune.json, trials.csv and tune.png; nothing in them depends on the machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simbatch.sim.files import write_json
from simbatch.sim.results.files import write_result
from simbatch.sim.results.registry import HIGHER, LOWER, THROUGHPUT, Metric
from simbatch.sim.scenario import Scenario
from simbatch.sim.scenario.chance import num_blocks
from simbatch.sim.search.tune import Tuned
from simbatch.sim.search.tune_flags import own_policy, set_flags, vllm_serve
from simbatch.sim.search.tune_goal import METRICS, Goal, Limit
from simbatch.sim.search.tune_trial import Trial
from simbatch.sim.statistics.intervals import Interval

OWN_FILES = ("tune.json", "trials.csv", "tune.png", "capacity.png")
DEFAULT_COST = "p99_tpot_ms"


def save(tuned: Tuned, folder: Path, num_runs: int) -> list[Path]:
    """Write everything into `folder`; returns the files."""
    from simbatch.sim.search.tune_plot import draw

    writers = {
        "tune.json": lambda path: write_json(path, content(tuned, num_runs)),
        "trials.csv": lambda path: write_trials(path, tuned),
        "tune.png": lambda path: draw(path, tuned, picture_axes(tuned.goal)),
    }
    return write_result(folder, writers, OWN_FILES)


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
            "limits": [limit_content(limit) for limit in goal.limits],
        },
        "searched": {axis.key: list(axis.values) for axis in space.axes},
        "num_combinations": len(space.points),
        "num_trials": len(tuned.trials),
        "num_runs": num_runs,
        "feasible": tuned.is_feasible,
        "binds": [limit_content(limit) for limit in tuned.binding()],
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
    }


def _best(scenario: Scenario, trial: Trial) -> dict[str, Any]:
    settings = trial.settings
    return trial_content(trial) | {
        "set": set_flags(settings),
        "vllm_serve": vllm_serve(scenario, settings),
        "policy_outside_vllm": own_policy(scenario, settings),
    }


def trial_content(trial: Trial) -> dict[str, Any]:
    """Settings and measured figures."""
    figures = {key: value for key, value in trial.means.items() if value is not None}
    return {
        "number": trial.number,
        "settings": trial.settings,
        "metrics": figures,
        "overloaded_runs": trial.overloaded,
    }


def limit_content(limit: Limit) -> dict[str, Any]:
    """A limit as JSON."""
    return {"metric": limit.metric.key, "at_most" if limit.metric.aim == LOWER else "at_least": limit.bound}


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


def write_trials(path: Path, tuned: Tuned) -> None:
    """A row per trial: settings, every figure, how it stands."""
    import csv

    keys = list(dict.fromkeys(key for trial in tuned.trials for key in _flat(trial)))
    front = {trial.number for trial in tuned.front}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["number", *keys, "within_limits", "best", "pareto", "overloaded_runs", *METRICS])
        for trial in tuned.trials:
            flat = _flat(trial)
            states = [tuned.goal.is_met(trial.means), trial is tuned.recommended, trial.number in front]
            values = [trial.means[key] for key in METRICS]
            words = [str(state).lower() for state in states]
            writer.writerow([trial.number, *(flat.get(key) for key in keys), *words, trial.overloaded, *values])


def _flat(trial: Trial) -> dict[str, Any]:
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
