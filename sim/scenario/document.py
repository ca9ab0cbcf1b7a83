"""A YAML file as plain data, with the line and column of every key and value.

PyYAML's parser gives the events; what they mean is decided here: scalars as in YAML 1.2, no tags, no duplicate keys,
no NaN or infinity, one document with a mapping at its top. Anchors and aliases are allowed, up to a size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from simbatch.sim.errors import NOTHING, Problem, UserError

Scalar = str | int | float | bool | None
Key = str | int
KeyPath = tuple[Key, ...]

MAX_DEPTH, MAX_DIGITS = 40, 40
MAY_BE_INFINITE = "request_rate"  # everything at once, as `vllm bench serve` has it
MAX_VALUES = 20_000  # after aliases are expanded: a short file can say a lot
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# What the parser says, what is wrong, what to do: the first that fits.
_SAYINGS = (
    ("'\\t' that cannot start", "YAML does not take tabs for indentation", "indent with spaces"),
    ("'%' that cannot start", "a value cannot start with %", "quote the value"),
    ("'@' that cannot start", "a value cannot start with @", "quote the value"),
    ("'`' that cannot start", "a value cannot start with a backtick", "quote the value"),
    ("could not find expected ':'", "a key needs a colon and a space after it", "write `key: value`"),
    (
        "mapping values are not allowed here",
        "a colon here does not fit the line above",
        "indent keys of one level alike, put a space after every key's colon, and quote text with `: ` in it",
    ),
    ("but got '<stream end>'", "a bracket is opened and never closed", "close it"),
    ("version 1.* is required", "only YAML 1 is read", "remove the %YAML line"),
    ("escape", "a backslash in double quotes begins an escape", "put the text in single quotes"),
    (
        "expected '<document start>'",
        "this line does not belong to the lines above",
        "write `key: value` in every line, keys of one level indented alike",
    ),
    ("expected the node content", "a value must stand here", "remove the bracket, or quote it"),
    ("found unexpected end of stream", "a quote is opened and never closed", "close it"),
    ("expected ',' or '}'", "an entry of { } must be followed by a comma or }", "check the brackets and commas"),
    ("expected ',' or ']'", "an entry of [ ] must be followed by a comma or ]", "check the brackets and commas"),
    (
        "expected <block end>",
        "this line does not belong to the block that it stands in",
        "indent keys of one level alike, and put no keys among the entries of a list",
    ),
)


class Mark(NamedTuple):
    """Line and column, from 1."""

    line: int
    column: int


class Places(NamedTuple):
    """Where a key and its value stand; a list's element has no key of its own."""

    key: Mark
    value: Mark


class YamlDocument(NamedTuple):
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


def parse_document(text: str, *, name: str) -> YamlDocument:
    """Take a YAML text apart; `name` stands in the place of its problems."""
    try:
        root = _Builder(name).build(text)
    except yaml.YAMLError as error:
        raise UserError(_syntax_problem(error, text, name)) from None
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


def _syntax_problem(error: yaml.YAMLError, text: str, name: str) -> Problem:
    """One problem for one exception of the parser, with the line as the value."""
    if isinstance(error, yaml.reader.ReaderError):
        line, column = line_and_column(text, error.position)
        character = text[error.position : error.position + 1]
        return Problem(f"{name}:{line}:{column}", "this character is not allowed in YAML", character, "remove it")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = str(getattr(error, "problem", None) or error)
    rule, mend = next(
        ((rule, mend) for part, rule, mend in _SAYINGS if part in said), (f"not valid YAML: {said}", "check this line")
    )
    if "expected ':'" in said or "never closed" in rule:  # PyYAML points behind the line that lacks the colon
        mark = getattr(error, "context_mark", None) or mark
    if mark is None:
        return Problem(name, rule, mend=mend)
    lines = text.splitlines()
    value = lines[mark.line].rstrip() if mark.line < len(lines) else NOTHING
    return Problem(f"{name}:{mark.line + 1}:{mark.column + 1}", rule, value, mend)


def line_and_column(text: str, position: int) -> tuple[int, int]:
    """Of a character, from 1."""
    before = text[:position]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def dotted(path: KeyPath) -> str:
    """`("workload", "phases", 0)` as a person writes it: `workload.phases[0]`."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def parse_plain(text: str) -> Scalar:
    """The value of an unquoted scalar.

    `.inf` is a request rate of vLLM's; whoever asks refuses it elsewhere. Raises ValueError, with the rule that it
    breaks, for NaN, other infinities and numbers too large for anything here.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _DECIMAL.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a whole number has at most {MAX_DIGITS} digits")
        return int(text)
    if _OTHER_BASE.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text, 0)
    if text.removeprefix("+") in (".inf", ".Inf", ".INF"):
        return math.inf
    number = float(text) if _FLOAT.fullmatch(text) else 0.0
    if _NOT_FINITE.fullmatch(text) or not math.isfinite(number):
        raise ValueError("a number must be finite")
    return number if _FLOAT.fullmatch(text) else text


class _Builder:
    """Events to nodes."""

    def __init__(self, name: str) -> None:
        self.name, self.anchors = name, dict[str, _Node]()

    def build(self, text: str) -> _Node | None:
        root: _Node | None = None
        parents: list[_Node] = []
        for event in yaml.parse(text, Loader=yaml.BaseLoader):
            if isinstance(event, yaml.DocumentStartEvent) and root:
                mend = "remove the `---` and what follows"
                raise UserError(Problem(_place(self.name, _mark(event)), "a file holds one document", mend=mend))
            if isinstance(event, yaml.CollectionEndEvent):
                closed = parents.pop()
                closed.open = False
                if closed.is_mapping:
                    closed.value = list(zip(closed.value[::2], closed.value[1::2], strict=True))
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
            tag, mend = (
                event.tag.replace("tag:yaml.org,2002:", "!!"),
                "remove the tag; the form of a value tells its type",
            )
            node.issue = _Issue("YAML tags are not allowed", tag, mend)
        return node

    def _alias(self, event: yaml.AliasEvent) -> _Node:
        target = self.anchors.get(str(event.anchor))
        if target is not None and not target.open:
            return _Node(_mark(event), target.value, target.is_mapping, issue=target.issue)
        rule = "an alias cannot stand inside its anchor" if target else "an alias needs an anchor of its name before it"
        return _Node(
            _mark(event), None, issue=_Issue(rule, f"*{event.anchor}", "quote it if the * is part of the value")
        )


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
            place, rule = _place(self.name, node.mark, path), "a number must be finite"
            self.problems.append(Problem(place, rule, ".inf", "write a finite number"))
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
            key, mark, issue = key_node.value, key_node.mark, key_node.issue
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
