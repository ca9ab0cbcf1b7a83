"""Plain YAML scalars by the core schema of YAML 1.2 (section 10.3.2).

PyYAML alone would read YAML 1.1, where `1e3` is text, `on` is true, `010` is 8 and `1:30` is 90.
"""

from __future__ import annotations

import math
import re

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

    Raises ValueError, with the rule that it breaks, for NaN, infinities and numbers too large for anything here.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _DECIMAL.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise ValueError(f"a whole number has at most {MAX_DIGITS} digits")
        return int(text)
    if _OTHER_BASE.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text, 0)
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
