"""Charts of a page as plotly.js takes them: plain data, so that nothing but the file's text is drawn.

A chart is one or several panels one above another over the same x axis; every curve has a name in the legend, limits
too, so that each can be switched off. Many points are thinned out before they come here, and the chart's note says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simbatch.sim.report.style import BESIDE, INK, LIMIT, LOG_FROM, line_width

Trace = dict[str, Any]
Floats = NDArray[np.float64]
Figures = ArrayLike | Sequence[float | None]  # None: not measured
HEIGHT, SMALL, PANEL_HEIGHT, LEGEND_HEIGHT, ROW_HEIGHT = 330, 220, 175, 100, 22  # px
GAP = 0.07  # of the height, between panels
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
MAX_TITLE = 20  # characters of a line beside one of several panels
PX = 1.8  # a point of the pictures: the thinnest line has 2 px
DIGITS = 6  # that a number in the file has; no screen shows more
GRID = "#E4E4E4"
MANY_DECADES = 2000  # a ratio, from which on a logarithmic axis has a mark a decade
MAX_WRITTEN = 150  # cells of a heat map whose figures are written into them
SPIKE = {"showspikes": True, "spikemode": "across", "spikethickness": 1, "spikecolor": "#999999"}
LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"}


@dataclass(frozen=True)
class Panel:
    """Curves over one y axis, whose title has its unit; `top`: where it ends, `is_log`: as a logarithm."""

    unit: str
    traces: Sequence[Trace]
    top: float | None = None
    is_log: bool = False
    axis: Mapping[str, Any] | None = None  # what differs from the others'


@dataclass(frozen=True)
class PageChart:
    """The question that it answers, and the panels that do; `note` stands below."""

    question: str
    x: str
    panels: Sequence[Panel]
    note: str = ""
    is_log_x: bool = False
    size: str = ""  # `wide` takes the whole row, `third` a third, `small` a quarter, without a legend
    x_axis: Mapping[str, Any] | None = None  # what differs from the others'
    num_rows: int = 0  # names on the y axis, where there are some: so many lines high


def drawn(chart: PageChart) -> dict[str, Any]:
    """`data` and `layout` for Plotly.newPlot."""
    number, is_small = len(chart.panels), chart.size == "small"
    height = (1 - GAP * (number - 1)) / number
    data: list[Trace] = []
    axes: dict[str, Any] = {}
    for i, panel in enumerate(chart.panels):
        name = "" if i == 0 else str(i + 1)
        bottom = (number - 1 - i) * (height + GAP)
        axes[f"yaxis{name}"] = _y_axis(panel, bottom, min(1.0, bottom + height))
        data += [{**trace, "yaxis": f"y{name}"} for trace in panel.traces]
    x_axis = {
        **_axis(chart.x, chart.panels[0].traces, "x" if chart.is_log_x else ""),
        "anchor": "y" if number == 1 else f"y{number}",
        **(SPIKE if number > 1 else {}),
        **(chart.x_axis or {}),
    }
    layout = {
        "height": _height(chart),
        "margin": {"l": 62, "r": 12, "t": 8 if is_small else 28, "b": 48},
        "font": {"family": FONT, "size": 12, "color": INK},
        "showlegend": not is_small,
        **({} if is_small else {"legend": LEGEND}),
        "hovermode": "x unified" if number > 1 else "closest",
        "hoversubplots": "axis",
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": x_axis,
        **axes,
    }
    return {"data": data, "layout": layout}


def _height(chart: PageChart) -> int:
    if chart.size == "small":
        return SMALL
    if chart.num_rows:
        return ROW_HEIGHT * chart.num_rows + 2 * LEGEND_HEIGHT
    return HEIGHT if len(chart.panels) == 1 else PANEL_HEIGHT * len(chart.panels) + LEGEND_HEIGHT


def _y_axis(panel: Panel, bottom: float, top: float) -> dict[str, Any]:
    unit = "<br>".join(wrap(panel.unit, MAX_TITLE)) if top - bottom < 1 else panel.unit
    axis = {**_axis(unit, panel.traces, "y" if panel.is_log else ""), "domain": [bottom, top]}
    if panel.top is not None:
        axis["range"] = [0, panel.top]
    elif not panel.is_log and "range" not in (panel.axis or {}):
        axis["rangemode"] = "tozero"
    return {**axis, **(panel.axis or {})}


def _axis(title: str, traces: Sequence[Trace], log_of: str) -> dict[str, Any]:
    """`log_of`: which of the traces' figures, `x` or `y`, are drawn as logarithms; empty where none are."""
    style = {"gridcolor": GRID, "zeroline": False, "linecolor": "#999999", "ticks": "outside", "automargin": True}
    scale: dict[str, Any] = {}
    if log_of:
        low, high = span(traces, log_of)
        is_far = low > 0 and high / low > MANY_DECADES
        scale = {"type": "log", "dtick": 1 if is_far else "D2", "tickformat": "~s"}
    return {"title": {"text": title, "standoff": 6}, **style, **scale}


def line(name: str, x: Figures, y: Figures, colour: str, hover: str, **others: Any) -> Trace:
    """A curve; `hover`: what is shown of a point, with plotly's `%{x}` and `%{y}`."""
    look = {"color": colour, "width": 2, **others.pop("line", {})}
    return {**_curve(name, x, y, hover), "mode": "lines", "line": look, **others}


def points(name: str, x: Figures, y: Figures, colour: str, hover: str, **others: Any) -> Trace:
    """Dots; `x` or `y` may be names, `text` in `others` one a dot."""
    look = {"color": colour, "size": 9, **others.pop("marker", {})}
    return {**_curve(name, x, y, hover), "mode": "markers", "marker": look, **others}


def bars(name: str, x: Sequence[str], y: Figures, colours: Sequence[str], hover: str, **others: Any) -> Trace:
    """A bar for each of the names in `x`, each in its own colour."""
    curve = _curve(name, list(x), y, hover)
    return {**curve, "type": "bar", "marker": {"color": list(colours)}, "showlegend": False, **others}


def heat(name: str, cells: Floats, texts: list[list[str]], *, is_high_good: bool) -> Trace:
    """A cell for each row and column, dark where it is bad; by its logarithm where the cells are far apart."""
    known = cells[np.isfinite(cells)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    is_log = is_wide(low, high)
    shown = np.log10(cells) if is_log else cells
    ends = np.linspace(np.log10(low), np.log10(high), 5) if is_log else np.linspace(low, high, 5)
    ticks = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (10**ends if is_log else ends)]
    return {
        "type": "heatmap",
        "name": name,
        "x": [*range(cells.shape[1])],
        "y": [*range(cells.shape[0])],
        "z": [numbers(row) for row in shown],
        "text": texts,
        "texttemplate": "%{text}" if cells.size <= MAX_WRITTEN else "",
        "hovertemplate": "%{text}<extra></extra>",
        "colorscale": "Viridis",
        "reversescale": not is_high_good,
        "colorbar": {"tickvals": numbers(ends), "ticktext": ticks, "thickness": 10, "outlinewidth": 0},
    }


def border(name: str, is_inside: NDArray[np.bool_]) -> Trace:
    """The line between the cells of a heat map that are inside a limit and those that are not."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row, column in np.argwhere(is_inside[:, 1:] != is_inside[:, :-1]):
        x += [column + 0.5, column + 0.5, None]
        y += [row - 0.5, row + 0.5, None]
    for row, column in np.argwhere(is_inside[1:] != is_inside[:-1]):
        x += [column - 0.5, column + 0.5, None]
        y += [row + 0.5, row + 0.5, None]
    return line(name, x, y, LIMIT, name, line={"width": 3})


def _curve(name: str, x: Figures, y: Figures, hover: str) -> Trace:
    shown = escape(name, quote=False)  # plotly reads tags in what it writes
    return {
        "type": "scatter",
        "name": shown,
        "x": numbers(x),
        "y": numbers(y),
        "hovertemplate": f"{hover}<extra>{shown}</extra>",
    }


def distribution(name: str, values: Floats, shares: Floats, colour: str, **look: Any) -> Trace:
    """How many percent are up to each of `values` (ms, ascending); `shares` from 0 to 1."""
    x, y = np.append(values[:1], values), np.append(0.0, 100 * shares)
    return line(name, x, y, colour, "%{y:.1f} % within %{x:,.1f} ms", line={"shape": "hv", **look})


def beside(traces: Sequence[Trace]) -> list[Trace]:
    """Lines in the order in which they are drawn, each wider than the next: where two run alike, both show."""
    num = len(traces)
    widths = [PX * line_width(i, num, BESIDE) for i in range(num)]
    return [
        {**trace, "line": {**trace["line"], "width": round(width, 2)}}
        for trace, width in zip(traces, widths, strict=True)
    ]


def limit(name: str, x: Sequence[float], y: Sequence[float], **others: Any) -> Trace:
    """A straight line from point to point, dashed: an SLO or a limit, whose colour nothing else has."""
    return line(name, x, y, LIMIT, name, line={"dash": "dash", "width": 1.5}, **others)


def around(mean: Sequence[float | None], low: Sequence[float | None], high: Sequence[float | None]) -> dict[str, Any]:
    """Whiskers from low to high about each mean; none where there is no interval."""
    below = [None if m is None or bound is None else m - bound for m, bound in zip(mean, low, strict=True)]
    above = [None if m is None or bound is None else bound - m for m, bound in zip(mean, high, strict=True)]
    if not any(value is not None for value in below):
        return {}
    return {
        "type": "data",
        "symmetric": False,
        "array": numbers([value or 0.0 for value in above]),
        "arrayminus": numbers([value or 0.0 for value in below]),
        "thickness": 1.2,
        "width": 4,
    }


def numbers(values: Figures) -> list[Any]:
    """As JSON has them, to six digits, null for what was not measured; names as they are."""
    if isinstance(values, list) and values and isinstance(values[0], str):
        return values
    array = np.asarray(values, dtype=np.float64)
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in array.tolist()]


def is_wide(low: float, high: float) -> bool:
    """Whether values from low to high are better shown by their logarithms."""
    return low > 0 and high / low > LOG_FROM


def span(traces: Sequence[Trace], axis: str) -> tuple[float, float]:
    """The lowest and the highest of what the traces have on an axis, `x` or `y`; 0 to 0 of nothing."""
    known = [float(value) for trace in traces for value in trace[axis] if value is not None]
    return min(known, default=0.0), max(known, default=0.0)
