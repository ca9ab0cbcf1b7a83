"""A YAML file as plain data, with the line and column of every key and value.

PyYAML's parser gives the events; what they mean is decided here: scalars as in YAML 1.2, no tags, no duplicate keys,
no NaN or infinity, one document with a mapping at its top. Anchors and aliases are allowed, up to a size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.files import read_at_most
from simbatch.sim.scenario.reading.syntax import parse_plain, syntax_problem

Key = str | int
KeyPath = tuple[Key, ...]

MAX_BYTES = 1 << 18
MAX_DEPTH = 40
MAY_BE_INFINITE = "request_rate"  # everything at once, as `vllm bench serve` has it
MAX_VALUES = 20_000  # after aliases are expanded: a short file can say a lot


class Mark(NamedTuple):
    """Line and column, from 1."""

    line: int
    column: int


class Places(NamedTuple):
    """Where a key and its value stand; a list's element has no key of its own."""

    key: Mark
    value: Mark


@dataclass(frozen=True)
class YamlDocument:
    """What a file says (`data`) and where (`places`, by path of keys)."""

    name: str
    data: dict[Key, Any]
    places: dict[KeyPath, Places]


class _Issue(NamedTuple):
    rule: str
    value: object
    mend: str


@dataclass
class _Node:
    mark: Mark
    value: Any  # a scalar, list[_Node] or list[tuple[_Node, _Node]]
    is_mapping: bool = False
    open: bool = False  # still being read: an alias to it would never end
    issue: _Issue | None = None  # told when its path is known


def read_document(path: Path) -> YamlDocument:
    """Read a YAML file; UserError when it cannot be read or breaks a rule."""
    return parse_document(_read_text(path), name=str(path))


def parse_document(text: str, *, name: str) -> YamlDocument:
    """Take a YAML text apart; `name` stands in the place of its problems."""
    try:
        root = _Builder(name).build(text)
    except yaml.YAMLError as error:
        raise UserError(syntax_problem(error, text, name)) from None
    expander = _Expander(name)
    data = expander.expand(root, ()) if root else None
    if expander.problems:
        raise UserError(*dict.fromkeys(expander.problems))
    if not isinstance(data, dict):
        rule = "the file is empty" if data is None else "must be a mapping: lines of `key: value`"
        mend = "it needs at least `profile:` and `workload:`; `simbatch scenarios copy bursty` gives one to start from"
        shown = NOTHING if data is None or isinstance(data, list) else data
        raise UserError(Problem(_place(name, root.mark if root else Mark(1, 1)), rule, shown, mend))
    return YamlDocument(name, data, expander.places)


def dotted(path: KeyPath) -> str:
    """`("workload", "phases", 0)` as a person writes it: `workload.phases[0]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def _read_text(path: Path) -> str:
    name = str(path)
    try:
        content = read_at_most(path, MAX_BYTES)
    except IsADirectoryError:
        raise UserError(Problem(name, "is a folder, not a file", mend="name the YAML file in it")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(Problem(name, f"cannot be read: {reason}", mend=_similar_file(path))) from None
    if len(content) > MAX_BYTES:
        mend = "a scenario is short; give a trace by `workload: {trace: {path: ...}}`"
        raise UserError(Problem(name, f"is larger than {MAX_BYTES} bytes", mend=mend))
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(Problem(f"{name}:1:1", "must be UTF-8 text, and is UTF-16", mend="save it as UTF-8"))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        bad = error.object[error.start : error.start + 1]
        place = f"{name}:{line}:{column}"
        raise UserError(Problem(place, "must be UTF-8 text, and a byte here is not", bad, "save it as UTF-8")) from None


def _similar_file(path: Path) -> str:
    import difflib

    try:
        names = [
            other.name
            for other in path.parent.iterdir()
            if other.suffix in (".yaml", ".yml") and other.name != path.name
        ]
    except (OSError, ValueError):
        return "check the path"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else "check the path"


class _Builder:
    """Events to nodes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.anchors: dict[str, _Node] = {}

    def build(self, text: str) -> _Node | None:
        root: _Node | None = None
        parents: list[_Node] = []
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            if isinstance(event, yaml.DocumentStartEvent) and root:
                mend = "remove the `---` and what follows"
                raise UserError(Problem(_place(self.name, _mark(event)), "a file holds one document", mend=mend))
            if isinstance(event, yaml.CollectionEndEvent):
                self._close(parents.pop())
            if not isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent, yaml.CollectionStartEvent)):
                continue
            node = self._node(event)
            root = root or node
            if parents:
                parents[-1].value.append(node)
            if isinstance(event, yaml.CollectionStartEvent):
                parents.append(node)
            if len(parents) > MAX_DEPTH:
                rule = f"values are nested more than {MAX_DEPTH} deep"
                raise UserError(Problem(_place(self.name, node.mark), rule, mend="flatten them"))
        return root

    def _node(self, event: Any) -> _Node:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if isinstance(event, yaml.ScalarEvent):
            node = _scalar(event)
        else:
            node = _Node(_mark(event), [], isinstance(event, yaml.MappingStartEvent), open=True)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        # `!` alone says "not plain" and changes nothing; every other tag asks for a type
        if event.tag is not None and event.tag != "!":
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            mend = "remove the tag; the form of a value tells its type"
            node.issue = _Issue("YAML tags are not allowed", tag, mend)
        return node

    def _alias(self, event: yaml.AliasEvent) -> _Node:
        target = self.anchors.get(str(event.anchor))
        if target is not None and not target.open:
            return _Node(_mark(event), target.value, target.is_mapping, issue=target.issue)
        rule = "an alias cannot stand inside its anchor" if target else "an alias needs an anchor of its name before it"
        issue = _Issue(rule, f"*{event.anchor}", "quote it if the * is part of the value")
        return _Node(_mark(event), None, issue=issue)

    def _close(self, node: _Node) -> None:
        node.open = False
        if node.is_mapping:
            node.value = list(zip(node.value[::2], node.value[1::2], strict=True))


def _scalar(event: yaml.ScalarEvent) -> _Node:
    if not event.implicit[0]:
        return _Node(_mark(event), event.value)
    try:
        return _Node(_mark(event), parse_plain(event.value))
    except ValueError as error:
        return _Node(_mark(event), None, issue=_Issue(str(error), event.value, "write a finite number"))


def _mark(event: Any) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


def _place(name: str, mark: Mark, path: KeyPath = ()) -> str:
    return f"{name}:{mark.line}:{mark.column} {dotted(path)}".rstrip()


@dataclass
class _Expander:
    """Nodes to plain data, remembering where each value stands."""

    name: str
    problems: list[Problem] = field(default_factory=list)
    places: dict[KeyPath, Places] = field(default_factory=dict)
    num_values: int = 0

    def expand(self, node: _Node, path: KeyPath) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES:
            mend = "shorten it; an alias counts whenever it is used"
            raise UserError(Problem(_place(self.name, node.mark, path), f"more than {MAX_VALUES} values", mend=mend))
        if node.issue:
            self.problems.append(Problem(_place(self.name, node.mark, path), *node.issue))
        if node.value == math.inf and path[-1:] != (MAY_BE_INFINITE,):
            issue = _Issue("a number must be finite", ".inf", "write a finite number")
            self.problems.append(Problem(_place(self.name, node.mark, path), *issue))
        if node.is_mapping:
            return {key: self._child(child, (*path, key), mark) for key, mark, child in self._keys(node, path)}
        if isinstance(node.value, list):
            return [self._child(child, (*path, i), child.mark) for i, child in enumerate(node.value)]
        return node.value

    def _child(self, child: _Node, path: KeyPath, key_mark: Mark) -> Any:
        self.places[path] = Places(key_mark, child.mark)
        return self.expand(child, path)

    def _keys(self, node: _Node, path: KeyPath) -> Iterator[tuple[Key, Mark, _Node]]:
        seen: dict[Key, Mark] = {}
        for key_node, child in node.value:
            key, mark = key_node.value, key_node.mark
            issue = key_node.issue
            if isinstance(key, (bool, float, list)) or key is None:
                shown = NOTHING if isinstance(key, list) else key
                issue = issue or _Issue("a key must be a name", shown, "quote it if it is meant as text")
            elif key == "<<":
                issue = _Issue("merge keys are not allowed", key, "write the keys out; YAML 1.2 has no merge keys")
            elif key in seen:
                rule = f"duplicate key: it stands in line {seen[key].line} already"
                issue = _Issue(rule, NOTHING if isinstance(child.value, list) else child.value, "keep one of them")
            if issue:
                named = (*path, key) if isinstance(key, (str, int)) else path
                self.problems.append(Problem(_place(self.name, mark, named), *issue))
            else:
                seen[key] = mark
                yield key, mark, child
