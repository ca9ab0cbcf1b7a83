"""`simbatch routers`: what there is to choose from, and whether a router keeps to the rules."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click

from simbatch.cli._progress import progress_of
from simbatch.sim.errors import Problem, UserError


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def routers(context: click.Context, as_json: bool) -> None:
    """List the routers of clusters and their parameters with defaults.

    In a scenario: cluster: {replicas: 4, router: {name: least_requests}}. Name yours file.py:Class or
    package.module:Class.
    """
    if context.invoked_subcommand is not None:
        return
    from simbatch.routers.registry import ROUTERS

    facts = [_facts(name) for name in ROUTERS.names()]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for router in facts:
        click.echo(f"{router['name']}\n    {router['summary']}")
        for key, parameter in router["parameters"].items():
            click.echo(f"    {key}: default {parameter['default']} - {parameter['description']}")
        click.echo()


def _facts(name: str) -> dict[str, Any]:
    from simbatch.routers.registry import ROUTERS

    text = inspect.getdoc(ROUTERS.find(name, folder=Path())) or ""
    parameters = {
        key: {"default": node.get("default"), "description": node.get("description", "")}
        for key, node in ROUTERS.schema(name).get("properties", {}).items()
    }
    summary = text.split("\n\n")[0].replace("\n", " ")
    return {"name": name, "summary": summary, "description": text, "parameters": parameters}


@routers.command()
@click.argument("name")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a parameter. Can be repeated.")
@click.option("--cases", type=click.IntRange(min=1), default=100, metavar="N", help="Random clusters to try (100).")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Number of the first case (0).")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def check(name: str, assignments: tuple[str, ...], cases: int, seed: int, quiet: bool) -> None:
    """Try the router NAME on random clusters and requests, and see that it breaks none of the rules.

    NAME is one that ships, or yours: file.py:Class or package.module:Class. Ends with 2 at the first broken rule.
    """
    from simbatch.routers.testing import RouterError, check_router

    router = _router(name, assignments)
    try:
        with progress_of("cases", cases, quiet=quiet) as progress:
            checked = check_router(router, num_cases=cases, seed=seed, progress=progress)
    except RouterError as error:
        again = "the case is the same every time: --seed N --cases 1 runs it alone"
        raise UserError(Problem(f"router {name}", str(error), mend=again)) from None
    if not quiet:
        click.echo(
            f"{name} keeps to the rules in {checked.num_cases} random clusters "
            f"({checked.num_replicas:,} replicas, {checked.num_requests:,} requests): {', '.join(checked.rules)}"
        )


_ONE = {"distribution": "fixed", "mean": 1}


def _router(name: str, assignments: tuple[str, ...]) -> Any:
    """The router with its parameters, whose mistakes are told as those of a scenario are."""
    from simbatch.sim.scenario import Scenario, parse_overrides

    parameters = {f"cluster.router.{key}": value for key, value in parse_overrides(assignments).items()}
    scenario = Scenario.from_dict(
        {
            "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
            "cluster": {"replicas": 2, "router": {"name": name}},
            "workload": {"num_prompts": 1, "request_rate": 1, "prompt_len": _ONE, "output_len": _ONE},
        }
    )
    return scenario.override(parameters, origin="--set").build_router()
