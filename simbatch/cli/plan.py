"""`simbatch plan`: how many GPUs of which type keep the limits for a traffic, in which shape, at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import jobs_option, version_option
from simbatch.cli._output import Output, progress_of, say_to
from simbatch.sim.errors import NOTHING, Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.plan.demand import Demand
    from simbatch.sim.plan.fleet import FleetPlan
    from simbatch.sim.plan.kinds import ReplicaKind, Wanted
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.search.store import CellStore
    from simbatch.sim.tuning.goal import Limit

Count = click.IntRange(min=1)
TokenCount = click.IntRange(min=1, max=2**20)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@version_option
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Results go here.")
@click.option("--model", metavar="M", help="Without FILE: the model, as Qwen/Qwen3-32B.")
@click.option("--preset", metavar="NAME", help="Without FILE: traffic by name: chat, code, rag, summarize.")
@click.option("--prompt-len", type=TokenCount, metavar="N", help="Without FILE: mean tokens of a prompt.")
@click.option("--output-len", type=TokenCount, metavar="N", help="Without FILE: mean tokens of an output.")
@click.option("--prefix-len", type=TokenCount, metavar="N", help="Tokens that all prompts begin with, in front.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="F", help="The traffic of a trace's file.")
@click.option("--rate", type=float, metavar="R", help="Requests per second in all; without it FILE's own.")
@click.option("--growth", type=float, default=1.0, metavar="G", help="Plan for G times that traffic.")
@click.option("--limit", "limits", multiple=True, metavar="METRIC=N", help="--limit p99_ttft_ms=1000. Can be repeated.")
@click.option("--gpus", metavar="G1,G2", help="GPU types to choose from: h100,l40s. Default: all with a profile.")
@click.option("--tp", "sizes", metavar="N1,N2", help="Tensor parallelism to choose from: 1,2,4.")
@click.option("--weights", metavar="W", help="bf16, fp8, ... or any. Default: as FILE's profile.")
@click.option("--router", "routers", multiple=True, metavar="R", help="A router to choose from. Can be repeated.")
@click.option("--price", "prices", multiple=True, metavar="GPU=N", help="US dollars for one GPU an hour: h100=2.5.")
@click.option("--spare", type=click.IntRange(min=0), default=0, metavar="N", help="Keep the limits with N down.")
@click.option("--gpus-per-node", type=Count, metavar="N", help="GPUs are rented in nodes of N.")
@click.option("--max-gpus", type=Count, default=512, metavar="N", help="Look no further than N GPUs (512).")
@click.option("--seconds", type=float, metavar="S", help="Seconds of traffic in one simulation (120 to 300).")
@click.option("--replications", type=Count, default=1, metavar="N", help="Seeds under which the limits must hold.")
@click.option("--no-bands", is_flag=True, help="Leave out the 19 draws of what the profile is in doubt about.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key of the scenario.")
@click.option("--seed", type=int, metavar="N", help="Set the scenario's seed.")
@jobs_option
@click.option("--scheduler", metavar="ADDRESS", help="A Dask cluster instead: tcp://host:8786.")
@click.option("--resume", is_flag=True, help="Take simulations from DIR that an earlier plan has run.")
@click.option("--json", "as_json", is_flag=True, help="Print plan.json instead of the report.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def plan(
    file: Path | None,
    folder: Path | None,
    limits: tuple[str, ...],
    jobs: int,
    scheduler: str | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Find the cheapest fleet that keeps the limits: GPU type, tensor parallelism, replicas, engine settings, router.

    The traffic is that of the scenario in FILE, of --trace, or of --model with --prompt-len and --output-len, at --rate
    requests per second. Without --limit, 99 % of the requests must keep FILE's SLO. Results go to DIR, by default
    results/<name of FILE>-plan.
    """
    from simbatch.sim.plan.report import OWN_FILES, report, save

    if scheduler is not None and jobs != -1:
        raise UserError(Problem("--jobs", "says nothing to a cluster: its workers do", jobs, "leave it out"))
    demand, kinds = _asked(file, asked)
    kept = _limits(demand.scenario, limits)
    output = Output(folder, f"{file.stem}-plan" if file is not None else "plan", OWN_FILES)
    where = {"jobs": jobs, "scheduler": scheduler, "resume": resume}
    found, num_runs = _plan(demand, kinds, kept, asked, output.folder, where, quiet)
    written = save(found, output.folder, num_runs)
    output.show(written, lambda: report(found), "plan.json" if as_json else None, quiet=quiet)


def _plan(
    demand: Demand,
    kinds: list[ReplicaKind],
    limits: tuple[Limit, ...],
    asked: dict[str, Any],
    folder: Path,
    where: dict[str, Any],
    quiet: bool,
) -> tuple[FleetPlan, int]:
    from simbatch.sim.plan.fleet import Rules
    from simbatch.sim.plan.kinds import left_out, other_weights, parse_gpus
    from simbatch.sim.plan.plan import make_plan
    from simbatch.sim.plan.search import ROUTERS
    from simbatch.sim.scenario.chance import seeds_of
    from simbatch.sim.search.bands import NUM_DRAWS
    from simbatch.sim.search.run import Runner
    from simbatch.sim.search.store import CellStore

    rules = Rules(asked["spare"], asked["gpus_per_node"], asked["max_gpus"])
    routers = asked["routers"] or ROUTERS
    seeds = seeds_of([demand.scenario], asked["replications"])
    num_draws = 0 if asked["no_bands"] else NUM_DRAWS
    ways: dict[str, Any] = {"routers": routers, "seeds": seeds, "rules": rules, "num_draws": num_draws}
    ways["others_of"] = partial(other_weights, kinds=kinds, wanted=_wanted(asked))
    store = CellStore(folder / "cells")
    with progress_of("plan, simulations", None, quiet=quiet) as progress, _kept(store, quiet=quiet):
        runner = Runner(demand.scenario, store, progress=progress, **where)
        found = make_plan(demand, kinds, limits, runner, **ways)
    if demand.peak is not None:
        found.notes.append(demand.peak.text())
    found.notes += left_out(parse_gpus(asked["gpus"]) if asked["gpus"] else [], kinds)
    return found, runner.num_runs


@contextmanager
def _kept(store: CellStore, *, quiet: bool) -> Iterator[None]:
    """Say how to go on when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        say_to(quiet=quiet)(f"the simulations so far are in {store.folder}; go on with --resume")
        raise


def _asked(file: Path | None, asked: dict[str, Any]) -> tuple[Demand, list[ReplicaKind]]:
    """The traffic, and what there is to choose from."""
    from simbatch.sim.plan.demand import demand_of
    from simbatch.sim.plan.kinds import kinds_like
    from simbatch.sim.scenario import resolve

    wanted = _wanted(asked)
    if file is None:
        scenario, kinds = _without_file(asked, wanted)
    else:
        scenario = _changed(_of_file(file, asked), asked)
        kinds = kinds_like(scenario.profile, resolve(scenario).lead.profile, wanted)
    return demand_of(scenario, asked["rate"], asked["growth"], asked["seconds"]), kinds


def _of_file(file: Path, asked: dict[str, Any]) -> Scenario:
    from simbatch.sim.plan.demand import traffic_of_trace
    from simbatch.sim.scenario import Scenario

    given = [name for name in ("model", "preset", "prompt_len", "output_len", "prefix_len") if asked[name] is not None]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise UserError(Problem(flag, "FILE says it already", asked[given[0]], "leave out one of the two"))
    scenario = Scenario.load(file)
    if asked["trace"] is not None:
        scenario = scenario.override({"workload": traffic_of_trace(asked["trace"])}, origin="--trace")
    return scenario


def _without_file(asked: dict[str, Any], wanted: Wanted) -> tuple[Scenario, list[ReplicaKind]]:
    """A scenario of the first kind, with the traffic that the flags say."""
    from simbatch.sim.plan.demand import traffic_of_lengths, traffic_of_trace
    from simbatch.sim.plan.kinds import kinds_of
    from simbatch.sim.scenario import Scenario

    if asked["model"] is None:
        mend = "name a scenario, or --model M with --prompt-len and --output-len, or with --trace"
        raise UserError(Problem("plan", "needs a FILE or a --model", NOTHING, mend))
    kinds = kinds_of(asked["model"], wanted)
    if asked["trace"] is not None:
        workload = traffic_of_trace(asked["trace"])
    elif asked["preset"] is not None:
        return _changed(_of_preset(asked, kinds), asked), kinds
    elif asked["prompt_len"] is None or asked["output_len"] is None or asked["rate"] is None:
        rule = "needs --rate, --prompt-len and --output-len, or a --preset, or a --trace"
        raise UserError(
            Problem("--model", rule, asked["model"], "for example --rate 4 --prompt-len 800 --output-len 200")
        )
    else:
        lengths = (asked["prompt_len"], asked["output_len"], asked["prefix_len"])
        workload = traffic_of_lengths(max(asked["rate"], 1e-9), *lengths)
    scenario = Scenario.from_dict({"profile": kinds[0].reference, "workload": workload}, name="plan")
    return _changed(scenario, asked), kinds


def _of_preset(asked: dict[str, Any], kinds: list[ReplicaKind]) -> Scenario:
    """A preset's traffic, with its SLO."""
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.scenario.presets import preset_of

    if asked["rate"] is None:
        raise UserError(Problem("--preset", "needs a rate", asked["preset"], "for example --rate 4"))
    preset = preset_of(asked["preset"])
    room = max(kind.profile.max_model_len for kind in kinds)
    workload = preset.workload(max(asked["rate"], 1e-9), room)
    content = {"profile": kinds[0].reference, "workload": workload, "slo": dict(preset.slo)}
    return Scenario.from_dict(content, name="plan")


def _changed(scenario: Scenario, asked: dict[str, Any]) -> Scenario:
    """With --vllm-version, --set and --seed."""
    from simbatch.sim.scenario import parse_overrides

    if asked["vllm_version"] is not None:
        scenario = scenario.override({"engine.vllm_version": asked["vllm_version"]}, origin="--vllm-version")
    if values := parse_overrides(asked["assignments"]):
        scenario = scenario.override(values, origin="--set")
    return scenario if asked["seed"] is None else scenario.override({"seed": asked["seed"]}, origin="--seed")


def _wanted(asked: dict[str, Any]) -> Wanted:
    from simbatch.sim.plan.kinds import Wanted, parse_gpus, parse_sizes
    from simbatch.sim.plan.prices import parse_prices

    return Wanted(
        gpus=None if asked["gpus"] is None else parse_gpus(asked["gpus"]),
        sizes=None if asked["sizes"] is None else parse_sizes(asked["sizes"]),
        weights=asked["weights"],
        prices=parse_prices(asked["prices"]),
        gpus_per_node=asked["gpus_per_node"],
    )


def _limits(scenario: Scenario, texts: tuple[str, ...]) -> tuple[Limit, ...]:
    from simbatch.sim.tuning.capacity import capacity_limits
    from simbatch.sim.tuning.goal import Goal, Limit

    given, has_slo = tuple(map(Limit.parse, texts)), bool(scenario.slo.model_dump(exclude_none=True))
    if not (given or has_slo):
        mend = "for example --limit p99_ttft_ms=1000 --limit p99_tpot_ms=50"
        raise UserError(Problem("--limit", "a fleet is planned for limits, and there are none", NOTHING, mend))
    Goal((), given).check_slo(has_slo)
    return capacity_limits(scenario, given)
