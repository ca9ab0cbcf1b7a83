"""`simbatch policies`: what there is to choose from, and whether a policy keeps to the rules."""

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
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the tables of docs/policies.md.")
@click.pass_context
def policies(context: click.Context, as_json: bool, as_markdown: bool) -> None:
    """List the batching policies, their parameters with defaults, and the disciplines they support.

    In a scenario: policy: {name: adaptive, target_tpot_ms: 40}. Name yours file.py:Class or package.module:Class.
    """
    if context.invoked_subcommand is not None:
        return
    from simbatch.policies.registry import policy_names

    facts = [_facts(name) for name in policy_names()]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    elif as_markdown:
        click.echo("\n".join(line for policy in facts for line in _markdown(policy)))
    else:
        for policy in facts:
            _show(policy)


@policies.command()
@click.argument("name")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a parameter. Can be repeated.")
@click.option("--cases", type=click.IntRange(min=1), default=200, metavar="N", help="Random cases to try (200).")
@click.option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Number of the first case (0).")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def check(name: str, assignments: tuple[str, ...], cases: int, seed: int, quiet: bool) -> None:
    """Try the policy NAME on random engines and requests, and see that it breaks none of the rules.

    NAME is one that ships, or yours: file.py:Class or package.module:Class. Ends with 2 at the first broken rule.
    """
    from simbatch.policies.testing import PolicyError, check_policy

    policy = _policy(name, assignments)
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


def _policy(name: str, assignments: tuple[str, ...]) -> Any:
    """The policy with its parameters, whose mistakes are told as those of a scenario are."""
    from simbatch.sim.scenario import Scenario, parse_overrides

    parameters = {f"policy.{key}": value for key, value in parse_overrides(assignments).items()}
    scenario = Scenario.from_dict(
        {
            "profile": {"num_gpu_blocks": 1000, "step_time": {"base_s": 0.01}},
            "policy": {"name": name},
            "workload": {"num_prompts": 1, "request_rate": 1, "prompt_len": _ONE, "output_len": _ONE},
        }
    )
    return scenario.override(parameters, origin="--set").build_policy()


_ONE = {"distribution": "fixed", "mean": 1}


def _show(policy: dict[str, Any]) -> None:
    click.echo(f"{policy['name']}  ({' and '.join(policy['disciplines'])} batching)")
    click.echo(f"    {policy['summary']}")
    for key, parameter in policy["parameters"].items():
        meaning = f" - {parameter['description']}" if parameter["description"] else ""
        click.echo(f"    {key}: {parameter['type']}, default {parameter['default']}{meaning}")
    click.echo()


def _markdown(policy: dict[str, Any]) -> list[str]:
    lines = [f"### `{policy['name']}`", "", policy["description"], ""]
    lines += [f"Batching: {' and '.join(policy['disciplines'])}. Decides: {', '.join(policy['decides']) or 'nothing'}."]
    if policy["parameters"]:
        lines += ["", "| parameter | default | meaning |", "|---|---|---|"]
    for key, parameter in policy["parameters"].items():
        default = "none" if parameter["default"] is None else parameter["default"]
        meaning = f"{parameter['description']} ({parameter['type']})".strip()
        lines.append(f"| `{key}` | `{default}` | {meaning} |")
    return [*lines, ""]


def _facts(name: str) -> dict[str, Any]:
    from simbatch.policies.registry import policy_class, policy_schema

    kind = policy_class(name, folder=Path())
    properties = policy_schema(name).get("properties", {})
    text = inspect.getdoc(kind) or ""
    return {
        "name": name,
        "summary": text.split("\n\n")[0].replace("\n", " "),
        "description": text,
        "disciplines": list(kind.disciplines),
        "decides": kind.decisions(),
        "parameters": {
            key: {
                "type": _type(node),
                "default": node.get("default"),
                "description": node.get("description", ""),
            }
            for key, node in properties.items()
        },
    }


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
