"""What `simbatch compare` simulates: the candidates under several seeds, at one load or at several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from simbatch.sim.report.loads import LoadComparison
from simbatch.sim.results.experiment import Experiment
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario.chance import has_chance, is_resampled
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.search.cells import Cell, cells_of
from simbatch.sim.search.rates import RATE_FLAG, at_rate, axis_of, rates_of
from simbatch.sim.search.run import Say, Watch, run_cells


def cells_under(candidates: Mapping[str, Resolved], seeds: Sequence[int]) -> dict[str, list[Cell]]:
    """Each candidate under each seed; UserError when there is no such seed."""
    return {label: cells_of(resolved.scenario, [{}], seeds) for label, resolved in candidates.items()} if seeds else {}


def cells_at(candidates: Mapping[str, Resolved], rates: Sequence[float], seeds: Sequence[int]) -> dict[str, list[Cell]]:
    """Each candidate at each rate under each seed, in that order, checked."""
    cells = {}
    for label, resolved in candidates.items():
        settings = [at_rate(resolved.scenario, rate) for rate in rates]
        places = [dict.fromkeys(chosen, RATE_FLAG) for chosen in settings]
        cells[label] = cells_of(resolved.scenario, settings, seeds, places=places)
    return cells


def summaries_of(
    cells: Mapping[str, Sequence[Cell]], watch: Watch, say: Say, *, jobs: int = -1
) -> dict[str, list[Summary]]:
    """The content of summary.json of each cell, in their order."""
    every = [cell for each in cells.values() for cell in each]
    with watch(len({cell.key for cell in every})) as tell:
        found = run_cells(every, jobs=jobs, on_result=tell, say=say)
    return {label: [found[cell.key] for cell in each] for label, each in cells.items()}


def under_seeds(
    first: Mapping[str, Summary], others: Mapping[str, Sequence[Summary]], seeds: Sequence[int], *, is_resampled: bool
) -> Experiment[str]:
    """The table of the first seed's summaries and those of `cells_under` the others."""
    experiment: Experiment[str] = Experiment(is_resampled=is_resampled)
    for label, summary in first.items():
        for seed, each in zip(seeds, [summary, *others[label]], strict=True):
            experiment.add(label, seed, each)
    return experiment


def compared_at(
    candidates: Mapping[str, Resolved],
    found: Mapping[str, Sequence[Summary]],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    bonferroni: bool,
) -> LoadComparison:
    """The table of the summaries of `cells_at`."""
    of_trace = any(is_resampled(each.scenario) for each in candidates.values())
    experiment: Experiment[str] = Experiment(is_resampled=of_trace and len(seeds) > 1)
    for label, summaries in found.items():
        for (rate, seed), summary in zip(product(rates, seeds), summaries, strict=True):
            experiment.add(label, seed, summary, rate)
    first = next(iter(candidates.values()))
    scenario = first.scenario
    limits = {name.removesuffix("_ms"): limit for name, limit in scenario.slo.model_dump(exclude_none=True).items()}
    may_vary = of_trace or any(has_chance(each.scenario) for each in candidates.values())
    key = next(iter(rates_of(scenario)))
    axis, resolved = axis_of(scenario), first.dump()
    return LoadComparison(scenario.name, key, axis, experiment, limits, bonferroni, may_vary, resolved)
