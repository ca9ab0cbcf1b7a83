"""Numbers, shares, names and tables as people read them."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from shutil import get_terminal_size
from typing import Literal

MAX_NAME = 20
NO_BREAK = "\ue000"  # stands for a space at a cell's end, which rich would take away
WIDTH = 100  # columns of a page
MIN_NAME, MIN_TITLE = 24, 12  # columns, below which a name or a title is not broken
MAX_NAMES_SHARE = 2 / 3  # of a page, that names may take where columns stand below each other
GAP = 2  # spaces between two columns
LABELLED = re.compile(r"(\S[^:]*: {2,})(\S.*)")  # a figure behind its name


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1, num_names: int | None = None
) -> list[str]:
    """Lines of a table: the first `num_left` columns to the left, the others to the right, two spaces between them.

    What is wider than `width()` is narrowed: first names are broken over several lines, figures never; then the columns
    that do not fit stand below, in parts under a blank line, each behind the first `num_names` (`num_left`) columns.
    """
    columns = [_Column(i < num_left, *column) for i, column in enumerate(zip(header, *rows, strict=True))]
    if _width_of(columns) <= width():
        return _grid(columns)
    return [line for part in _parts(columns, num_left if num_names is None else num_names) for line in ("", *part)][1:]


class _Column:
    """A column's cells, and the least width it can have."""

    def __init__(self, is_name: bool, title: str, *cells: str) -> None:
        self.is_name, self.title, self.cells = is_name, title, cells
        self.longest = max((len(line) for cell in cells for line in cell.split("\n")), default=0)
        self.of_title = max(map(len, title.split("\n")))
        self.narrowest = min(self.longest, MIN_NAME) if is_name else self.longest

    @property
    def least(self) -> int:
        """Columns of the page; of the title as much as is not broken."""
        return max(self.narrowest, min(MIN_TITLE, self.of_title))


def _width_of(columns: Sequence[_Column]) -> int:
    return sum(column.least + GAP for column in columns) - GAP


def _parts(columns: Sequence[_Column], num_names: int) -> Iterator[list[str]]:
    """Tables that fit, each with the names, as many figures as there is room for beside them."""
    names, figures = columns[:num_names], columns[num_names:]
    if _width_of(names) > width() * MAX_NAMES_SHARE:  # no room beside them: the rows' numbers stand for the names
        count = max((len(column.cells) for column in columns), default=0)
        names, figures = [_Column(False, "row", *(f"{i + 1}" for i in range(count)))], columns
    whole = sum(max(column.longest, column.least) + GAP for column in names) - GAP
    if whole <= width() * MAX_NAMES_SHARE:
        for column in names:
            column.narrowest = column.longest
    part: list[_Column] = []
    for column in figures:
        if not column.title and not any(cell.strip() for cell in column.cells):
            continue
        if part and _width_of([*names, *part, column]) > width():
            yield _grid([*names, *part])
            part = []
        part.append(column)
    yield _grid([*names, *part])


def _widths(columns: Sequence[_Column]) -> list[int]:
    """Each as wide as it would be; where the page is too narrow for that, the narrowest grow first."""
    widths, full = [each.least for each in columns], [max(each.longest, each.of_title) for each in columns]
    for _ in range(width() - _width_of(columns)):
        growing = [i for i, (has, wants) in enumerate(zip(widths, full, strict=True)) if has < wants]
        if not growing:
            break
        widths[min(growing, key=widths.__getitem__)] += 1
    return widths


def _grid(columns: Sequence[_Column]) -> list[str]:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_edge=False, pad_edge=False, padding=(0, GAP, 0, 0), header_style="", expand=False)
    for each, columns_wide in zip(columns, _widths(columns), strict=True):
        justify: Literal["left", "right"] = "left" if each.is_name else "right"
        grid.add_column(Text(_kept(each.title)), justify=justify, width=columns_wide, overflow="fold")
    for row in zip(*(each.cells for each in columns), strict=True):
        grid.add_row(*(Text(_kept(cell)) for cell in row))
    page = Console(
        width=max(width(), _width_of(columns)),
        color_system=None,
        file=StringIO(),
        legacy_windows=False,
        force_jupyter=False,
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
    """Columns of a page: 100, or those of a terminal (or of COLUMNS) where there are fewer, but not below 60."""
    is_known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return max(60, min(WIDTH, get_terminal_size((WIDTH, 24)).columns)) if is_known else WIDTH


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


def beside(begin: str, text: str) -> list[str]:
    """`begin` and a text that is broken to the page right of it, or below it where little room is left there."""
    indent = " " * len(begin)
    if width() - len(begin) < MIN_NAME < len(text):
        return [begin.rstrip(), *textwrap.wrap(text, width(), initial_indent="    ", subsequent_indent="    ")]
    kept = textwrap.wrap(text, width(), initial_indent=begin, subsequent_indent=indent, break_on_hyphens=False)
    return kept or [begin.rstrip()]


def wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Sentences, lists and labelled figures broken to the page, what follows indented; tables as they are."""
    for line in lines:
        if len(line) <= width():
            yield line
        elif "  " not in line:
            yield from textwrap.wrap(line, width(), subsequent_indent="  ", break_on_hyphens=False)
        elif (labelled := LABELLED.fullmatch(line)) is not None:
            yield from beside(labelled[1], labelled[2].rstrip())
        else:
            yield line
