"""Numbers, shares, names and tables as people read them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from shutil import get_terminal_size

MAX_NAME = 20
MAX_NAMES = 8  # of many that a sentence lists
NO_BREAK = "\ue000"  # stands for a space at a cell's end, which rich would take away
WIDTH = 100  # columns of a page
MIN_NAME, MIN_TITLE = 24, 12  # columns, below which a name or a title is not broken


def table(header: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1) -> list[str]:
    """Lines of a table: the first `num_left` columns to the left, the others to the right, two spaces between them.

    As wide as it needs to be; where that is more than `width()`, names are broken over several lines, figures never.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="", expand=False)
    least = 0
    for i, (title, *cells) in enumerate(zip(header, *rows, strict=True)):
        is_name = i < num_left
        longest = max((max(map(len, cell.split("\n"))) for cell in cells), default=0)
        narrowest = min(longest, MIN_NAME) if is_name else longest
        least += max(narrowest, min(MIN_TITLE, len(title))) + 2
        grid.add_column(
            Text(_kept(title)), justify="left" if is_name else "right", min_width=narrowest, overflow="fold"
        )
    for row in rows:
        grid.add_row(*(Text(_kept(cell)) for cell in row))
    page = Console(
        width=max(width(), least), color_system=None, file=StringIO(), legacy_windows=False, force_jupyter=False
    )
    with page.capture() as printed:
        page.print(grid)
    return [line.replace(NO_BREAK, " ").rstrip() for line in printed.get().splitlines()]


def _kept(cell: str) -> str:
    """With the spaces round it, which would be taken away: a star may stand in the place of one."""
    words = cell.strip(" ")
    left, _, right = cell.partition(words) if words else (cell, "", "")
    return NO_BREAK * len(left) + words + NO_BREAK * len(right)


def width() -> int:
    """Columns of a page: 100, or those of a terminal that has fewer, but not below 60."""
    return max(60, min(WIDTH, get_terminal_size().columns)) if sys.stdout.isatty() else WIDTH


def broken(name: str) -> str:
    """A long name of a setting as the title of a narrow column, `max_num_` above `batched_` above `tokens`."""
    return name if len(name) <= MIN_TITLE else name.replace("_", "_\n")


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
    """`8 s`, `3.2 min`, `11 h`."""
    units = ((99.5, 1, "s"), (99.5 * 60, 60, "min"), (float("inf"), 3600, "h"))
    divisor, unit = next((divisor, unit) for below, divisor, unit in units if seconds < below)
    return f"{seconds / divisor:.{0 if seconds >= 10 * divisor or divisor == 1 else 1}f} {unit}"


def wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Sentences and lists broken to the page, what follows indented; tables, which have two spaces, as they are."""
    for line in lines:
        is_long = len(line) > width() and "  " not in line
        yield from textwrap.wrap(line, width(), subsequent_indent="  ", break_on_hyphens=False) if is_long else [line]


def cut_short(names: Iterable[object]) -> str:
    """The first of many names, each cut short."""
    found = list(names)
    shown = ", ".join(str(name)[:30] for name in found[:MAX_NAMES])
    more = len(found) - MAX_NAMES
    return f"{shown or '(none)'}" + (f" and {more:,} more" if more > 0 else "")
