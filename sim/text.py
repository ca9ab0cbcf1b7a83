"""Numbers, shares, names, sentences and tables as people read them.

A table stays within the page's width: its figures are never cut and its columns never left out. What is too wide gives
way in this order, and no more than it must:
1. titles are broken between their words, names and texts between theirs;
2. the columns stand in parts of which each fits: below each other, the names repeated, or, of a list longer than
   a screen, on further lines of each row;
3. where the names alone fill half the page, rows are numbered, and the parts repeat the numbers.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from shutil import get_terminal_size

MAX_NAME = 20
MAX_NAMES = 8  # of many that a sentence lists
WIDTH, MIN_WIDTH = 100, 60  # columns of a page
LAST_VALUE = 44  # column, up to which what follows a value stands below it
COMMAND = re.compile(r"\s*(?:vllm|simbatch) [a-z]")
TOKEN = re.compile(r"""(?:[^\s'"]|'[^']*'|"[^"]*")+""")  # of a shell
GAP = 2  # spaces between two columns
INDENT = 2  # of a row's further lines
MIN_NAME, MIN_TEXT = 24, 8  # columns, below which a name or a text is not broken
MAX_REPEATED = 20  # rows of a table whose parts stand below each other
TITLE_PIECES = re.compile(r"[^\s_.]*(?:[_.]|\s|$)")
WORDS = re.compile(r"\S*(?:\s|$)")
PARTS = re.compile(r"[^-_/]*(?:[-_/]|$)")  # of a word that is too long


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


@dataclass(frozen=True)
class _Column:
    """Names and texts stand to the left and may be broken down to `MIN_NAME` or their longest word; figures never."""

    title: str
    cells: tuple[str, ...]
    is_name: bool = False
    is_text: bool = False

    @property
    def to_left(self) -> bool:
        return self.is_name or self.is_text

    @property
    def natural(self) -> int:
        """As wide as its longest line."""
        return max(map(_longest, (self.title, *self.cells)))

    @property
    def with_broken_title(self) -> int:
        title = max((_cells(piece.rstrip()) for piece in _pieces(self.title, TITLE_PIECES)), default=0)
        return max([title, *map(_longest, self.cells)])

    @property
    def least(self) -> int:
        whole = self.with_broken_title
        if self.is_text:
            words = (len(piece.rstrip()) for cell in self.cells for piece in _pieces(cell, WORDS))
            return min(whole, max([MIN_TEXT, *words]))
        return min(whole, MIN_NAME) if self.is_name else whole


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    num_left: int = 1,
    *,
    num_names: int | None = None,
    texts: Collection[str] = (),
) -> list[str]:
    """Lines of a table: names and texts to the left, figures to the right, two spaces between them.

    The first `num_left` columns are names, those titled as in `texts` and those without a title texts: both may be
    broken over several lines. The first `num_names` (those names, where it is not said) tell rows apart.
    """
    columns = [
        _Column(title, tuple(cells), i < num_left, title in texts or (not title and i >= max(1, num_left)))
        for i, (title, *cells) in enumerate(zip(header, *rows, strict=True))
    ]
    if _least(columns) <= width():
        return _lines(columns, width())
    num_names = num_names or max(1, num_left)
    if len(rows) > MAX_REPEATED:
        parts = [*_parts(columns, [column.with_broken_title for column in columns], width(), indent=INDENT)]
        blocks = [_blocks(part, width() - INDENT * (i > 0)) for i, part in enumerate(parts)]
        by_row = zip(*blocks, strict=True)
        return [" " * INDENT * (i > 0) + line for row in by_row for i, block in enumerate(row) for line in block]
    names = columns[:num_names]
    if _least(names) > width() // 2:
        number = _Column("#", tuple(str(i) for i in range(1, len(rows) + 1)))
        names, rest = [number], columns
    else:
        rest = columns[num_names:]
    parts = [[*names, *part] for part in _parts(rest, [column.least for column in rest], width() - _least(names) - GAP)]
    lines = [["", *_lines(part, width())] for part in parts]
    return [line for part in lines for line in part][1:]


def _parts(columns: Sequence[_Column], widths: Sequence[int], room: int, indent: int = 0) -> Iterator[list[_Column]]:
    """As many columns at a time as fit into `room`, `indent` less after the first time."""
    part: list[_Column] = []
    taken = 0
    for column, wide in zip(columns, widths, strict=True):
        if part and taken + wide > room:
            yield part
            part, taken, room, indent = [], 0, room - indent, 0
        part.append(column)
        taken += wide + GAP
    yield part


def _least(columns: Sequence[_Column]) -> int:
    return sum(column.least for column in columns) + GAP * (len(columns) - 1)


def _fitted(columns: Sequence[_Column], room: int) -> list[int]:
    """Widths that fit: titles give way before texts, the widest first."""
    widths = [column.natural for column in columns]
    spare = sum(widths) + GAP * (len(widths) - 1) - room
    for floors in ([column.with_broken_title for column in columns], [column.least for column in columns]):
        while spare > 0 and any(wide > floor for wide, floor in zip(widths, floors, strict=True)):
            at = max(range(len(widths)), key=lambda i: (widths[i] > floors[i], widths[i]))
            widths[at] -= 1
            spare -= 1
    return widths


def _lines(columns: Sequence[_Column], room: int) -> list[str]:
    return [line for block in _blocks(columns, room) for line in block]


def _blocks(columns: Sequence[_Column], room: int) -> list[list[str]]:
    """The lines of the header, whose last ones are level, and those of each row, whose first ones are."""
    widths = _fitted(columns, room)
    titles = [_broken(column.title, wide, TITLE_PIECES) for column, wide in zip(columns, widths, strict=True)]
    high = max(map(len, titles))
    blocks = [_block(columns, widths, [[""] * (high - len(lines)) + lines for lines in titles])]
    for row in zip(*(column.cells for column in columns), strict=True):
        cells = [_broken(cell, wide, WORDS) for cell, wide in zip(row, widths, strict=True)]
        blocks.append(_block(columns, widths, cells))
    return blocks


def _block(columns: Sequence[_Column], widths: Sequence[int], cells: Sequence[list[str]]) -> list[str]:
    lines = []
    for i in range(max(map(len, cells))):
        line = ""
        for column, wide, parts in zip(columns, widths, cells, strict=True):
            text = parts[i] if i < len(parts) else ""
            blanks = " " * (wide - _cells(text))
            line += (text + blanks if column.to_left else blanks + text) + " " * GAP
        lines.append(line.rstrip())
    return lines


def _broken(text: str, wide: int, pieces: re.Pattern[str]) -> list[str]:
    """`text` in lines no wider than `wide`: between its pieces, else anywhere; a space at a line's start goes."""
    from rich.cells import chop_cells

    lines = []
    for given in text.split("\n"):
        line = ""
        for word in [given] if _cells(given) <= wide else _pieces(given, pieces):
            for part in [word] if _cells(word.rstrip()) <= wide else _pieces(word, PARTS):
                if line and _cells(line + part.rstrip()) > wide:
                    lines.append(line.rstrip())
                    line = ""
                *whole, rest = chop_cells(part, wide) if _cells(part.rstrip()) > wide else [part]
                lines += whole
                line += rest
        lines.append(line)
    return lines


def _pieces(text: str, pieces: re.Pattern[str]) -> list[str]:
    return [found[0] for found in pieces.finditer(text) if found[0]]


def _longest(text: str) -> int:
    return max(map(_cells, text.split("\n")))


def _cells(text: str) -> int:
    """Columns of a terminal: two for a Chinese letter."""
    from rich.cells import cell_len

    return cell_len(text)
