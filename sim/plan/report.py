"""A plan as people read it: the answer, the table of fleets, what makes it real; and its files.

The picture, plan.png, shows what each fleet costs an hour, against the latency (or share) that is limited.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from simbatch.sim.files import write_json, write_yaml
from simbatch.sim.plan.fleet import FleetPlan
from simbatch.sim.plan.search import Sizing
from simbatch.sim.plan.words import (
    fleet_label,
    limited_by,
    metric_words,
    mixed_lines,
    other_weights_lines,
    sentence,
    shape_label,
)
from simbatch.sim.report import style
from simbatch.sim.results.files import Writers, write_result
from simbatch.sim.text import number, table, width, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SIZE = (7.2, 4.4)  # inches


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


OWN_FILES = ("plan.json", "scenario.yaml", "serve.sh", "plan.png", "report.html")


def report(plan: FleetPlan) -> str:
    """The answer in one sentence, then where it comes from."""
    return "\n".join(_lines(plan))


def save(plan: FleetPlan, folder: Path, num_runs: int, more: Writers | None = None) -> list[Path]:
    """plan.json and the picture, and what `more` writes (a page); of a fleet its scenario and command lines too."""
    from simbatch.sim.plan.content import content, scenario_content, serve_lines

    writers = {"plan.json": lambda path: write_json(path, content(plan)), **(more or {})}
    if plan.chosen is not None:
        chosen = plan.chosen
        writers["scenario.yaml"] = lambda path: write_yaml(path, scenario_content(plan, chosen))
        writers["serve.sh"] = lambda path: (
            path.write_text("\n".join(serve_lines(plan)) + "\n", encoding="utf-8") and None
        )
    if any(plan.cost_per_hour(sizing) is not None for sizing in plan.sizings):
        writers["plan.png"] = lambda path: write(path, plan)
    versions = [plan.demand.scenario.engine.simulated_version]
    return write_result(folder, writers, OWN_FILES, versions, {"simulations": num_runs})


def _lines(plan: FleetPlan) -> Iterator[str]:
    from simbatch.sim.plan.content import serve_lines

    yield from wrapped([sentence(plan)])
    yield ""
    yield from table(*shapes(plan))
    yield ""
    yield "What limits each:"
    for sizing in plan.ranked:
        yield from wrapped([f"  {shape_label(sizing)}: {limited_by(plan, sizing)}"])
    yield from wrapped(mixed_lines(plan))
    if plan.other_weights:
        yield from wrapped([f"Other weights on the same GPU: {'; '.join(other_weights_lines(plan))}."])
    if plan.chosen is not None:
        yield ""
        yield "To start it:"
        for line in serve_lines(plan):
            yield from (
                wrap(line, width(), initial_indent="  ", subsequent_indent="  #   ", break_on_hyphens=False)
                if line.startswith("#")
                else wrapped([f"  {line}"])
            )
    yield from wrapped(_doubts(plan))


def _doubts(plan: FleetPlan) -> Iterator[str]:
    from simbatch.sim.plan.content import limited_keys

    if plan.banded is not None and (advice := plan.banded.bands.narrow(limited_keys(plan))) is not None:
        yield ""
        yield f"What to measure to narrow the band most: {advice}."
    yield from _sources(plan)
    yield from (f"NOTE: {note}" for note in plan.notes)


def shapes(plan: FleetPlan) -> tuple[list[str], list[list[str]]]:
    """The table of every kind's smallest fleet and each mixed one that keeps the limits: its header and its rows.

    Energy has a column where it is known.
    """
    energy = {id(each): plan.kwh_per_million(each) for each in plan.sizings}
    has_energy = any(value is not None for value in energy.values())
    limited = [metric_words(limit.metric.key) for limit in plan.limits]
    kwh = ["kWh/M out"] if has_energy else []
    header = ["shape", "replicas", "GPUs", "$/h", "$/M out", "$/M in", *kwh, *limited, "req/s each"]
    return header, [_row(plan, each, [energy[id(each)]] if has_energy else []) for each in plan.ranked]


def _row(plan: FleetPlan, sizing: Sizing, energy: list[float | None]) -> list[str]:
    replicas = None if sizing.replicas is None else sizing.replicas + plan.rules.spare
    gpus = plan.rules.paid_gpus(sizing)
    values = {} if sizing.verdict is None else sizing.verdict.values
    return [
        shape_label(sizing),
        "none" if replicas is None else str(replicas),
        "-" if gpus is None else str(gpus),
        number(plan.cost_per_hour(sizing)),
        *(number(plan.cost_per_million(sizing, tokens)) if replicas else "-" for tokens in ("output", "input")),
        *(number(value) for value in energy),
        *(limit.metric.text(values.get(limit.metric.key)) for limit in plan.limits),
        number(sizing.capacity),
    ]


def _sources(plan: FleetPlan) -> Iterator[str]:
    prices = {sizing.kind.gpu: sizing.kind.price for sizing in plan.sizings}
    known = [f"{gpu} {price.per_hour:g} $/h ({price.source})" for gpu, price in prices.items() if price is not None]
    missing = [gpu for gpu, price in prices.items() if price is None]
    yield ""
    if known:
        yield f"Prices of one GPU: {'; '.join(known)}. Yours: --price GPU=N."
    if missing:
        yield f"No price: {', '.join(missing)}; say it with --price {missing[0]}=2.5, or the number of GPUs decides."
    powers = {sizing.kind.label: power for sizing in plan.sizings if (power := sizing.kind.power) is not None}
    for label, power in powers.items():
        yield (
            f"Energy of {label}'s GPUs is an estimate, within {power.error:.0%} on runs that it had not seen, without "
            f"host and cooling ({power.source})."
        )
