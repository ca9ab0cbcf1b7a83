"""What is round a choice: how far the traffic may grow, one replica down, and the bands."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from simbatch.sim.plan.fleet import FleetBands, FleetPlan, Growth, Rules
from simbatch.sim.plan.search import Asking, Evaluate, KindSearch, Sizing, resolved_with, together
from simbatch.sim.plan.verdict import Verdict
from simbatch.sim.results.runs import Summary
from simbatch.sim.search.bands import all_settings, bands_from

GROWTH_PRECISION, MAX_GROWTH = 1.05, 8.0
MAX_TIMES, MAX_MORE = 2, 4  # a draw that needs more replicas than twice as many and four is not followed further


def grow(search: KindSearch, sizing: Sizing, rules: Rules) -> Asking[Growth]:
    """How many times the traffic all replicas bear, the spare ones too; to 5 %."""
    assert sizing.replicas is not None
    replicas, rate = sizing.replicas + rules.spare, search.demand.rate
    held, failed, factor, breaks = 1.0, inf, 1.25, None
    while failed > held * GROWTH_PRECISION and held < MAX_GROWTH:
        (verdict,) = yield from search.judge([search.fleet(rate * factor, replicas, sizing.option)])
        if verdict.is_kept:
            held = factor
        else:
            failed, breaks = factor, verdict.nearest
        factor = held * 1.5 if failed == inf else (held * failed) ** 0.5
    return Growth(held, breaks)


def one_down(search: KindSearch, plan: FleetPlan) -> Asking[Verdict | None]:
    """All traffic on one replica fewer than are paid for; None of a single one."""
    sizing = plan.chosen
    assert sizing is not None
    assert sizing.replicas is not None
    left = sizing.replicas + plan.rules.spare - 1
    if left < 1:
        return None
    (verdict,) = yield from search.judge([search.fleet(search.demand.rate, left, sizing.option)])
    return verdict


def fleet_bands(search: KindSearch, sizing: Sizing, evaluate: Evaluate, num_draws: int) -> FleetBands:
    """All draws side by side, each at the size that was chosen, then at those round it."""
    one = resolved_with(search.demand, search.fleet(search.demand.rate, 1, sizing.option))
    drawn = all_settings(one, num_draws)
    found = together({i: _of_draw(search, sizing, drawn[i], i < num_draws) for i in range(len(drawn))}, evaluate)
    replicas = [n for _, n in list(found.values())[:num_draws]]
    return FleetBands(bands_from(one, [summary for summary, _ in found.values()]), replicas)


def _of_draw(
    search: KindSearch, sizing: Sizing, drawn: Mapping[str, Any], is_sized: bool
) -> Asking[tuple[Summary, int | None]]:
    """What a draw says of the chosen size, and (where it `is_sized`) the smallest one that it needs."""
    assert sizing.replicas is not None
    replicas, seed = sizing.replicas, search.seeds[0]
    (first,) = yield [({**search.fleet(search.demand.rate, replicas, sizing.option), **drawn}, seed)]
    is_kept = Verdict.of([first], search.limits).is_kept
    step = -1 if is_kept else max(1, replicas // 10)
    smallest = replicas if is_kept else None
    if not is_sized:
        return first, smallest
    while 1 <= (replicas := replicas + step) <= search.max_replicas:
        (summary,) = yield [({**search.fleet(search.demand.rate, replicas, sizing.option), **drawn}, seed)]
        if Verdict.of([summary], search.limits).is_kept:
            smallest = replicas
            if step > 0:
                break
        elif step < 0 or replicas > MAX_TIMES * sizing.replicas + MAX_MORE:
            break
    return first, smallest
