"""A plan as people read it (the answer, the table of fleets), what makes it real, and its files.

To make it real there are `vllm serve` lines, the router's settings, and a scenario that gives it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap
from typing import Any

from simbatch.sim.plan import FleetPlan, engines_of, fleet_settings
from simbatch.sim.plan.search import FleetPart, Sizing, resolved_with
from simbatch.sim.plan.words import (
    band_of,
    limited_by,
    metric_words,
    mixed_lines,
    nearest,
    other_weights_lines,
    sentence,
    shape_label,
)
from simbatch.sim.plugins.router import Router
from simbatch.sim.scenario import resolve
from simbatch.sim.text import number, table, width, wrapped
from simbatch.sim.tuning.vllm_flags import vllm_serve

SHOWN = ("max_num_seqs", "max_num_batched_tokens", "max_model_len")


def report(plan: FleetPlan) -> str:
    """The answer in one sentence, then where it comes from."""
    return "\n".join(_lines(plan))


def _lines(plan: FleetPlan) -> Iterator[str]:
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


def serve_lines(plan: FleetPlan) -> list[str]:
    """`vllm serve` for each kind of replica, and what the router before them is set to."""
    return list(_serve_lines(plan))


def _serve_lines(plan: FleetPlan) -> Iterator[str]:
    sizing = plan.chosen
    if sizing is None:
        return
    engines = engines_of(plan, sizing)
    count = sum(part.replicas for part, _ in engines)
    for part, settings in engines:
        if count > 1:
            yield f"# {part.replicas} x {part.kind.label}, each:"
        yield vllm_serve(plan.demand.scenario, settings)
    if count > 1:
        name = sizing.option.router
        router = plan.demand.router(name)
        shown = "".join(f", {key} {value}" for key, value in router.parameters().items() if value is not None)
        yield f"# router before all {count}: {name}{shown}"
        if source := _source_of(router):
            yield f"#   {source}"


def _source_of(router: Router) -> str:
    """Which gateways do alike, as its docstring says it."""
    _, found, source = " ".join((type(router).__doc__ or "").split()).partition("Source")
    return f"{found}{source}"


def scenario_content(plan: FleetPlan, sizing: Sizing) -> dict[str, Any]:
    """The scenario that gives the figures of the answer again: the replicas that serve, without the spare ones."""
    assert sizing.replicas is not None
    scenario = plan.demand.scenario.override(fleet_settings(plan, sizing, sizing.replicas), origin="plan")
    return resolve(scenario).dump() | {"seed": plan.seeds[0]}


def content(plan: FleetPlan) -> dict[str, Any]:
    """The content of plan.json."""
    chosen = plan.chosen
    return {
        "feasible": chosen is not None,
        "answer": sentence(plan),
        "num_gpus": chosen and plan.rules.paid_gpus(chosen),
        "num_gpus_low": gpus_between(plan)[0],
        "num_gpus_high": gpus_between(plan)[1],
        "groups": _groups(plan, chosen),
        "router": chosen and chosen.option.router,
        "cost_per_hour": chosen and plan.cost_per_hour(chosen),
        "gpu_hours_per_hour": chosen and plan.rules.paid_gpus(chosen),
        "cost_per_million_output_tokens": chosen and plan.cost_per_million(chosen),
        "cost_per_million_input_tokens": chosen and plan.cost_per_million(chosen, "input"),
        "kwh_per_million_output_tokens": chosen and plan.kwh_per_million(chosen),
        "metrics": _metrics(plan, chosen or nearest(plan)),
        "in_doubt": None if plan.banded is None else plan.banded.bands.narrow(limited_keys(plan)),
        "rate_per_s": plan.demand.rate,
        "limits": [{"metric": limit.metric.key, "bound": limit.bound} for limit in plan.limits],
        "spare": plan.rules.spare,
        "growth": plan.growth and {"factor": plan.growth.factor, "breaks": plan.growth.breaks},
        "one_down": plan.one_down and {"kept": plan.one_down.is_kept, "metrics": dict(plan.one_down.values)},
        "seeds": plan.seeds,
        "seconds": plan.demand.seconds,
        "peak": plan.demand.peak and vars(plan.demand.peak),
        "shapes": [_shape(plan, sizing) for sizing in plan.ranked],
        "other_weights": [_shape(plan, sizing) for sizing in plan.other_weights],
        "mixed_tried": [_shape(plan, sizing) for sizing in plan.mixes],
        "vllm_serve": serve_lines(plan),
        "notes": plan.notes,
    }


def _groups(plan: FleetPlan, sizing: Sizing | None) -> list[dict[str, Any]]:
    """Each kind of replica: how many, and what they run with, vLLM's defaults of what decides among it."""
    if sizing is None:
        return []
    return [
        {
            "profile": part.kind.profile.name,
            "gpu": part.kind.gpu,
            "tensor_parallel_size": part.kind.tensor_parallel_size,
            "replicas": part.replicas,
            "engine": {key: engine[key] for key in SHOWN},
        }
        for part, settings in engines_of(plan, sizing)
        for engine in [resolved_with(plan.demand, settings).engine_settings()]
    ]


def gpus_between(plan: FleetPlan) -> tuple[int | None, int | None]:
    """The fewest and the most GPUs over the draws; both as chosen without them, None where some draw has no number."""
    chosen = plan.chosen
    if chosen is None:
        return None, None
    if plan.banded is None:
        return plan.rules.paid_gpus(chosen), plan.rules.paid_gpus(chosen)
    low, high = plan.banded.low, plan.banded.high
    return tuple(None if n is None else plan.rules.gpus_with(chosen, n) for n in (low, high))  # type: ignore[return-value]


def _metrics(plan: FleetPlan, sizing: Sizing | None) -> dict[str, Any]:
    if sizing is None or sizing.verdict is None:
        return {}
    found = {}
    for limit in plan.limits:
        value, band = sizing.verdict.values[limit.metric.key], band_of(plan, limit, sizing.verdict)
        low, high = (value, value) if band is None else (band.low, band.high)
        found[limit.metric.key] = {"value": value, "low": low, "high": high}
    return found


def _shape(plan: FleetPlan, sizing: Sizing) -> dict[str, Any]:
    kind = sizing.kind
    return {
        "profile": kind.profile.name,
        "gpu": kind.gpu,
        "tensor_parallel_size": kind.tensor_parallel_size,
        "weights": kind.weights,
        "beside": _beside(sizing.beside),
        "feasible": sizing.verdict is not None and sizing.verdict.is_kept,
        "replicas": None if sizing.replicas is None else sizing.replicas + plan.rules.spare,
        "num_gpus": plan.rules.paid_gpus(sizing),
        "engine": {key.removeprefix("engine."): value for key, value in sizing.option.engine.items()},
        "router": sizing.option.router,
        "capacity_per_replica": sizing.capacity,
        "price_per_gpu_hour": kind.price and kind.price.per_hour,
        "price_source": kind.price and kind.price.source,
        "cost_per_hour": plan.cost_per_hour(sizing),
        "cost_per_million_output_tokens": plan.cost_per_million(sizing),
        "cost_per_million_input_tokens": plan.cost_per_million(sizing, "input"),
        "kwh_per_million_output_tokens": plan.kwh_per_million(sizing),
        "metrics": {} if sizing.verdict is None else dict(sizing.verdict.values),
        "limited_by": limited_by(plan, sizing),
    }


def _beside(part: FleetPart | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {"profile": part.kind.profile.name, "gpu": part.kind.gpu, "replicas": part.replicas}


def limited_keys(plan: FleetPlan) -> list[str]:
    """The figures that have a limit."""
    return [limit.metric.key for limit in plan.limits]
