"""The JSON Schema of scenario files: pydantic's own, with the built-in policies and the profiles that ship."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def scenario_schema() -> Schema:
    """What an editor needs to complete and check a scenario (JSON Schema 2020-12)."""
    from simbatch.sim.cost.profile import InlineProfile
    from simbatch.sim.scenario.model import Scenario

    schema = Scenario.model_json_schema()
    inline = InlineProfile.model_json_schema()
    definitions = schema.pop("$defs") | inline.pop("$defs", {})
    definitions["InlineProfile"] = inline
    properties = schema["properties"]
    properties["profile"] = _profile(properties["profile"]["description"])
    properties["policy"] = _policy(properties["policy"]["description"])
    definitions.pop("PolicyChoice", None)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "simbatch scenario",
        "description": schema["description"].partition("\n")[0],
        "$defs": dict(sorted(definitions.items())),
    }
    plain: Schema = _without_titles(schema)
    return plain


def _profile(description: str) -> Schema:
    from simbatch.sim.cost.load import shipped_names

    named = {"type": "string", "minLength": 1, "examples": shipped_names()}
    return {"description": description, "anyOf": [named, {"$ref": "#/$defs/InlineProfile"}]}


def _policy(description: str) -> Schema:
    from simbatch.policies.registry import policy_names, policy_schema

    own = {
        "type": "object",
        "description": "your own: package.module:Class or file.py:Class, with any parameters",
        "properties": {"name": {"type": "string", "pattern": ":"}},
        "required": ["name"],
    }
    return {
        "description": description,
        "anyOf": [*(_built_in(name, policy_schema(name)) for name in policy_names()), own],
    }


def _built_in(name: str, parameters: Schema) -> Schema:
    return {
        **parameters,
        "type": "object",
        "properties": {"name": {"const": name}, **parameters.get("properties", {})},
        "required": ["name", *parameters.get("required", ())],
        "additionalProperties": False,
    }


def _without_titles(node: Any) -> Any:
    """Leave out the titles that pydantic makes of names: they say nothing and change with its version."""
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not (key == "title" and value != "simbatch scenario")}
        return {key: _without_titles(value) for key, value in kept.items()}
    return [_without_titles(value) for value in node] if isinstance(node, list) else node
