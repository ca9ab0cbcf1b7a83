"""Numbers, shares, names and tables as people read them."""

from __future__ import annotations

from collections.abc import Sequence

MAX_NAME = 20


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([row[0].ljust(len(first)), *others]).rstrip())
    return lines


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
