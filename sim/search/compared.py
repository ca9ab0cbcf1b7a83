"""What `simbatch compare` simulates: the candidates under several seeds, at one load or at several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simbatch.sim.report.loads import LoadComparison
from simbatch.sim.results.experiment import Replicated
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario.chance import has_chance, is_resampled
from simbatch.sim.scenario.resolve import Resolved
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


def compared_at(
    candidates: Mapping[str, Resolved],
    found: Mapping[str, Sequence[Summary]],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    bonferroni: bool,
) -> LoadComparison:
    """Put the summaries of `cells_at` side by side at each rate."""
    n = len(seeds)
    of_trace = any(is_resampled(each.scenario) for each in candidates.values())
    at = [
        Replicated(
            {label: runs[i * n : (i + 1) * n] for label, runs in found.items()},
            seeds,
            bonferroni,
            is_resampled=n > 1 and of_trace,
        )
        for i in range(len(rates))
    ]
    scenario = next(iter(candidates.values())).scenario
    limits = {name.removesuffix("_ms"): limit for name, limit in scenario.slo.model_dump(exclude_none=True).items()}
    may_vary = of_trace or any(has_chance(each.scenario) for each in candidates.values())
    return LoadComparison(scenario.name, next(iter(rates_of(scenario))), axis_of(scenario), rates, at, limits, may_vary)
