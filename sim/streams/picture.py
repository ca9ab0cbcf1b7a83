"""The steps of a run over time: how many requests, and how long each step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simbatch.sim.files import replacing
from simbatch.sim.report import style
from simbatch.sim.streams.described import Described

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 20_000  # of one kind; of more, evenly many


def write_steps(path: Path, title: str, described: Described) -> None:
    """A PNG of two panels; the file appears when it is complete."""
    steps = described.steps
    begin_s = float(steps.streams.sent_s.min())
    with replacing(path) as temporary, style.figure(temporary, 12, 6.6) as drawing:
        style.headline(drawing, title)
        upper, lower = drawing.subplots(2, 1, sharex=True)
        divisor = style.time_axis(lower, float(steps.mean_s[-1]) - begin_s)
        _batch(upper, described, begin_s, divisor)
        _gaps(lower, described, (steps.mean_s - begin_s) / divisor)
        drawing.align_ylabels()


def _batch(axes: Axes, described: Described, begin_s: float, divisor: float) -> None:
    streams, steps = described.steps.streams, described.steps
    sent, last = np.sort(streams.sent_s), np.sort(streams.last_s)
    times = np.sort(np.concatenate([sent, last]))
    in_flight = np.searchsorted(sent, times, side="right") - np.searchsorted(last, times, side="right")
    shown = _evenly(len(times))
    label = "in flight at the client"
    axes.step(
        (times[shown] - begin_s) / divisor, in_flight[shown], where="post", color="#BBBBBB", linewidth=1, label=label
    )
    shown = _evenly(len(steps))
    x = (steps.mean_s[shown] - begin_s) / divisor
    axes.step(x, described.batch[shown], where="pre", color=style.PALETTE[0], linewidth=1.0, label="batch: got a token")
    axes.set_title("batch")
    axes.set_ylabel("requests")
    style.count_axis(axes, float(max(in_flight.max(), described.batch.max())))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)


def _gaps(axes: Axes, described: Described, x: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    decoded = described.steps.num_decodes > 0
    kinds = (
        ("decodes alone", described.is_plain, style.PALETTE[0]),
        ("decodes before prefills", described.is_waiting, style.PALETTE[2]),
        ("with prefills", decoded & described.has_prefills, style.PALETTE[1]),
    )
    gap_ms = 1000 * described.lasted_s
    for label, chosen, color in kinds:
        shown = np.flatnonzero(chosen)[_evenly(int(chosen.sum()))]
        axes.scatter(x[shown], gap_ms[shown], s=5, color=color, alpha=0.6, linewidths=0, label=label)
    seen = gap_ms[decoded & (gap_ms > 0)]
    if len(seen) and seen.max() > style.LOG_FROM * np.quantile(seen, 0.01):
        axes.set_yscale("log")
        axes.set_ylim(0.7 * np.quantile(seen, 0.001), 1.4 * seen.max())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_ylim(0, None)
    axes.set_title("between the tokens of two steps")
    axes.set_ylabel("ms")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0, markerscale=2)


def _evenly(n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Indices of at most `MAX_POINTS` of n."""
    return np.arange(n) if n <= MAX_POINTS else np.linspace(0, n - 1, MAX_POINTS).astype(np.int64)
