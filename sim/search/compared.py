"""What a comparison simulates: the candidates under several seeds, at one load or at several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from typing import Any

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.report.compare import Comparison, ReplicatedComparison
from simbatch.sim.report.loads import LoadComparison
from simbatch.sim.report.result import Result
from simbatch.sim.results import Experiment
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import has_chance, is_resampled, resampling, resolve, seeds_of
from simbatch.sim.scenario.model import Scenario
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.search import run_resolved
from simbatch.sim.search.cells import Cell, cells_of
from simbatch.sim.search.loads import RATE_FLAG, USERS_FLAG, OfferedLoad, asked_users, axis_of, of_rates, parse_rates
from simbatch.sim.search.run import OnResult, Say, Watch, run_cells

Candidate = str | Policy | Scenario
FLAGS = (RATE_FLAG, USERS_FLAG)
Objects = Mapping[str, Policy]  # candidates that are policies without a name, by label


def compare(
    scenario: Scenario,
    candidates: Mapping[str, Candidate] | Sequence[str] = (),
    *,
    rates: Sequence[float] | None = None,
    users: Sequence[int] | None = None,
    replications: int = 1,
    bonferroni: bool = False,
    jobs: int = -1,
    say: Say | None = None,
) -> Comparison | ReplicatedComparison | LoadComparison:
    """Simulate candidates on the same arrivals, under `replications` seeds each, at each of `rates` or of `users`.

    A candidate is a policy (its name, or an object) or a scenario; each is compared with the first. One alone is
    compared with the scenario as it stands; none, with loads, is the scenario's own load curve. `rates` are in
    requests per second (of a trace: of its rate_scale), `users` numbers of sessions or requests at once; `jobs`
    processes (-1: one per core). Raises UserError.
    """
    chosen = _candidates(scenario, candidates, least=1 if rates or users else 2)
    objects = {label: each for label, each in chosen.items() if isinstance(each, Policy)}
    as_given = {label: _resolved(scenario, each) for label, each in chosen.items()}
    resolved, seeds = under_seeds(as_given, replications, "replications", objects)
    loads = loads_from(map(_written, rates or ()), map(_written, users or ()), ("rates", "users"))

    def run(candidate: Resolved, _label: str) -> Result:
        return run_resolved(candidate)

    ways: dict[str, Any] = {"by_users": bool(users), "bonferroni": bonferroni, "objects": objects}
    return compared_under(resolved, seeds, loads, run, _unwatched, say, jobs=jobs, **ways)


def under_seeds(
    candidates: Mapping[str, Resolved], replications: int, origin: str, objects: Objects | None = None
) -> tuple[Mapping[str, Resolved], list[int]]:
    """The candidates as they run under several seeds, a trace resampled, and the seeds; as they stand under one."""
    policies, scenarios = objects or {}, {label: each.scenario for label, each in candidates.items()}
    seeds = seeds_of(scenarios.values(), replications)
    if len(seeds) == 1:
        return candidates, seeds
    changed = {label: each.override(resampling(each), origin=origin) for label, each in scenarios.items()}
    return {label: resolve(each, policies.get(label)) for label, each in changed.items()}, seeds


def compared_under(
    candidates: Mapping[str, Resolved],
    seeds: Sequence[int],
    loads: Sequence[float],
    run: Callable[[Resolved, str], Result],
    watch: Watch,
    say: Say | None,
    *,
    by_users: bool,
    bonferroni: bool,
    jobs: int,
    objects: Objects | None = None,
) -> Comparison | ReplicatedComparison | LoadComparison:
    """At each of the loads, else at the scenario's own: there the first seed's by `run`, and then the others."""
    if loads:
        load = load_asked(next(iter(candidates.values())).scenario, by_users=by_users)
        found = summaries_of(cells_at(candidates, load, loads, seeds, objects), watch, say, jobs=jobs)
        return compared_at(candidates, load, found, loads, seeds, bonferroni=bonferroni)
    cells = cells_under(candidates, seeds[1:], objects)
    first = Comparison({label: run(each, label) for label, each in candidates.items()})
    if len(seeds) == 1:
        return first
    others = summaries_of(cells, watch, say, jobs=jobs)
    return replicated(first, candidates, others, seeds, bonferroni=bonferroni)


def _written(value: float) -> str:
    return repr(float(value))


def loads_from(rates: Iterable[str], users: Iterable[str], places: tuple[str, str] = FLAGS) -> list[float]:
    """The loads that are asked for, ascending: rates, or numbers of users; UserError where it is both."""
    asked, at_once = [*rates], [*users]
    if asked and at_once:
        mend = "name one of them"
        raise UserError(Problem(places[1], f"is a load, and so is {places[0]}", ",".join(at_once), mend))
    if at_once:
        return parse_rates(at_once, place=places[1], whole=True)
    return parse_rates(asked, place=places[0]) if asked else []


def load_asked(scenario: Scenario, *, by_users: bool) -> OfferedLoad:
    """What the loads are values of; UserError where the scenario has no users, or no rate."""
    return asked_users(scenario) if by_users else of_rates(scenario)


def _candidates(
    scenario: Scenario, given: Mapping[str, Candidate] | Sequence[str], least: int
) -> Mapping[str, Candidate]:
    """By label, the scenario as it stands before a single one; UserError where there are too few."""
    if isinstance(given, str):
        given = [given]
    named: dict[str, Candidate] = {**given} if isinstance(given, Mapping) else {str(name): name for name in given}
    own = scenario.policy.name
    if len(named) < 2 and own not in named and (named or least == 1):
        named = {own: scenario, **named}
    if len(named) < least:
        mend = 'for example compare(scenario, {"mine": MyPolicy()}), or rates=[1, 2, 4]'
        raise UserError(Problem("candidates", "are too few to compare", [*named] or None, mend))
    return named


def _resolved(scenario: Scenario, candidate: Candidate) -> Resolved:
    return resolve(candidate) if isinstance(candidate, Scenario) else resolve(scenario, candidate)


def _unwatched(_total: int) -> AbstractContextManager[OnResult]:
    return nullcontext(lambda *_: None)


def cells_under(
    candidates: Mapping[str, Resolved], seeds: Sequence[int], objects: Objects | None = None
) -> dict[str, list[Cell]]:
    """Each candidate under each seed; UserError when there is no such seed."""
    policies = objects or {}
    return {
        label: cells_of(resolved.scenario, [{}], seeds, policy=policies.get(label))
        for label, resolved in (candidates.items() if seeds else ())
    }


def cells_at(
    candidates: Mapping[str, Resolved],
    load: OfferedLoad,
    values: Sequence[float],
    seeds: Sequence[int],
    objects: Objects | None = None,
) -> dict[str, list[Cell]]:
    """Each candidate at each of the load's values under each seed, in that order, checked."""
    cells, policies = {}, objects or {}
    for label, resolved in candidates.items():
        settings = [load.at(resolved.scenario, value) for value in values]
        places = [dict.fromkeys(chosen, FLAGS[load.is_users]) for chosen in settings]
        cells[label] = cells_of(resolved.scenario, settings, seeds, places=places, policy=policies.get(label))
    return cells


def summaries_of(
    cells: Mapping[str, Sequence[Cell]], watch: Watch, say: Say | None, *, jobs: int = -1
) -> dict[str, list[Summary]]:
    """The content of summary.json of each cell, in their order."""
    every = [cell for each in cells.values() for cell in each]
    with watch(len({cell.key for cell in every})) as tell:
        found = run_cells(every, jobs=jobs, on_result=tell, say=say)
    return {label: [found[cell.key] for cell in each] for label, each in cells.items()}


def replicated(
    first: Comparison,
    candidates: Mapping[str, Resolved],
    others: Mapping[str, Sequence[Summary]],
    seeds: Sequence[int],
    *,
    bonferroni: bool,
) -> ReplicatedComparison:
    """The first seed's results and the summaries of `cells_under` the other seeds."""
    of_trace = any(is_resampled(each.scenario) for each in candidates.values())
    experiment: Experiment[str] = Experiment(is_resampled=of_trace)
    for label, result in first.results.items():
        for seed, each in zip(seeds, [result.summary, *others[label]], strict=True):
            experiment.add(label, seed, each)
    return ReplicatedComparison(experiment, bonferroni=bonferroni, first=first)


def compared_at(
    candidates: Mapping[str, Resolved],
    load: OfferedLoad,
    found: Mapping[str, Sequence[Summary]],
    values: Sequence[float],
    seeds: Sequence[int],
    *,
    bonferroni: bool,
) -> LoadComparison:
    """The table of the summaries of `cells_at`."""
    of_trace = any(is_resampled(each.scenario) for each in candidates.values())
    experiment: Experiment[str] = Experiment(is_resampled=of_trace and len(seeds) > 1)
    for label, summaries in found.items():
        for (value, seed), summary in zip(product(values, seeds), summaries, strict=True):
            experiment.add(label, seed, summary, value)
    first = next(iter(candidates.values()))
    scenario = first.scenario
    limits = {name.removesuffix("_ms"): limit for name, limit in scenario.slo.of_requests().items()}
    may_vary = of_trace or any(has_chance(each.scenario) for each in candidates.values())
    axis = load.axis if load.is_users else axis_of(scenario)
    told: tuple[Any, ...] = (axis, experiment, limits, bonferroni, may_vary, first.dump(), load.times)
    return LoadComparison(scenario.name, load.key, *told)
