"""How our pictures look: matplotlib's object API alone (pyplot is slow to import), colours that all can tell apart.

Colours: Okabe and Ito, https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from simbatch.sim.metrics.facts import RunFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
LIMIT = "#D55E00"  # SLOs, and nothing else
INK = "#333333"
DPI = 110
RC: dict[str, Any] = {
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a name may have a dollar sign
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


@contextmanager
def figure(
    path: Path, width: float, height: float, *, kind: str = "png", rc: dict[str, Any] | None = None, dpi: int = DPI
) -> Iterator[Figure]:
    """A figure (inches) that is written to `path` as PNG, or `kind` pdf, when the block ends; `rc` adds to our look."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(cast(Any, RC | (rc or {}))):
        drawing = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        canvas = FigureCanvasAgg(drawing)
        yield drawing
        with path.open("wb") as file:
            if kind == "pdf":
                drawing.savefig(file, format="pdf", metadata={"CreationDate": None})  # the same run, the same bytes
                return
            canvas.print_png(file, pil_kwargs={"compress_level": 4})  # type: ignore[no-untyped-call]


def title(drawing: Figure, what: str, facts: RunFacts) -> None:
    """What is shown, of which scenario, under which policy."""
    parameters = ", ".join(f"{key} {value}" for key, value in facts.policy_params.items() if value is not None)
    policy = f"{facts.policy} ({parameters})" if 0 < len(parameters) < 70 else facts.policy
    headline(drawing, f"{what}: {facts.scenario_name}, policy {policy}")


def headline(drawing: Figure, text: str) -> None:
    """The line above everything; cut when it is too long for the picture."""
    text = text if len(text) <= MAX_TITLE else text[: MAX_TITLE - 3] + "..."
    drawing.suptitle(text, x=0.01, ha="left", fontsize=11, fontweight="bold")


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
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    if low > 0 and high / low > LOG_FROM:
        axes.set_xscale("log")
        is_crowded = 2 * np.log10(high / low) + 1 > max_labels
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if is_crowded else (1.0, 3.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(low / 1.15, high * 1.15)
    else:
        margin = max(0.04 * (high - low), (0.1 * high - (high - low)) / 2, 1e-6)  # one value is a line in the middle
        axes.set_xlim(max(0.0, low - margin), high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: duration_text(value)))
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
    """One colour per label, in the order of the palette."""
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(labels)}
