"""How our pictures look: matplotlib's object API alone (pyplot is slow to import), colours that all can tell apart.

Colours: Okabe and Ito, https://jfly.uni-koeln.de/color/, but for yellow, which is too light for a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.metrics.columns import RunFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#332288", "#777777")
MORE = ("#B2DF8A", "#8B4513", "#999933", "#882255", "#FFB6C1", "#7F3C8D", "#00CED1", "#F0E442")  # yellow is the palest
LIMIT = "#D55E00"  # SLOs, and nothing else
INK = "#333333"
DPI = 110
RC: dict[str, Any] = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name may have a dollar sign
    "text.hinting": "none",  # a tenth of a picture's time, and nobody sees it
    "axes.edgecolor": "#999999",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": "#E4E4E4",
    "pdf.fonttype": 42,  # letters stay letters, as publishers ask
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
CURVE_POINTS = 400
MAX_TITLE = 130  # characters
LOG_FROM = 15  # axes are logarithmic when the highest value is that many times the lowest
THIN, STEP, MAX_STEPS = 1.1, 0.65, 4  # points: of the last line, and how much wider the ones under it are
BESIDE = 1.3  # points: such a step leaves a pixel of the line below on either side
KINDS = ("png", "pdf", "svg")


@contextmanager
def figure(
    path: Path,
    width: float,
    height: float,
    *,
    kind: str = "png",
    rc: dict[str, Any] | None = None,
    dpi: int = DPI,
    layout: str = "constrained",
) -> Iterator[Figure]:
    """A figure (inches) that is written to `path` as one of `KINDS` when the block ends; `rc` adds to our look."""
    with inline(width, height, rc=rc, dpi=dpi, layout=layout) as drawing:
        yield drawing
        with path.open("wb") as file:
            if kind != "png":
                date = "CreationDate" if kind == "pdf" else "Date"
                drawing.savefig(file, format=kind, metadata={date: None})  # the same run, the same bytes
                return
            _write_png(drawing, file)


@contextmanager
def inline(
    width: float, height: float, *, rc: dict[str, Any] | None = None, dpi: int = DPI, layout: str = "constrained"
) -> Iterator[Figure]:
    """A figure (inches) in our look, which a notebook shows whether or not it has loaded pyplot.

    `layout`: "constrained" finds room for what axes are labelled with; "none" for `fixed_grid`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    fixed = {"axes.titley": 1.0} if layout == "none" else {}
    with rc_context(cast(Any, RC | {"svg.hashsalt": "simbatch"} | fixed | (rc or {}))):
        drawing = Figure(figsize=(width, height), dpi=dpi, layout=cast(Any, layout))
        drawing._repr_png_ = lambda: _png(drawing)  # type: ignore[attr-defined]
        yield drawing


LEFT, RIGHT, TOP, BOTTOM = 0.75, 0.12, 0.5, 0.48  # margins of a fixed grid, inches


def fixed_grid(drawing: Figure, rows: int, columns: int, across: float, down: float, **options: Any) -> NDArray[Any]:
    """Axes with so many inches between them: in half the time that matplotlib takes to find out how many it needs."""
    width, height = drawing.get_size_inches().tolist()
    room = (width - LEFT - RIGHT - across * (columns - 1)) / columns, (height - TOP - BOTTOM - down * (rows - 1)) / rows
    places = {"left": LEFT / width, "right": 1 - RIGHT / width, "bottom": BOTTOM / height, "top": 1 - TOP / height}
    spaces = {"wspace": across / room[0], "hspace": down / room[1]}
    grid: NDArray[Any] = drawing.subplots(rows, columns, squeeze=False, gridspec_kw=places | spaces, **options)
    for axes in grid.flat:
        axes.yaxis.set_label_coords((0.22 - LEFT) / room[0], 0.5)
        axes.xaxis.set_label_coords(0.5, (0.15 - BOTTOM) / room[1])
    return grid


def _png(drawing: Figure) -> bytes:
    file = BytesIO()
    _write_png(drawing, file)
    return file.getvalue()


def _write_png(drawing: Figure, file: IO[bytes]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(drawing)
    canvas.draw()
    opaque = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # three quarters of the bytes to pack
    opaque.save(file, "png", compress_level=3, dpi=(drawing.dpi, drawing.dpi))


def title(drawing: Figure, what: str, facts: RunFacts) -> None:
    """What is shown, of which scenario, under which policy."""
    parameters = ", ".join(f"{key} {value}" for key, value in facts.policy_params.items() if value is not None)
    policy = f"{facts.policy} ({parameters})" if 0 < len(parameters) < 70 else facts.policy
    headline(drawing, f"{what}: {facts.scenario_name}, policy {policy}")


def line_width(i: int, num: int, step: float = STEP) -> float:
    """Of the i-th of so many lines, in points: where all of them run alike, each shows beside the next."""
    return THIN + step * min(num - 1 - i, MAX_STEPS)


def headline(drawing: Figure, text: str) -> None:
    """The line above everything; cut when it is too long for the picture."""
    text = text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 3] + "..."
    place: dict[str, Any] = {} if drawing.get_layout_engine() else {"y": 1 - 0.05 / drawing.get_size_inches()[1]}
    drawing.suptitle(text, x=0.01, ha="left", fontsize=11, fontweight="bold", **place)


def duration_text(milliseconds: float | None) -> str:
    """As a person says it: 0.53 ms, 272 ms, 1.03 s, 12.5 min; `-` for what was not measured."""
    if milliseconds is None:
        return "-"
    units = ((999.5, 1, "ms"), (599.5e3, 1e3, "s"), (np.inf, 6e4, "min"))
    divisor, unit = next((divisor, unit) for below, divisor, unit in units if milliseconds < below)
    return f"{milliseconds / divisor:.3g} {unit}"


def cdf(axes: Axes, values: NDArray[np.float64], shares: NDArray[np.float64], **style: Any) -> None:
    """A distribution: `shares` of all are up to `values` (ascending)."""
    chosen = _evenly(len(values))
    axes.step(
        np.append(values[chosen[:1]], values[chosen]), np.append(0.0, 100 * shares[chosen]), where="post", **style
    )


def _evenly(length: int) -> NDArray[np.int64]:
    """As many indices as a curve needs, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, CURVE_POINTS).round().astype(np.int64))


def latency_axis(axes: Axes, low: float, high: float, max_labels: int = 8) -> None:
    """An x axis in ms for values from `low` to `high`, logarithmic when they are far apart; y: shares in percent."""
    from matplotlib.ticker import MaxNLocator

    if low > 0 and high / low > LOG_FROM:
        is_crowded = 2 * np.log10(high / low) + 1 > max_labels
        log_scale(axes, "x", (1.0,) if is_crowded else (1.0, 3.0))
        axes.set_xlim(low / 1.15, high * 1.15)
    else:
        margin = max(0.04 * (high - low), (0.1 * high - (high - low)) / 2, 1e-6)  # one value is a line in the middle
        axes.set_xlim(max(0.0, low - margin), high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    say_values(axes.xaxis)
    axes.set_ylim(0, 103)
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])


def time_axis(axes: Axes, end_s: float) -> float:
    """Label an x axis that runs from 0 to `end_s`; returns what to divide seconds by."""
    units = ((1, "s", 1200), (60, "min", 7200), (3600, "h", np.inf))
    divisor, unit = next((divisor, unit) for divisor, unit, limit in units if end_s < limit)
    axes.set_xlabel(f"time ({unit})")
    axes.set_xlim(0, end_s / divisor)
    return float(divisor)


def count_axis(axes: Axes, highest: float) -> None:
    """A y axis for whole numbers up to `highest`."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(0, max(1.0, highest) * 1.08)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def sorted_shares(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values in order and the share of all up to each, as many as are drawn; `values` has one at least."""
    chosen = _evenly(len(values))
    return np.sort(values)[chosen], (chosen + 1) / len(values)


def colours(labels: Sequence[str]) -> dict[str, str]:
    """One colour per label, in the order of the palette; sixteen differ, as many as there are policies."""
    every = (*PALETTE, *MORE)
    return {label: every[i % len(every)] for i, label in enumerate(labels)}


def label_apart(
    axes: Axes,
    points: Sequence[tuple[float, float, str]],
    *,
    fontsize: float = 8,
    uncrossed: Sequence[float] = (),
    **text: Any,
) -> None:
    """A text beside each point, where it covers no other one: right of it or left, above, level or below.

    The axes' limits must be set; `uncrossed`: where on the x axis lines stand that no text may cross. The first are
    placed first; a text for which there is no room is left out.
    """
    width = 0.6 * fontsize
    taken: list[tuple[float, float, float, float]] = []
    points_per_pixel = 72 / axes.figure.dpi
    places = [axes.transData.transform((x, y)) * points_per_pixel for x, y, _ in points]
    box = axes.bbox
    left, low, right, high = (edge * points_per_pixel for edge in box.extents)
    lines = [float(axes.transData.transform((x, 0))[0]) * points_per_pixel for x in uncrossed]
    for (x, y, label), place in zip(points, places, strict=True):
        for dx, dy in ((7, 3), (7, -9), (-7, 3), (-7, -9), (7, 12), (-7, 12), (7, -18), (-7, -18)):
            begin = float(place[0]) + (dx if dx > 0 else dx - width * len(label))
            bottom = float(place[1]) + dy
            area = (begin, bottom, begin + width * len(label), bottom + fontsize)
            hits = any(_overlap(area, other) for other in taken) or any(_holds(area, other) for other in places)
            is_inside = left <= area[0] and area[2] <= right and low <= area[1] and area[3] <= high
            if hits or not is_inside or any(area[0] < line < area[2] for line in lines):
                continue
            taken.append(area)
            side: Any = "left" if dx > 0 else "right"
            axes.annotate(label, (x, y), (dx, dy), textcoords="offset points", ha=side, fontsize=fontsize, **text)
            break


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _holds(area: tuple[float, float, float, float], place: NDArray[np.float64]) -> bool:
    return bool(area[0] - 3 < place[0] < area[2] + 3 and area[1] - 3 < place[1] < area[3] + 3)


def value_axis(axes: Axes, name: str, values: Sequence[float], *, is_time: bool, from_zero: bool = False) -> None:
    """Scale the axis `name` (x or y) for these values: logarithmic where they are far apart, times with their unit."""
    low, high = min(values), max(values)
    if low > 0 and high / low > LOG_FROM and not from_zero:
        log_scale(axes, name, (1.0, 2.0, 5.0) if high / low < 300 else (1.0, 3.0))
        margin = (high / low) ** 0.06
        getattr(axes, f"set_{name}lim")(low / margin, high * margin)
    else:
        room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        getattr(axes, f"set_{name}lim")(0 if from_zero else max(0.0, low - room), high + room)
    say_values(getattr(axes, f"{name}axis"), duration_text if is_time else six_digits)


def six_digits(value: float) -> str:
    """`0.5`, `12,345.6`."""
    return f"{value:,.6g}"


def log_scale(axes: Axes, name: str, subs: Sequence[float], *, has_minor: bool = False) -> None:
    """Make the axis `name` (x or y) logarithmic, with figures at `subs` of a decade; `has_minor`: other marks too."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axis = getattr(axes, f"{name}axis")
    getattr(axes, f"set_{name}scale")("log")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_formatter(NullFormatter())
    if not has_minor:
        axis.set_minor_locator(NullLocator())


def say_values(axis: Axis, text: Callable[[float], str] = duration_text) -> None:
    """Its figures as a person says them; without `text` they are times in ms."""
    axis.set_major_formatter(lambda value, _: text(value))
