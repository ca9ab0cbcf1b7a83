"""Pydantic's errors as problems in plain words, at the line and column where they stand.

The hints are what a JSON Schema knows about a place: which keys may stand there, and what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from simbatch.sim.errors import NOTHING, Problem
from simbatch.sim.scenario.document import Key, KeyPath, dotted
from simbatch.sim.scenario.reading import Source
from simbatch.sim.scenario.rules import advice

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


_RULES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "dict_type": "must be a mapping: lines of `key: value`",
    "mapping_type": "must be a mapping: lines of `key: value`",
    "model_type": "must be a mapping: lines of `key: value`",
    "model_attributes_type": "must be a mapping: lines of `key: value`",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "must be one of {expected_tags}",
    "invalid_key": "a key must be a name",
}
_TYPE_ERRORS = frozenset(kind for kind, rule in _RULES.items() if kind.endswith("_type") or "parsing" in kind)
_EXACT = 1e15  # floats below it are whole numbers to the last digit
_NUMBERS = ("int_type", "int_parsing", "int_from_float", "float_type", "float_parsing")


def problems_of(error: ValidationError, source: Source, hints: Hints, prefix: KeyPath = ()) -> list[Problem]:
    """One problem per place; `prefix` is the path of what was validated inside it."""
    found = [_Found(details, source, hints, prefix) for details in error.errors(include_url=False)]
    paths = {item.path for item in found}
    # Of a union's alternatives, one that came further into the value says more than one that refused it whole.
    kept = [item for item in found if not (item.is_refusal and any(_inside(path, item.path) for path in paths))]
    groups: dict[KeyPath, list[_Found]] = {}
    for item in kept:
        groups.setdefault(item.path, []).append(item)
    return [_merged(same) for same in groups.values()]


def _inside(path: KeyPath, other: KeyPath) -> bool:
    return len(path) > len(other) and path[: len(other)] == other


def _merged(same: list[_Found]) -> Problem:
    """Alternatives for one place as one problem: `must be a number, or a mapping`."""
    problems = [item.problem() for item in same]
    rules = list(dict.fromkeys(problem.rule for problem in problems))
    first = problems[0]
    rule = rules[0] + "".join(f", or {other.removeprefix('must be ')}" for other in rules[1:])
    return Problem(first.place, rule, first.value, first.mend if len(rules) == 1 else "")


class _Found:
    """One of pydantic's errors, with the path in the user's data that it belongs to."""

    def __init__(self, details: Any, source: Source, hints: Hints, prefix: KeyPath) -> None:
        self.kind: str = details["type"]
        self.message: str = details["msg"]
        self.context: dict[str, Any] = details.get("ctx", {})
        self._data, self._hints, self._locate = source.data, hints, source.locate
        self.path, self.value = self._walk(prefix + details["loc"])
        self.is_refusal = self.kind in _TYPE_ERRORS

    def _walk(self, location: tuple[Any, ...]) -> tuple[KeyPath, Any]:
        """Follow `location` through the data, leaving out the names of a union's alternatives."""
        path: KeyPath = ()
        value: Any = self._data
        for i, part in enumerate(location):
            if _holds(value, part):
                path, value = (*path, part), value[part]
            elif self.kind == "missing" and i == len(location) - 1:
                path, value = (*path, part), NOTHING
        if self.kind.startswith("union_tag"):
            tag = str(self.context["discriminator"]).strip("'")
            path = (*path, tag)
            value = value.get(tag, NOTHING) if isinstance(value, dict) else value
            self.kind = "missing" if self.kind == "union_tag_not_found" else self.kind
        return path, value

    def problem(self) -> Problem:
        if self.kind == "missing":
            return self._missing()
        if self.kind == "invalid_key":
            mend = "remove it; a number takes no commas (1024, not 1,024)"
            return Problem(self._locate(self.path, True), self._rule(), self.path[-1], mend)
        if self.kind == "extra_forbidden":
            mend = self._hints.mend_unknown(self.path, self._data)
            return Problem(self._locate(self.path, True), "unknown key", _shown(self.value), mend)
        return Problem(self._locate(self.path, False), self._rule(), _shown(self.value), self._mend())

    def _missing(self) -> Problem:
        description = self._hints.description(self.path, self._data)
        mend = f"add `{self.path[-1]}: ...`" + (f" ({description})" if description else "")
        return Problem(self._locate(self.path, True), "required, but missing", mend=mend)

    def _rule(self) -> str:
        if self.kind in _RULES:
            context = {key: _plain_number(value) for key, value in self.context.items()}
            return _RULES[self.kind].format(**context).replace("'", "")
        text = self.message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return text.replace("Input should be", "must be")

    def _mend(self) -> str:
        if "mend" in self.context:
            return str(self.context["mend"])
        near = self._near_choice()
        if near:
            return f"did you mean {near}?"
        if self.value is None:
            is_needed = self._hints.is_required(self.path, self._data)
            return "give it a value" + ("" if is_needed else ", or leave the line out for its default")
        if self.kind in _NUMBERS:
            return _mend_number(self.value, str(self.path[-1]) if self.path else "")
        if self.kind == "string_too_short":
            return "give it a value"
        if self.kind == "literal_error":
            return "write one of these"
        if self.kind.startswith("bool"):
            return "write true or false without quotes"
        if self.kind == "string_type":
            return "put it in quotes if it is meant as text"
        if self.kind in ("greater_than", "greater_than_equal"):
            return "raise it"
        if self.kind in ("less_than", "less_than_equal"):
            return "lower it"
        if "mapping" in self._rule():
            known = self._hints.known_keys(self.path, self._data)
            return f"its keys: {', '.join(known)}" if known else ""
        return ""

    def _near_choice(self) -> str:
        choices = self.context.get("expected_tags") or self.context.get("expected") or ""
        names = [name.strip(" '") for name in str(choices).replace(" or ", ",").split(",")]
        near = get_close_matches(self.value.lower(), names, n=1) if isinstance(self.value, str) else []
        return near[0] if near else ""


def _holds(value: Any, key: Any) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, (list, tuple)) and isinstance(key, int) and key < len(value)


def _mend_number(value: object, key: str) -> str:
    if isinstance(value, bool):
        return "write a number, not true or false"
    if isinstance(value, float):
        if abs(value) >= _EXACT:
            return "write a smaller one, in digits"
        return f"write {int(value)}" if value.is_integer() else "round it"
    if isinstance(value, str):
        try:
            float(value.replace("_", "").replace(",", ""))
        except ValueError:
            if not value[:1].isdigit():
                return "write a number"
            has_unit = key.endswith(("_s", "_ms"))
            return "write the number alone" + ("; its unit is in the key's name" if has_unit else ", without a unit")
        return "write it without quotes, underscores or commas"
    return "write one number"


def _plain_number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value


def _shown(value: object) -> object:
    """Long mappings and lists are not repeated; their place says enough."""
    return NOTHING if isinstance(value, (dict, list, tuple)) and len(repr(value)) > 60 else value
