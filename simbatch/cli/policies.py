"""`simbatch policies`: what there is to choose from."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def policies(as_json: bool) -> None:
    """List the batching policies, their parameters with defaults, and the disciplines they support.

    In a scenario: policy: {name: adaptive, target_tpot_ms: 40}. Name yours file.py:Class or package.module:Class.
    """
    from simbatch.policies.registry import policy_names

    facts = [_facts(name) for name in policy_names()]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for policy in facts:
        click.echo(f"{policy['name']}  ({' and '.join(policy['disciplines'])} batching)")
        click.echo(f"    {policy['description']}")
        for key, parameter in policy["parameters"].items():
            click.echo(f"    {key}: {parameter['type']}, default {parameter['default']}")
        click.echo()


def _facts(name: str) -> dict[str, Any]:
    from simbatch.policies.registry import policy_class, policy_schema

    kind = policy_class(name, folder=Path())
    properties = policy_schema(name).get("properties", {})
    return {
        "name": name,
        "description": (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " "),
        "disciplines": list(kind.disciplines),
        "parameters": {key: {"type": _type(node), "default": node.get("default")} for key, node in properties.items()},
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
