"""Policies and routers as text: what `simbatch policies` and `routers` print, and the page docs/policies.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from simbatch.sim.plugins import Plugins
from simbatch.sim.plugins.policy import Policy
from simbatch.sim.text import width

HEAD = """# The policies that ship

Which to take for what, by measurement: [ranking](policy-ranking.md). How to judge: [judging](judging.md). How to write
one: [invent a policy](invent-a-policy.md). In real vLLM: [policies in vLLM](vllm-policies.md). A policy decides what it
names below, and leaves the rest to vLLM's own scheduler; `simbatch policies check NAME` tests what none may break.

This page is made from the policies themselves: `make docs`.
"""


def facts_of(plugins: Plugins[Any], name: str) -> dict[str, Any]:
    """All there is to know about one of them, as plain data; of a policy its disciplines and decisions, too."""
    kind = plugins.find(name, folder=Path())
    text = inspect.getdoc(kind) or ""
    facts: dict[str, Any] = {"name": name, "summary": text.split("\n\n")[0].replace("\n", " "), "description": text}
    if issubclass(kind, Policy):
        facts |= {"disciplines": list(kind.disciplines), "decides": kind.decisions()}
    facts["known_as"] = kind.known_as
    facts["parameters"] = {
        key: {"type": _type(node), "default": node.get("default"), "description": node.get("description", "")}
        for key, node in plugins.schema(name).get("properties", {}).items()
    }
    return facts


def overview(facts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """For the console: a line each, `mlfq  Serve so many requests a step ... (FastServe)`, broken to the page."""
    indent = max(len(each["name"]) for each in facts) + 2
    for each in facts:
        known_as = f" ({each['known_as']})" if each["known_as"] else ""
        text = f"{each['name']:{indent}}{each['summary'].removesuffix('.')}{known_as}"
        yield from wrap(text, width(), subsequent_indent=" " * indent, break_on_hyphens=False)


def lines_of(facts: dict[str, Any]) -> Iterator[str]:
    """For the console."""
    disciplines = facts.get("disciplines")
    yield facts["name"] + (f"  ({' and '.join(disciplines)} batching)" if disciplines else "")
    yield from wrap(facts["summary"], width(), initial_indent="    ", subsequent_indent="    ")
    if facts["known_as"]:
        yield f"    known as: {facts['known_as']}"
    for key, parameter in facts["parameters"].items():
        meaning = f" - {parameter['description']}" if parameter["description"] else ""
        text = f"{key}: {parameter['type']}, default {parameter['default']}{meaning}"
        yield from wrap(text, width(), initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False)
    _, _, more = facts["description"].partition("\n\n")
    for paragraph in filter(None, more.split("\n\n")):
        yield ""
        yield from wrap(paragraph, width(), break_on_hyphens=False)


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
