"""`simbatch tune`: the best settings for a goal, or the capacity of the settings that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import (
    Asked,
    Count,
    html_option,
    jobs_option,
    json_option,
    quiet_option,
    scenario_options,
    version_option,
    with_asked,
)
from simbatch.cli._output import Output, progress_of
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.metrics.registry import Metric
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.search.cells import CellStore
    from simbatch.sim.search.run import Runner
    from simbatch.sim.tuning.goal import Goal, Limit
    from simbatch.sim.tuning.space import Space

    RunnerOf = Callable[[str, int | None], AbstractContextManager[Runner]]


@click.command()
@scenario_options
@version_option
@click.option(
    "--maximize",
    metavar="METRIC",
    help="throughput, goodput (the default with an SLO), or another figure of summary.json.",
)
@click.option("--limit", "limits", multiple=True, metavar="METRIC=N", help="--limit p99_tpot_ms=50. Can be repeated.")
@click.option("--pareto", metavar="METRICS", help="The Pareto set of these: --pareto throughput,p99_ttft_ms.")
@click.option("--knee", is_flag=True, help="Recommend the knee of the Pareto set (of throughput and p99_tpot_ms).")
@click.option(
    "--capacity",
    is_flag=True,
    help="Find the highest request rate, or number of users, that meets the SLO or the limits.",
)
@click.option("--over", multiple=True, metavar="KEY=VALUES", help="Search this key: --over engine.max_num_seqs=8,16.")
@click.option("--trials", type=Count, metavar="N", help="Settings to try (a fifth of the combinations, 20 to 60).")
@click.option(
    "--replications",
    type=Count,
    metavar="N",
    help="Seeds for each (1; for --capacity 8); of a trace: resampled in blocks.",
)
@click.option("--confirm", type=click.IntRange(min=0), default=5, metavar="N", help="Fresh seeds for the winner (5).")
@click.option("--no-bands", is_flag=True, help="Leave out the draws of what the profile is in doubt about.")
@jobs_option
@html_option
@click.option("--resume", is_flag=True, help="Take simulations from DIR that an earlier search has run.")
@json_option("tune.json instead of the report")
@quiet_option
@with_asked
def tune(
    asked: Asked,
    maximize: str | None,
    limits: tuple[str, ...],
    pareto: str | None,
    knee: bool,
    capacity: bool,
    over: tuple[str, ...],
    trials: int | None,
    replications: int | None,
    confirm: int,
    no_bands: bool,
    resume: bool,
) -> None:
    """Search the settings of the scenario in FILE for the best ones, and say how they compare with those it has.

    Without --over and without a section `tune` in FILE, max_num_seqs, max_num_batched_tokens and the policy are
    searched (with --knee max_num_seqs alone). Results go to DIR, by default results/<name of FILE>-tune
    (-pareto, -knee or -capacity with these flags).
    """
    from simbatch.sim.search.bands import NUM_DRAWS
    from simbatch.sim.search.cells import CellStore
    from simbatch.sim.tuning.goal import Limit
    from simbatch.sim.tuning.tune_files import OWN_FILES

    _check_flags(maximize, pareto, knee, capacity, over, trials)
    scenario = asked.load()
    kept = tuple(map(Limit.parse, limits))
    output = Output(asked, f"{asked.file.stem}-{_mode(pareto, knee, capacity)}", OWN_FILES)
    runner_of = partial(_runner, asked, scenario, CellStore(output.folder / "cells"), resume)
    if capacity:
        text, written, unread = _capacity(asked, scenario, kept, output.folder, replications, runner_of)
    else:
        goal = _goal(maximize or _default_goal(scenario), pareto, knee, kept)
        space = _space(scenario, goal, over, knee)
        sizes = (trials, replications or 1, confirm, 0 if no_bands else NUM_DRAWS)
        text, written, unread = _tune(asked, space, goal, output.folder, sizes, knee, runner_of)
    output.show(written, lambda: text, "tune.json", unread=unread)


@contextmanager
def _runner(
    asked: Asked, scenario: Scenario, store: CellStore, resume: bool, name: str, total: int | None
) -> Iterator[Runner]:
    from simbatch.sim.search.run import Runner

    with progress_of(f"{name}, simulations", total, quiet=asked.quiet) as progress:
        yield Runner(scenario, store, jobs=asked.jobs, resume=resume, progress=progress)


def _tune(
    asked: Asked,
    space: Space,
    goal: Goal,
    folder: Path,
    sizes: tuple[int | None, int, int, int],
    knee: bool,
    runner_of: RunnerOf,
) -> tuple[str, list[Path], list[str]]:
    from simbatch.sim.report.page.page import page_writer
    from simbatch.sim.tuning import default_trials, tune
    from simbatch.sim.tuning.pages import tune_page
    from simbatch.sim.tuning.tune_files import save
    from simbatch.sim.tuning.tune_report import report

    trials, replications, confirm, num_draws = sizes
    goal.check_slo(space.scenario.slo)
    trials = default_trials(space) if trials is None else trials
    ways: dict[str, Any] = {"trials": trials, "replications": replications, "confirm": confirm, "num_draws": num_draws}
    with runner_of("tune", trials * replications + 2 * (confirm + num_draws)) as runner:
        tuned = tune(space, goal, runner, wants_knee=knee, **ways)
    written = save(tuned, folder, runner.num_runs, page_writer(partial(tune_page, tuned), html=asked.html))
    return report(tuned), written, runner.unread


def _capacity(
    asked: Asked,
    scenario: Scenario,
    limits: tuple[Limit, ...],
    folder: Path,
    replications: int | None,
    runner_of: RunnerOf,
) -> tuple[str, list[Path], list[str]]:
    from simbatch.sim.tuning.ask_capacity import CapacityAnswer
    from simbatch.sim.tuning.capacity import REPLICATIONS, capacity_limits, find_capacity
    from simbatch.sim.tuning.goal import Goal

    replications = replications or REPLICATIONS
    if replications < 2:
        rule = "a bound needs at least two seeds"
        raise UserError(Problem("--replications", rule, replications, "leave it out for 8"))
    limits = capacity_limits(scenario, limits)
    Goal((), limits).check_slo(scenario.slo)
    with runner_of("capacity", None) as runner:
        answer = CapacityAnswer(find_capacity(scenario, limits, runner, replications), runner.num_runs)
    return answer.text(), answer.save(folder, html=asked.html), runner.unread


def _mode(pareto: str | None, knee: bool, capacity: bool) -> str:
    """The folder's ending: what is asked for, so that one answer does not take the place of another."""
    if capacity:
        return "capacity"
    return "knee" if knee else "pareto" if pareto else "tune"


def _default_goal(scenario: Scenario) -> str:
    """What to make large where nobody says."""
    from simbatch.sim.metrics.registry import SESSION_GOODPUT

    if scenario.slo.of_requests():
        return "goodput"
    return SESSION_GOODPUT if scenario.slo.of_sessions() else "throughput"


def _goal(maximize: str, pareto: str | None, knee: bool, limits: tuple[Limit, ...]) -> Goal:
    from simbatch.sim.tuning.goal import Goal, metric_of

    if pareto is None and not knee:
        flag = "--maximize"
        metric = metric_of(maximize, flag)
        if metric.aim != "higher":
            rule = "is better when it is small"
            raise UserError(Problem(flag, rule, metric.key, f"write --limit {metric.key}=..., or --pareto"))
        return Goal((metric,), limits)
    names = (pareto or "throughput,p99_tpot_ms").split(",")
    metrics = tuple(dict.fromkeys(metric_of(name, "--pareto") for name in names if name.strip()))
    if len(metrics) < 2:
        raise UserError(Problem("--pareto", "needs at least two metrics", pareto, "write throughput,p99_ttft_ms"))
    if knee:
        _check_knee(metrics, pareto)
    return Goal(metrics, limits)


def _check_knee(metrics: Sequence[Metric], given: str | None) -> None:
    if {metric.aim for metric in metrics} != {"higher", "lower"} or len(metrics) != 2:
        rule = "a knee lies between one figure that should be high and one that should be low"
        raise UserError(Problem("--pareto", rule, given, "for example throughput,p99_tpot_ms"))


def _space(scenario: Scenario, goal: Goal, over: tuple[str, ...], knee: bool) -> Space:
    """What is searched: --over, else the scenario's own block, else what is usual."""
    from simbatch.sim.scenario import resolve
    from simbatch.sim.search.sweep_grid import parse_over
    from simbatch.sim.tuning.space import Space, axes_of, default_axes, seats_axis

    resolved = resolve(scenario)
    if over:
        return Space(scenario, axes_of(parse_over(over), "--over"), "--over")
    if scenario.tune:
        place = scenario.locate(("tune",))
        return Space(scenario, axes_of(scenario.tune, place), place)
    return Space(scenario, [seats_axis(resolved)] if knee else default_axes(resolved, goal.limits))


def _check_flags(
    maximize: str | None,
    pareto: str | None,
    knee: bool,
    capacity: bool,
    over: tuple[str, ...],
    trials: int | None,
) -> None:
    """Flags that ask for different things; UserError before any time is spent."""
    if capacity and (maximize or pareto or knee or over or trials):
        rule = "finds the rate for the settings as they stand, and searches none"
        mend = "search first, then take what it recommends with --set"
        raise UserError(Problem("--capacity", rule, mend=mend))
    if maximize and (pareto or knee):
        rule = "asks for one best figure, --pareto and --knee for a trade-off"
        raise UserError(Problem("--maximize", rule, maximize, "leave one of them out"))
