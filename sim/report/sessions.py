"""Sessions for people: a block of the console, and sessions.png."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simbatch.sim.metrics.sessions import SessionFigures
from simbatch.sim.report import style
from simbatch.sim.report.engine_text import header, row_of
from simbatch.sim.results.runs import MeasuredRun
from simbatch.sim.text import number, percent, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_ROWS = 6  # turns on the console: the first ones and the last
MAX_DRAWN = 200  # turns
MIN_REQUESTS = 5  # of a turn that is drawn, unless no turn has as many
LABELS = {"duration": "Time to finish", "without_thinking": "Without thinking"}
COLUMNS = ("turn", "requests", "TTFT mean", "TTFT median", "TTFT p99", "prompt tokens", "cached")


def session_lines(sessions: Mapping[str, Any] | None) -> Iterator[str]:
    """How long sessions took, and what their turns felt; `sessions` as in summary.json, None: there are none."""
    if sessions is None:
        return
    yield header("Sessions (times in ms)", "-")
    yield row_of("Completed / ended early:", f"{sessions['completed']:,} / {sessions['ended_early']:,}")
    if sessions["num_turns_not_sent"]:
        yield row_of("Turns not sent since theirs had ended:", f"{sessions['num_turns_not_sent']:,}")
    yield row_of("Sessions at once, max:", f"{sessions['max_concurrent']:,}")
    for label, text in slo_rows(sessions):
        yield row_of(f"{label}:", text)
    for name, label in LABELS.items():
        figures = " / ".join(number(sessions[f"{statistic}_{name}_ms"], 1) for statistic in ("mean", "p99"))
        yield row_of(f"{label}, mean / P99:", figures)
    if sessions["num_recomputed_tokens"]:
        share = percent(sessions["recomputed_tokens_share"])
        yield row_of("Conversation computed again (tokens):", f"{sessions['num_recomputed_tokens']:,} ({share})")
    rows = sessions["turns"]
    shown = rows if len(rows) <= MAX_ROWS else [*rows[: MAX_ROWS - 1], rows[-1]]
    yield from table(COLUMNS, [turn_cells(row) for row in shown])
    if len(rows) > len(shown):
        yield f"(turns {shown[-2]['turn'] + 1} to {shown[-1]['turn'] - 1} in summary.json)"


def slo_rows(sessions: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How many sessions kept each limit that is set, and all of them; `sessions` as in summary.json."""
    if not (shares := sessions["slo_share"]):
        return
    for key, limit in sessions["slo"].items():
        name = key.removesuffix("_ms")
        yield f"{LABELS[name]} <= {limit:g} ms", percent(shares[name])
    yield "Sessions within SLO", percent(shares["all"])
    yield "Session goodput (sessions/s)", number(sessions["goodput"], 3)


def turn_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a turn has below `COLUMNS`."""
    return (
        str(row["turn"]) if row["turn"] == row["last_turn"] else f"{row['turn']}-{row['last_turn']}",
        f"{row['num_requests']:,}",
        *(number(row[f"{statistic}_ttft_ms"], 1) for statistic in ("mean", "median", "p99")),
        number(row["mean_prompt_tokens"], 0),
        percent(row["cached_tokens_share"]),
    )


def write_sessions(path: Path, result: MeasuredRun) -> None:
    """TTFT and hit rate by turn, and of how many requests."""
    figures = SessionFigures.of(result.record)
    assert figures is not None
    rows = [figures.row(turn, turn) for turn in range(min(figures.num_turns, MAX_DRAWN))]
    enough = [row for row in rows if row["num_requests"] >= MIN_REQUESTS] or rows
    turns = [row["turn"] for row in enough]
    with style.figure(path, 10.5, 7.0) as drawing:
        style.title(drawing, "Sessions, turn by turn", result.facts)
        ttft, hits, requests = drawing.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
        for statistic, colour in (("p99", style.PALETTE[1]), ("mean", style.PALETTE[0])):
            values = [row[f"{statistic}_ttft_ms"] for row in enough]
            _line(ttft, turns, values, color=colour, label=statistic)
        _ms_axis(ttft)
        ttft.set_title("TTFT of the turn")
        ttft.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0)
        _line(hits, turns, [row["cached_tokens_share"] for row in enough], scale=100, color=style.PALETTE[2])
        hits.set(title="prompt tokens from the prefix cache", ylabel="%", ylim=(0, 104), yticks=[0, 25, 50, 75, 100])
        requests.bar(turns, [row["num_requests"] for row in enough], color=style.PALETTE[4])
        style.count_axis(requests, max((row["num_requests"] for row in enough), default=0))
        requests.set(title="requests", xlabel="turns of the session before it")
        requests.xaxis.get_major_locator().set_params(integer=True)
        drawing.align_ylabels()


def _line(axes: Axes, turns: list[int], values: list[float | None], *, scale: float = 1, **look: Any) -> None:
    points = np.array([np.nan if value is None else value * scale for value in values], dtype=np.float64)
    axes.plot(turns, points, marker="o", markersize=3.5, linewidth=1.4, **look)


def _ms_axis(axes: Axes) -> None:
    """Times from 0 on, as a person says them."""
    from matplotlib.ticker import FuncFormatter

    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.duration_text(value)))
