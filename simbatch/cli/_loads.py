"""`simbatch compare --rate`: the candidates at several loads, under the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.report.loads import LoadComparison
    from simbatch.sim.scenario import Resolved, Scenario
    from simbatch.sim.search.cells import Cell

FLAG = "--rate"
MIN_RATES = 2


def parse_rates(texts: Sequence[str]) -> list[float]:
    """`("2,4", "6")` as 2, 4, 6, in ascending order; UserError at what is no rate."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    rates = []
    for part in parts:
        try:
            rate = float(part)
        except ValueError:
            rate = math.nan
        if not (rate > 0 and math.isfinite(rate)):
            raise UserError(Problem(FLAG, "must be numbers above 0", part, "for example --rate 1,2,3"))
        rates.append(rate)
    twice = next((rate for rate in rates if rates.count(rate) > 1), None)
    if twice is not None:
        raise UserError(Problem(FLAG, "is named twice", f"{twice:g}", "name each rate once"))
    if len(rates) < MIN_RATES:
        mend = f"for example --rate {rates[0]:g},{2 * rates[0]:g}"
        raise UserError(Problem(FLAG, "needs at least two rates", f"{rates[0]:g}", mend))
    return sorted(rates)


def cells_at(candidates: Mapping[str, Resolved], rates: Sequence[float], seeds: Sequence[int]) -> dict[str, list[Cell]]:
    """Each candidate at each rate under each seed, in that order, checked."""
    from simbatch.sim.search.cells import cells_of
    from simbatch.sim.search.rates import at_rate

    cells = {}
    for label, resolved in candidates.items():
        settings = [at_rate(resolved.scenario, rate) for rate in rates]
        places = [dict.fromkeys(chosen, FLAG) for chosen in settings]
        cells[label] = cells_of(resolved.scenario, settings, seeds, places=places)
    return cells


def compared_at(
    candidates: Mapping[str, Resolved],
    cells: Mapping[str, list[Cell]],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    bonferroni: bool,
    jobs: int,
    quiet: bool,
) -> LoadComparison:
    """Run them all and put them side by side at each rate."""
    from simbatch.cli._replicate import summaries_of
    from simbatch.sim.report.loads import LoadComparison
    from simbatch.sim.results.experiment import Replicated
    from simbatch.sim.scenario.chance import has_chance, is_resampled
    from simbatch.sim.search.rates import rates_of

    found = summaries_of(cells, jobs=jobs, quiet=quiet)
    n = len(seeds)
    at = [
        Replicated(
            {label: runs[i * n : (i + 1) * n] for label, runs in found.items()},
            seeds,
            bonferroni,
            is_resampled=n > 1 and any(is_resampled(each.scenario) for each in candidates.values()),
        )
        for i in range(len(rates))
    ]
    scenario = next(iter(candidates.values())).scenario
    key, _ = next(iter(rates_of(scenario).items()))
    limits = {name.removesuffix("_ms"): limit for name, limit in scenario.slo.model_dump(exclude_none=True).items()}
    may_vary = any(has_chance(each.scenario) or is_resampled(each.scenario) for each in candidates.values())
    return LoadComparison(scenario.name, key, _axis(scenario), rates, at, limits, may_vary)


def _axis(scenario: Scenario) -> str:
    """What the rates are, for a reader of the figure."""
    workload = scenario.workload
    if workload.trace is not None:
        return "arrival rate / the trace's own"
    if workload.mix is not None:
        others = ", others in step" if len(workload.mix) > 1 else ""
        return f"request rate of {workload.mix[0].tenant} (req/s{others})"
    process = getattr(workload.arrival, "process", "gamma")
    what = {"on_off": "request rate in bursts", "daily": "mean request rate", "ramp": "request rate at the start"}
    return f"{what.get(process, 'request rate')} (req/s)"
