"""What a JSON Schema knows about a place: which keys may stand there, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from simbatch.sim.scenario.reading.document import Key, KeyPath, dotted
from simbatch.sim.scenario.vllm_keys import advice

Schema = dict[str, Any]


class Hints:
    """Near names and descriptions for mistakes in data that should fit `schema`."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def known_keys(self, path: KeyPath, data: Any) -> list[str]:
        """The keys that may stand in the mapping at `path`; `data` tells which of several forms is meant."""
        nodes = self._at(path, data)
        return list(dict.fromkeys(key for node in nodes for key in node.get("properties", ())))

    def description(self, path: KeyPath, data: Any) -> str:
        """What the key at `path` means, or nothing."""
        parents = self._at(path[:-1], data)
        found = (node["properties"].get(path[-1], {}).get("description") for node in parents if "properties" in node)
        return next((text for text in found if text), "")

    def is_required(self, path: KeyPath, data: Any) -> bool:
        """Whether the key at `path` has no default."""
        return any(path[-1] in node.get("required", ()) for node in self._at(path[:-1], data)) if path else False

    def takes_whole_numbers(self, path: KeyPath, data: Any) -> bool:
        """Whether a number at `path` must be a whole one."""
        kinds = {node.get("type") for node in self._at(path, data)}
        return "integer" in kinds and "number" not in kinds

    def mend_unknown(self, path: KeyPath, data: Any) -> str:
        """What to do about an unknown key: the nearest name here, its place elsewhere, or all that is known here."""
        name, known = str(path[-1]), self.known_keys(path[:-1], data)
        if ":" in name and name.partition(":")[0] in known:
            return "put a space after the colon"
        if "engine" in path and (answer := advice(name)):
            return answer
        near = get_close_matches(name.replace("-", "_").lower(), known, n=1, cutoff=0.6)
        if near:
            return f"did you mean {near[0]}?"
        elsewhere = [dotted(found) for found in self._paths_of(name)]
        if elsewhere:
            return f"did you mean {' or '.join(elsewhere[:3])}?"
        return f"known here: {', '.join(known)}" if known else "remove it"

    def _paths_of(self, name: str) -> list[KeyPath]:
        """Where else a key of this name belongs, two levels deep."""
        paths: list[KeyPath] = []
        for first in self.known_keys((), {}):
            if first == name:
                paths.append((first,))
            paths += [(first, second) for second in self.known_keys((first,), {}) if second == name]
        return paths

    def _at(self, path: KeyPath, data: Any) -> list[Schema]:
        nodes, value = list(self._forms(self._schema, data)), data
        for key in path:
            value = _child(value, key)
            nodes = [form for node in nodes for child in _children(node, key) for form in self._forms(child, value)]
        return nodes

    def _forms(self, node: Schema, value: Any) -> Iterator[Schema]:
        """The node itself, or each alternative that `value` does not rule out by its tag."""
        while "$ref" in node:
            node = self._schema["$defs"][node["$ref"].rpartition("/")[2]]
        alternatives = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
        if not alternatives:
            if not _ruled_out(node, value):
                yield node
            return
        if "properties" in node:
            yield node
        for alternative in alternatives:
            yield from self._forms(alternative, value)


def _ruled_out(node: Schema, value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    tags = {key: child for key, child in node.get("properties", {}).items() if "const" in child}
    return any(key in value and value[key] != child["const"] for key, child in tags.items())


def _children(node: Schema, key: Key) -> Iterator[Schema]:
    if isinstance(key, int) and "items" in node:
        yield node["items"]
    elif key in node.get("properties", {}):
        yield node["properties"][key]
    elif isinstance(node.get("additionalProperties"), dict):
        yield node["additionalProperties"]


def _child(value: Any, key: Key) -> Any:
    try:
        return value[key]
    except (LookupError, TypeError):
        return None
