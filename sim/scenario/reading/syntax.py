"""YAML's syntax: plain scalars by version 1.2, and the parser's complaints in words that tell a newcomer what to do."""

from __future__ import annotations

import math
import re

import yaml

from simbatch.sim.errors import NOTHING, Problem

Scalar = str | int | float | bool | None

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

MAX_DIGITS = 40


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
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("a number must be finite")
    if _FLOAT.fullmatch(text):
        return finite(float(text))
    return text


def finite(value: float) -> float:
    """`value` itself; ValueError when it is NaN or an infinity."""
    if not math.isfinite(value):
        raise ValueError("a number must be finite")
    return value


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


def syntax_problem(error: yaml.YAMLError, text: str, name: str) -> Problem:
    """One problem for one exception of the parser, with the line as the value."""
    if isinstance(error, yaml.reader.ReaderError):
        line, column = _line_and_column(text, error.position)
        character = text[error.position : error.position + 1]
        return Problem(f"{name}:{line}:{column}", "this character is not allowed in YAML", character, "remove it")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    said = str(getattr(error, "problem", None) or error)
    if "expected ':'" in said:  # PyYAML points behind the line that lacks the colon
        mark = getattr(error, "context_mark", None) or mark
    rule, mend = next(
        ((rule, mend) for part, rule, mend in _SAYINGS if part in said), (f"not valid YAML: {said}", "check this line")
    )
    if "never closed" in rule:
        mark = getattr(error, "context_mark", None) or mark
    if mark is None:
        return Problem(name, rule, mend=mend)
    lines = text.splitlines()
    value = lines[mark.line].rstrip() if mark.line < len(lines) else NOTHING
    return Problem(f"{name}:{mark.line + 1}:{mark.column + 1}", rule, value, mend)


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, len(before) - before.rfind("\n")
