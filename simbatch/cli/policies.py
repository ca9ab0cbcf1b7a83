"""`simbatch policies` and `simbatch routers`: what there is to choose from, and whether one keeps to the rules."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._output import progress_of
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.scenario import Scenario

HEAD = """# The policies that ship

Which to take for what, by measurement: [ranking](policy-ranking.md). How to judge: [judging](judging.md). How to write
one: [invent a policy](invent-a-policy.md). In real vLLM: [policies in vLLM](vllm-policies.md). A policy decides what it
names below, and leaves the rest to vLLM's own scheduler; `simbatch policies check NAME` tests what none may break.

This page is made from the policies themselves: `make docs`.
"""


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print a page of them in Markdown.")
@click.pass_context
def policies(context: click.Context, as_json: bool, as_markdown: bool) -> None:
    """List the batching policies, their parameters with defaults, and the disciplines they support.

    In a scenario: policy: {name: adaptive, target_tpot_ms: 40}. Name yours file.py:Class or package.module:Class.
    """
    if context.invoked_subcommand is not None:
        return
    from simbatch.policies.registry import policy_names

    facts = [policy_facts(name) for name in policy_names()]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    elif as_markdown:
        click.echo(page(facts), nl=False)
    else:
        for policy in facts:
            click.echo("\n".join(lines_of(policy)) + "\n")


@policies.command("check")
@click.argument("name")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a parameter. Can be repeated.")
@click.option("--cases", type=click.IntRange(min=1), default=200, metavar="N", help="Random cases to try (200).")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Number of the first case (0).")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def check_one_policy(name: str, assignments: tuple[str, ...], cases: int, seed: int, quiet: bool) -> None:
    """Try the policy NAME on random engines and requests, and see that it breaks none of the rules.

    NAME is one that ships, or yours: file.py:Class or package.module:Class. Ends with 2 at the first broken rule.
    """
    from simbatch.policies.testing import PolicyError, check_policy
    from simbatch.sim.scenario import parse_overrides

    parameters = {f"policy.{key}": value for key, value in parse_overrides(assignments).items()}
    policy = _scenario({"policy": {"name": name}}, parameters).build_policy()
    try:
        with progress_of("cases", cases, quiet=quiet) as progress:
            checked = check_policy(policy, num_cases=cases, seed=seed, progress=progress)
    except PolicyError as error:
        again = "the case is the same every time: --seed N --cases 1 runs it alone"
        raise UserError(Problem(f"policy {name}", str(error), mend=again)) from None
    if quiet:
        return
    click.echo(
        f"{name} keeps to the rules in {checked.num_cases} random cases "
        f"({checked.num_requests:,} requests, {checked.num_steps:,} steps): {', '.join(checked.rules)}"
    )
    for rule, reason in checked.skipped.items():
        click.echo(f"not checked: {rule}, since {reason}")


def policy_facts(name: str) -> dict[str, Any]:
    """All that there is to know about a policy, as plain data."""
    from simbatch.policies.registry import policy_class, policy_schema

    kind = policy_class(name, folder=Path())
    properties = policy_schema(name).get("properties", {})
    text = inspect.getdoc(kind) or ""
    parameters = {
        key: {"type": _type(node), "default": node.get("default"), "description": node.get("description", "")}
        for key, node in properties.items()
    }
    return {
        "name": name,
        "summary": text.split("\n\n")[0].replace("\n", " "),
        "description": text,
        "disciplines": list(kind.disciplines),
        "decides": kind.decisions(),
        "parameters": parameters,
    }


def lines_of(policy: dict[str, Any]) -> Iterator[str]:
    """For the console."""
    yield f"{policy['name']}  ({' and '.join(policy['disciplines'])} batching)"
    yield f"    {policy['summary']}"
    for key, parameter in policy["parameters"].items():
        meaning = f" - {parameter['description']}" if parameter["description"] else ""
        yield f"    {key}: {parameter['type']}, default {parameter['default']}{meaning}"


def section_of(policy: dict[str, Any]) -> str:
    """For the page."""
    decides = ", ".join(f"`{name}`" for name in policy["decides"]) or "nothing"
    lines = [f"## `{policy['name']}`", "", policy["description"], ""]
    lines.append(f"Decides {decides}; {' and '.join(policy['disciplines'])} batching.")
    if policy["parameters"]:
        lines += ["", "| parameter | default | meaning | values |", "|---|---|---|---|"]
    for key, parameter in policy["parameters"].items():
        default = "none" if parameter["default"] is None else str(parameter["default"])
        lines.append(f"| `{key}` | `{default}` | {parameter['description']} | {parameter['type']} |")
    return "\n".join([*lines, ""])


def page(policies: list[dict[str, Any]]) -> str:
    """docs/policies.md."""
    return "\n".join([HEAD, *map(section_of, policies)])


def _type(node: dict[str, Any]) -> str:
    """`whole number from 1`, `number above 0`, `multiplicative or additive`."""
    if "anyOf" in node:
        return " or ".join(_type(form) for form in node["anyOf"] if form.get("type") != "null")
    if "enum" in node:
        return " or ".join(map(str, node["enum"]))
    words = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds = [f"{word} {node[key]}" for key, word in limits.items() if key in node]
    return " ".join([words.get(node.get("type", ""), "value"), *bounds])


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


@routers.command("check")
@click.argument("name")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a parameter. Can be repeated.")
@click.option("--cases", type=click.IntRange(min=1), default=100, metavar="N", help="Random clusters to try (100).")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Number of the first case (0).")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def check_one_router(name: str, assignments: tuple[str, ...], cases: int, seed: int, quiet: bool) -> None:
    """Try the router NAME on random clusters and requests, and see that it breaks none of the rules.

    NAME is one that ships, or yours: file.py:Class or package.module:Class. Ends with 2 at the first broken rule.
    """
    from simbatch.routers.testing import RouterError, check_router
    from simbatch.sim.scenario import parse_overrides

    parameters = {f"cluster.router.{key}": value for key, value in parse_overrides(assignments).items()}
    router = _scenario({"cluster": {"replicas": 2, "router": {"name": name}}}, parameters).build_router()
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


def _scenario(section: dict[str, Any], parameters: dict[str, Any]) -> Scenario:
    """The smallest one that has it, so that mistakes in parameters are told as those of a scenario are."""
    from simbatch.sim.scenario import Scenario

    one = {"distribution": "fixed", "mean": 1}
    smallest = {
        "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
        "workload": {"num_prompts": 1, "request_rate": 1, "prompt_len": one, "output_len": one},
    }
    return Scenario.from_dict(smallest | section).override(parameters, origin="--set")
