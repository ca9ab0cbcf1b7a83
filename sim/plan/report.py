"""A plan in words, as plan.json, as a picture, and as the scenario and command lines that make it real."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

from simbatch.sim.files import write_json, write_yaml
from simbatch.sim.metrics.registry import REGISTRY
from simbatch.sim.metrics.steady import OVERLOADED
from simbatch.sim.plan import picture
from simbatch.sim.plan.plan import FleetPlan, fleet_settings
from simbatch.sim.plan.search import REFUSED, Sizing, Verdict, resolved_with
from simbatch.sim.results.files import Writers, write_result
from simbatch.sim.scenario import resolve
from simbatch.sim.search.bands import Band
from simbatch.sim.text import number, table
from simbatch.sim.tuning.goal import Limit
from simbatch.sim.tuning.vllm_flags import vllm_serve

OWN_FILES = ("plan.json", "scenario.yaml", "serve.sh", "plan.png", "report.html")


def report(plan: FleetPlan) -> str:
    """The answer in one sentence, then where it comes from."""
    return "\n".join(_lines(plan))


def save(plan: FleetPlan, folder: Path, num_runs: int, more: Writers | None = None) -> list[Path]:
    """plan.json and the picture, and what `more` writes (a page); of a fleet its scenario and command lines too."""
    writers = {"plan.json": lambda path: write_json(path, content(plan)), **(more or {})}
    if plan.chosen is not None:
        chosen = plan.chosen
        writers["scenario.yaml"] = lambda path: write_yaml(path, scenario_content(plan, chosen))
        writers["serve.sh"] = lambda path: (
            path.write_text("\n".join(serve_lines(plan)) + "\n", encoding="utf-8") and None
        )
    if any(plan.cost_per_hour(sizing) is not None for sizing in plan.sizings):
        writers["plan.png"] = lambda path: picture.write(path, plan)
    return write_result(folder, writers, OWN_FILES, {"simulations": num_runs})


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
        "metrics": _metrics(plan, chosen or _nearest(plan)),
        "in_doubt": None if plan.banded is None else plan.banded.bands.narrow(_limited(plan)),
        "rate_per_s": plan.demand.rate,
        "limits": [{"metric": limit.metric.key, "bound": limit.bound} for limit in plan.limits],
        "spare": plan.rules.spare,
        "growth": plan.growth and {"factor": plan.growth.factor, "breaks": plan.growth.breaks},
        "one_down": plan.one_down and {"kept": plan.one_down.is_kept, "metrics": dict(plan.one_down.values)},
        "seeds": plan.seeds,
        "seconds": plan.demand.seconds,
        "shapes": [_shape(plan, sizing) for sizing in plan.ranked],
        "vllm_serve": serve_lines(plan),
        "notes": plan.notes,
    }


def _groups(plan: FleetPlan, sizing: Sizing | None) -> list[dict[str, Any]]:
    if sizing is None or sizing.replicas is None:
        return []
    kind = sizing.kind
    return [
        {
            "profile": kind.profile.name,
            "gpu": kind.gpu,
            "tensor_parallel_size": kind.tensor_parallel_size,
            "replicas": sizing.replicas + plan.rules.spare,
            "engine": _engine(plan, sizing),
        }
    ]


def _engine(plan: FleetPlan, sizing: Sizing) -> dict[str, Any]:
    """What the replicas run with, by vLLM's names, defaults of the two that decide among them."""
    resolved = resolved_with(plan.demand, fleet_settings(plan, sizing, 1))
    settings = resolved.engine_settings()
    return {key: settings[key] for key in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")}


def gpus_between(plan: FleetPlan) -> tuple[int | None, int | None]:
    """The fewest and the most GPUs over the draws; both as chosen without them, None where some draw has no number."""
    chosen = plan.chosen
    if chosen is None:
        return None, None
    if plan.banded is None:
        return plan.rules.paid_gpus(chosen), plan.rules.paid_gpus(chosen)
    low, high = plan.banded.low, plan.banded.high
    return tuple(None if n is None else plan.rules.gpus_of(chosen.kind, n) for n in (low, high))  # type: ignore[return-value]


def _limited(plan: FleetPlan) -> list[str]:
    return [limit.metric.key for limit in plan.limits]


def _metrics(plan: FleetPlan, sizing: Sizing | None) -> dict[str, Any]:
    if sizing is None or sizing.verdict is None:
        return {}
    found = {}
    for limit in plan.limits:
        value, band = sizing.verdict.values[limit.metric.key], _band(plan, limit, sizing.verdict)
        low, high = (value, value) if band is None else (band.low, band.high)
        found[limit.metric.key] = {"value": value, "low": low, "high": high}
    return found


def _band(plan: FleetPlan, limit: Limit, verdict: Verdict) -> Band | None:
    """Of the chosen fleet, as it stands, alone."""
    is_chosen = plan.chosen is not None and verdict is plan.chosen.verdict
    return plan.banded.bands.of(limit.metric) if plan.banded is not None and is_chosen else None


def _shape(plan: FleetPlan, sizing: Sizing) -> dict[str, Any]:
    kind = sizing.kind
    return {
        "profile": kind.profile.name,
        "gpu": kind.gpu,
        "tensor_parallel_size": kind.tensor_parallel_size,
        "weights": kind.weights,
        "feasible": sizing.replicas is not None,
        "replicas": None if sizing.replicas is None else sizing.replicas + plan.rules.spare,
        "num_gpus": plan.rules.paid_gpus(sizing),
        "engine": {key.removeprefix("engine."): value for key, value in sizing.option.engine.items()},
        "router": sizing.option.router,
        "capacity_per_replica": sizing.capacity,
        "price_per_gpu_hour": kind.price and kind.price.per_hour,
        "price_source": kind.price and kind.price.source,
        "cost_per_hour": plan.cost_per_hour(sizing),
        "cost_per_million_output_tokens": plan.cost_per_million(sizing),
        "metrics": {} if sizing.verdict is None else dict(sizing.verdict.values),
        "limited_by": limited_by(plan, sizing),
    }


def sentence(plan: FleetPlan) -> str:
    """The answer."""
    return _fleet_sentence(plan, plan.chosen) if plan.chosen is not None else _refusal_sentence(plan)


def _fleet_sentence(plan: FleetPlan, sizing: Sizing) -> str:
    kind, verdict = sizing.kind, sizing.verdict
    assert sizing.replicas is not None
    assert verdict is not None
    replicas = sizing.replicas + plan.rules.spare
    spare = f", {plan.rules.spare} of them spare" if plan.rules.spare else ""
    how = f"{_settings_words(sizing)}{_router_words(sizing)}"
    parts = [
        f"{replicas} x {kind.label}{spare}{_between_words(plan)} with {how}: {_cost(plan, sizing)}",
        ", ".join(_figure(limit, verdict, _band(plan, limit, verdict)) for limit in plan.limits),
    ]
    if plan.one_down is not None:
        parts.append(f"one down: {_one_down_words(plan, plan.one_down)}")
    if plan.growth is not None and plan.growth.breaks is not None:
        parts.append(
            f"the first to break as traffic grows: {_words(plan.growth.breaks)}, above {plan.growth.factor:.2g} times"
        )
    return "; ".join(parts) + "."


def _between_words(plan: FleetPlan) -> str:
    """`(5 to 7 over the band)`, in replicas."""
    if plan.banded is None:
        return ""
    low, high = ("more" if n is None else n + plan.rules.spare for n in (plan.banded.low, plan.banded.high))
    return f" ({low} over the band)" if low == high else f" ({low} to {high} over the band)"


def _one_down_words(plan: FleetPlan, verdict: Verdict) -> str:
    """The figures; where the queue then grows for ever they say nothing."""
    if verdict.is_overloaded:
        return "overloaded"
    figures = ", ".join(_figure(limit, verdict) for limit in plan.limits)
    return figures if verdict.is_kept else f"not kept ({figures})"


def _refusal_sentence(plan: FleetPlan) -> str:
    """Which limit, and by how much, where it is nearest to being kept."""
    nearest = _nearest(plan)
    if nearest is None or nearest.verdict is None:
        reasons = {sizing.refusal for sizing in plan.sizings if sizing.refusal is not None}
        return f"No fleet keeps the limits: none of the profiles can be simulated so ({'; '.join(sorted(reasons))})."
    return f"No fleet keeps the limits. Nearest comes {nearest.kind.label}: {limited_by(plan, nearest)}."


def _nearest(plan: FleetPlan) -> Sizing | None:
    tried = [sizing for sizing in plan.sizings if sizing.verdict is not None]
    return max(tried, key=lambda sizing: sizing.verdict.margin if sizing.verdict else -inf, default=None)


def limited_by(plan: FleetPlan, sizing: Sizing) -> str:
    """What keeps the kind from being smaller, or from serving at all."""
    if sizing.refusal is not None:
        return sizing.refusal
    if sizing.replicas is None and sizing.verdict is not None:
        return "; ".join(_excess(plan, name, excess, sizing.verdict) for name, excess in sizing.verdict.broken.items())
    if sizing.one_fewer is None:
        return "one replica is enough"
    name = sizing.one_fewer.nearest
    return f"{_words(name)} with one fewer" if name is not None else "-"


def _excess(plan: FleetPlan, name: str, excess: float, verdict: Verdict) -> str:
    """`P99 TPOT 70.1 ms, limit 60: 17 % above`."""
    limit = next((limit for limit in plan.limits if limit.metric.key == name), None)
    if limit is None:
        return "the queue keeps growing" if name == OVERLOADED else f"{excess:.1%} of the requests are refused"
    value = verdict.values[name]
    shown = limit.metric.text(value)
    far = f"{100 * excess:.0f} %" if excess < 1 else f"{1 + excess:.3g} times"
    side = "beyond it" if excess < 1 else "the limit"
    return f"{_words(name)} {shown}, limit {limit.metric.text(limit.bound)}: {far} {side}"


def _figure(limit: Limit, verdict: Verdict, band: Band | None = None) -> str:
    value = verdict.values[limit.metric.key]
    between = "" if band is None else f" [{_text(limit, band.low)}, {_text(limit, band.high)}]"
    return f"{_words(limit.metric.key)} {_text(limit, value)}{between}"


def _text(limit: Limit, value: float | None) -> str:
    unit = " ms" if limit.metric.kind == "ms" else ""
    return f"{number(value, 0 if unit and value and value >= 100 else 1) if unit else limit.metric.text(value)}{unit}"


def _words(name: str) -> str:
    """A metric's label without its unit."""
    if name == OVERLOADED:
        return "a queue that keeps growing"
    if name == REFUSED:
        return "refused requests"
    return REGISTRY[name].title


def _settings_words(sizing: Sizing) -> str:
    shown = [f"{key.removeprefix('engine.')} {value}" for key, value in sizing.option.engine.items()]
    return ", ".join(shown) or "the engine as it stands"


def _router_words(sizing: Sizing) -> str:
    return "" if sizing.replicas == 1 else f", {sizing.option.router}"


def _cost(plan: FleetPlan, sizing: Sizing) -> str:
    cost, gpus = plan.cost_per_hour(sizing), plan.rules.paid_gpus(sizing)
    if cost is None:
        return f"{gpus} GPU-hours an hour (no price for {sizing.kind.gpu}: --price {sizing.kind.gpu}=...)"
    million = plan.cost_per_million(sizing)
    return f"{cost:,.2f} $/h, {number(million)} $ per million output tokens"


def _lines(plan: FleetPlan) -> Iterator[str]:
    yield sentence(plan)
    yield ""
    yield from table(*shapes(plan))
    yield ""
    yield "What limits each:"
    yield from (f"  {sizing.kind.label}: {limited_by(plan, sizing)}" for sizing in plan.ranked)
    if plan.chosen is not None:
        yield ""
        yield f"Each of the {(plan.chosen.replicas or 0) + plan.rules.spare} replicas:"
        yield from (f"  {line}" for line in serve_lines(plan))
    if plan.banded is not None and (advice := plan.banded.bands.narrow(_limited(plan))) is not None:
        yield ""
        yield f"What to measure to narrow the band most: {advice}."
    yield from _sources(plan)
    yield from (f"NOTE: {note}" for note in plan.notes)


def shapes(plan: FleetPlan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table of every kind of replica, the best first: its header and its rows."""
    limited = (_words(limit.metric.key) for limit in plan.limits)
    header = ("shape", "replicas", "GPUs", "$/h", "$/M out", *limited, "req/s each")
    return header, [_row(plan, sizing) for sizing in plan.ranked]


def _row(plan: FleetPlan, sizing: Sizing) -> tuple[str, ...]:
    replicas = None if sizing.replicas is None else sizing.replicas + plan.rules.spare
    gpus = plan.rules.paid_gpus(sizing)
    values = {} if sizing.verdict is None else sizing.verdict.values
    return (
        sizing.kind.label,
        "none" if replicas is None else str(replicas),
        "-" if gpus is None else str(gpus),
        number(plan.cost_per_hour(sizing)),
        number(plan.cost_per_million(sizing)) if replicas is not None else "-",
        *(limit.metric.text(values.get(limit.metric.key)) for limit in plan.limits),
        number(sizing.capacity),
    )


def _sources(plan: FleetPlan) -> Iterator[str]:
    prices = {sizing.kind.gpu: sizing.kind.price for sizing in plan.sizings}
    known = [f"{gpu} {price.per_hour:g} $/h ({price.source})" for gpu, price in prices.items() if price is not None]
    missing = [gpu for gpu, price in prices.items() if price is None]
    yield ""
    if known:
        yield f"Prices of one GPU: {'; '.join(known)}. Yours: --price GPU=N."
    if missing:
        yield f"No price: {', '.join(missing)}; say it with --price {missing[0]}=2.5, or the number of GPUs decides."


def serve_lines(plan: FleetPlan) -> list[str]:
    """`vllm serve` for each replica, and what the router before them is set to."""
    sizing = plan.chosen
    if sizing is None or sizing.replicas is None:
        return []
    lines = [vllm_serve(plan.demand.scenario, _of_engine(fleet_settings(plan, sizing, 1)))]
    if sizing.replicas + plan.rules.spare > 1:
        router = plan.demand.scenario.override({"cluster": {"replicas": 2, "router": {"name": sizing.option.router}}})
        parameters = router.build_router().parameters()
        shown = "".join(f", {key} {value}" for key, value in parameters.items() if value is not None)
        lines.append(f"# router before all {sizing.replicas + plan.rules.spare}: {sizing.option.router}{shown}")
    return lines


def _of_engine(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key == "profile" or key.startswith("engine.")}


def scenario_content(plan: FleetPlan, sizing: Sizing) -> dict[str, Any]:
    """The scenario that gives the figures of the answer again: the replicas that serve, without the spare ones."""
    assert sizing.replicas is not None
    scenario = plan.demand.scenario.override(fleet_settings(plan, sizing, sizing.replicas), origin="plan")
    return resolve(scenario).dump() | {"seed": plan.seeds[0]}
