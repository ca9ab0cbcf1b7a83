"""Numbers, shares, names and sentences as people read them; tables.py has the tables."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from shutil import get_terminal_size

MAX_NAME = 20
MAX_NAMES = 8  # of many that a sentence lists
WIDTH, MIN_WIDTH = 100, 60  # columns of a page
LAST_VALUE = 44  # column, up to which what follows a value stands below it
COMMAND = re.compile(r"\s*(?:vllm|simbatch) [a-z]")
TOKEN = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")  # of a shell


def width() -> int:
    """Columns of a page: 100, or those of COLUMNS or a terminal where there are fewer, but not below 60."""
    is_told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return max(MIN_WIDTH, min(WIDTH, get_terminal_size().columns)) if is_told else WIDTH


def number(value: float | None, decimals: int = 2) -> str:
    """Readable digits, `-` for what was not measured."""
    return "-" if value is None else f"{value:,.{decimals}f}"


def percent(share: float | None) -> str:
    """A share as 97.35 %; never 100 % for less than all."""
    if share is None:
        return "-"
    return f"{min(100 * share, 99.99) if share < 1 else 100 * share:.2f} %"


def short_name(name: str) -> str:
    """A tenant's name, which a trace may have given it, as it can be shown."""
    text = "".join(letter if letter.isprintable() else "?" for letter in name)
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 3]}..."


def plus_minus(mean: float, low: float, high: float, decimals: int, scale: float = 1.0) -> str:
    """`± 9.8`, or `(94.50 to 100.00)` where the interval was cut and its ends are not alike, to the digits shown."""
    below, above = (number(scale * reach, decimals) for reach in (mean - low, high - mean))
    if below == above:
        return f"± {above}"
    return f"({number(scale * low, decimals)} to {number(scale * high, decimals)})"


def duration_words(seconds: float) -> str:
    """`under 1 s`, `8 s`, `3.2 min`, `11 h`."""
    if 0 < seconds < 1:
        return "under 1 s"
    units = ((99.5, 1, "s"), (99.5 * 60, 60, "min"), (float("inf"), 3600, "h"))
    divisor, unit = next((divisor, unit) for below, divisor, unit in units if seconds < below)
    return f"{seconds / divisor:.{0 if seconds >= 10 * divisor or divisor == 1 else 1}f} {unit}"


def wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Lines broken to the page, what follows indented: below the value of `key   value`, else by two more spaces.

    Commands are broken before a flag and with a backslash, so that a shell takes them; no word is broken.
    """
    for line in lines:
        if len(line) <= width():
            yield line
        elif COMMAND.match(line):
            yield from _command(line)
        else:
            yield from textwrap.wrap(
                line, width(), subsequent_indent=" " * _indent(line), break_on_hyphens=False, break_long_words=False
            )


def _indent(line: str) -> int:
    """Where what follows a line begins: below its value, if that fits there."""
    gaps = [gap.end() for gap in re.finditer(r"\S\s{2,}(?=\S)", line[: max(width() // 2, LAST_VALUE)])]
    if gaps and max(map(len, line[gaps[-1] :].split())) <= width() - gaps[-1]:
        return gaps[-1]
    return len(line) - len(line.lstrip()) + 2


def _command(line: str) -> Iterator[str]:
    first = line[: len(line) - len(line.lstrip())]
    words: list[str] = []  # a flag with its value
    for token in TOKEN.findall(line):
        if words and words[-1].startswith("-") and " " not in words[-1] and not token.startswith("-"):
            words[-1] += f" {token}"
        else:
            words.append(token)
    row = first + words[0]
    for word in words[1:]:
        if len(row) + len(word) + 1 > width() - 2:
            yield row + " \\"
            row = f"{first}    {word}"
        else:
            row += f" {word}"
    yield row


def cut_short(names: Iterable[object]) -> str:
    """The first of many names, each cut short."""
    found = list(names)
    shown = ", ".join(str(name)[:30] for name in found[:MAX_NAMES])
    more = len(found) - MAX_NAMES
    return f"{shown or '(none)'}" + (f" and {more:,} more" if more > 0 else "")
