"""The JSON Schema of scenario files: pydantic's own, with the built-in policies and the profiles that ship."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simbatch.sim.plugins import Plugins


Schema = dict[str, Any]
REFRESH: Schema = {
    "refresh_s": {
        "description": "how old what engines publish may be: the gateway asks them so often; 0: always fresh",
        "type": "number",
        "minimum": 0,
        "default": 0.0,
    }
}


def scenario_schema() -> Schema:
    """What an editor needs to complete and check a scenario (JSON Schema 2020-12)."""
    from simbatch.sim.cost.profile import InlineProfile
    from simbatch.sim.plugins.policy import POLICIES
    from simbatch.sim.plugins.router import ROUTERS
    from simbatch.sim.scenario.model import Scenario

    schema = Scenario.model_json_schema()
    inline = InlineProfile.model_json_schema()
    definitions = schema.pop("$defs") | inline.pop("$defs", {})
    definitions["InlineProfile"] = inline
    properties = schema["properties"]
    properties["profile"] = _profile(properties["profile"]["description"])
    properties["policy"] = _chosen(properties["policy"]["description"], POLICIES)
    router = definitions["ClusterSettings"]["properties"]["router"]
    definitions["ClusterSettings"]["properties"]["router"] = _chosen(router["description"], ROUTERS, REFRESH)
    definitions.pop("RouterChoice", None)
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
    from simbatch.sim.cost.by_name import shipped_names

    named = {"type": "string", "minLength": 1, "examples": shipped_names()}
    return {"description": description, "anyOf": [named, {"$ref": "#/$defs/InlineProfile"}]}


def _chosen(description: str, plugins: Plugins[Any], common: Schema | None = None) -> Schema:
    """A policy or a router: one by name with its parameters, those of all beside them, or the user's own."""
    own = {
        "type": "object",
        "description": "your own: package.module:Class or file.py:Class, with any parameters",
        "properties": {"name": {"type": "string", "pattern": ":"}},
        "required": ["name"],
    }
    named = [_built_in(name, plugins.schema(name), common or {}) for name in plugins.names()]
    return {"description": description, "anyOf": [*named, own]}


def _built_in(name: str, parameters: Schema, common: Schema) -> Schema:
    return {
        **parameters,
        "type": "object",
        "properties": {"name": {"const": name}, **parameters.get("properties", {}), **common},
        "required": ["name", *parameters.get("required", ())],
        "additionalProperties": False,
    }


def _without_titles(node: Any) -> Any:
    """Leave out the titles that pydantic makes of names: they say nothing and change with its version."""
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not (key == "title" and value != "simbatch scenario")}
        return {key: _without_titles(value) for key, value in kept.items()}
    return [_without_titles(value) for value in node] if isinstance(node, list) else node
