"""The page of a plan: the fleet to rent, every shape's cost beside what its users feel, and how sure the number is.

The picture, plan.png, shows what each fleet costs an hour, against the latency (or share) that is limited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.cost.uncertainty import caveats, error_line
from simbatch.sim.plan import FleetPlan
from simbatch.sim.plan.report import report, scenario_content, serve_lines, shapes
from simbatch.sim.plan.words import fleet_label, limited_by, sentence, shape_label
from simbatch.sim.report import style
from simbatch.sim.report.page.charts import PageChart, Panel, bars, is_wide, limit, points, span
from simbatch.sim.report.page.page import PageTable, ReportPage, bands_table
from simbatch.sim.scenario import resolve
from simbatch.sim.tuning.goal import Limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHOSEN, OTHER = style.PALETTE[2], style.PALETTE[0]
HOURS_A_MONTH = 730
SIZE = (7.2, 4.4)  # inches of the picture


def plan_page(plan: FleetPlan) -> ReportPage:
    """Where there is no fleet, the page says why not."""
    chosen, scenario = plan.chosen, plan.demand.scenario
    header, rows = shapes(plan)
    return ReportPage(
        title=f"{fleet_label(plan, chosen) if chosen else 'No fleet'} for {plan.demand.rate:g} req/s",
        about=f"{len(plan.sizings)} shapes of fleets, sized by simbatch plan",
        answer=[*_answer(plan)],
        warnings=[*plan.notes],
        charts=[*(_cost_chart(plan, each) for each in plan.limits), *_cost_bars(plan), *_draws_chart(plan)],
        tables=[PageTable("Every shape", header, rows), _why(plan), *_bands(plan)],
        settings=[_limits(plan), _prices(plan)],
        trust=[*_trust(plan)],
        scenario=scenario_content(plan, chosen) if chosen else resolve(scenario).dump(),
        seeds=plan.seeds,
        text=report(plan),
    )


def _answer(plan: FleetPlan) -> Iterator[tuple[str, str]]:
    chosen = plan.chosen
    yield "Answer", sentence(plan)
    if chosen is None:
        return
    if (cost := plan.cost_per_hour(chosen)) is not None:
        yield "Cost", f"{cost:,.2f} $/h, about {cost * HOURS_A_MONTH:,.0f} $ a month."
    yield "What limits it", f"{limited_by(plan, chosen)}."
    if plan.banded is not None:
        advice = plan.banded.bands.narrow([each.metric.key for each in plan.limits])
        total = len(plan.banded.replicas)
        same = sum(n == chosen.replicas for n in plan.banded.replicas)
        measure = f"; what to measure to narrow it: {advice}" if advice else ""
        yield "How sure", f"{same} of {total} draws of what the profile is in doubt about need just as many{measure}."
    else:
        yield "How sure", "no draws of what the profile is in doubt about were simulated (--no-bands)."
    yield "To serve it", "\n".join(serve_lines(plan))


def _cost_chart(plan: FleetPlan, each: Limit) -> PageChart:
    """Cost of every shape against one figure that is limited; without prices its GPUs."""
    has_prices = any(plan.cost_per_hour(sizing) is not None for sizing in plan.sizings)
    traces, scale = [], each.metric.scale
    for i, sizing in enumerate(plan.ranked):
        cost = plan.cost_per_hour(sizing) if has_prices else plan.rules.paid_gpus(sizing)
        value = None if sizing.verdict is None else sizing.verdict.values[each.metric.key]
        if cost is None or value is None:
            continue
        look = {"symbol": "star", "size": 16} if sizing is plan.chosen else {"size": 10}
        colour = style.PALETTE[i % len(style.PALETTE)]
        name = fleet_label(plan, sizing)
        hover = "%{x:,.2f}, %{y:,.4~g}"
        traces.append(points(name, [cost], [scale * value], colour, hover, marker=look))
    x = "cost of the fleet ($/h)" if has_prices else "GPUs of the fleet"
    note = "A star is what is recommended." if traces else "No shape keeps the limits."
    (_, most), (_, high) = span(traces, "x"), span(traces, "y")
    traces.append(limit(str(each), [0, most], [scale * each.bound] * 2))
    is_log = is_wide(min(high, scale * each.bound), max(high, scale * each.bound))
    return PageChart(f"{each.metric.title} and cost", x, [Panel(each.metric.unit, traces, is_log=is_log)], note)


def _cost_bars(plan: FleetPlan) -> Iterator[PageChart]:
    """What each shape costs, the cheapest first."""
    known = [(sizing, cost) for sizing in plan.ranked if (cost := plan.cost_per_hour(sizing)) is not None]
    if len(known) < 2:
        return
    names = [fleet_label(plan, sizing) for sizing, _ in known]
    colours = [CHOSEN if sizing is plan.chosen else OTHER for sizing, _ in known]
    texts = [f"{cost:,.2f}" for _, cost in known]
    look = {"text": texts, "textposition": "inside", "insidetextanchor": "start"}
    trace = bars("cost", names, [cost for _, cost in known], colours, "%{x}: %{y:,.2f} $/h", **look)
    yield PageChart("What each costs", "", [Panel("$/h", [trace])], x_axis={"type": "category"})


def _draws_chart(plan: FleetPlan) -> Iterator[PageChart]:
    """How many replicas each draw of the profile's doubts needs."""
    if plan.banded is None or plan.chosen is None:
        return
    counts = Counter(plan.banded.replicas)
    known = sorted(number for number in counts if number is not None)
    names = [f"{number + plan.rules.spare}" for number in known]
    heights = [counts[number] for number in known]
    colours = [CHOSEN if number == plan.chosen.replicas else OTHER for number in known]
    if counts[None]:
        names, heights, colours = [*names, "more"], [*heights, counts[None]], [*colours, style.LIMIT]
    trace = bars("draws", names, heights, colours, "%{x} replicas: %{y} draws")
    note = "Draws of what the profile is in doubt about; green is what is recommended."
    yield PageChart(
        "How sure the number is",
        "replicas that a draw needs",
        [Panel("draws", [trace])],
        note,
        x_axis={"type": "category"},
    )


def _why(plan: FleetPlan) -> PageTable:
    rows = [(shape_label(sizing), limited_by(plan, sizing)) for sizing in plan.ranked]
    return PageTable("What limits each", ("", ""), rows, num_left=2)


def _bands(plan: FleetPlan) -> Iterator[PageTable]:
    verdict = None if plan.chosen is None else plan.chosen.verdict
    if plan.banded is not None and verdict is not None:
        yield from bands_table(plan.banded.bands.content(), lambda metric: verdict.values.get(metric.key))


def _limits(plan: FleetPlan) -> PageTable:
    rows = [(str(each),) for each in plan.limits]
    rules = [(f"{plan.rules.spare} replicas may be down",)] if plan.rules.spare else []
    nodes = [(f"GPUs are rented in nodes of {plan.rules.gpus_per_node}",)] if plan.rules.gpus_per_node else []
    return PageTable("What must hold", ("",), [*rows, *rules, *nodes])


def _prices(plan: FleetPlan) -> PageTable:
    kinds = {sizing.kind.gpu: sizing.kind.price for sizing in plan.sizings}
    rows = [
        (gpu, "" if price is None else price.source, "-" if price is None else f"{price.per_hour:g}")
        for gpu, price in kinds.items()
    ]
    return PageTable("Prices of one GPU", ("", "source", "$/h"), rows, "Yours: --price GPU=N.", num_left=2)


def _trust(plan: FleetPlan) -> Iterator[tuple[str, str]]:
    """The profile of the chosen shape, or of each where none is."""
    for sizing in [plan.chosen] if plan.chosen is not None else plan.ranked:
        profile = sizing.kind.profile
        estimate = " (an estimate, which nobody measured)" if profile.is_estimate else ""
        yield "Profile", f"{profile.name}{estimate}"
        yield "Source", getattr(profile, "source", None) or "step times as the scenario has them"
        yield "Error", error_line(profile) or "not stated"
        yield from (("Caveat", text) for text in caveats(profile))


def write(path: Path, plan: FleetPlan) -> None:
    """The picture as a PNG."""
    with style.figure(path, *SIZE) as drawing:
        draw(drawing, plan)


def draw(drawing: Figure, plan: FleetPlan) -> None:
    """A point a shape that keeps the limits, the chosen one among them; the first limit as a line."""
    limit, down = plan.limits[0], plan.limits[0].metric.aim == "lower"
    points = [
        (cost, value, fleet_label(plan, sizing))
        for sizing in plan.ranked
        if (cost := plan.cost_per_hour(sizing)) is not None
        and sizing.verdict is not None
        and (value := sizing.verdict.values[limit.metric.key]) is not None
    ]
    style.headline(drawing, f"Fleets that keep the limits at {plan.demand.rate:g} req/s")
    axes = drawing.add_subplot()
    axes.set_xlabel("cost of the fleet ($/h)")
    axes.set_ylabel(limit.metric.title)
    costs, values = [cost for cost, _, _ in points] or [1.0], [value for _, value, _ in points]
    style.value_axis(axes, "x", [0.0, 1.12 * max(costs)], is_time=False, from_zero=True)
    shown = [*values, limit.bound]
    style.value_axis(axes, "y", shown, is_time=limit.metric.kind == "ms", from_zero=min(shown) < max(shown) / 4)
    axes.axhline(limit.bound, color=style.LIMIT, linewidth=1.1, linestyle="--")
    bound = style.duration_text(limit.bound) if limit.metric.kind == "ms" else limit.metric.text(limit.bound)
    at: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "color": style.LIMIT, "fontsize": 8, "ha": "right"}
    axes.text(0.995, limit.bound, f"limit {bound}", va="bottom" if down else "top", **at)
    for i, (cost, value, _) in enumerate(points):
        look: dict[str, Any] = (
            {"color": style.PALETTE[0], "marker": "o", "s": 36} if i else {"color": style.PALETTE[2], "s": 140}
        )
        axes.scatter([cost], [value], zorder=3, **({"marker": "*"} | look))
    style.label_apart(axes, points)
    if points:
        axes.scatter([], [], marker="*", s=90, color=style.PALETTE[2], label="the cheapest")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
