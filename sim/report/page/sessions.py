"""Sessions on the page of a run: which of them kept their limits, and their turns one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from simbatch.sim.report import style
from simbatch.sim.report.page.charts import PageChart, Panel, line
from simbatch.sim.report.page.page import PageTable
from simbatch.sim.report.sessions import COLUMNS, slo_rows, turn_cells


def session_tables(ours: Mapping[str, Any]) -> Iterator[PageTable]:
    """None where nobody had a session; `ours` as in summary.json."""
    if (sessions := ours.get("sessions")) is None:
        return
    if rows := [*slo_rows(sessions)]:
        yield PageTable("Sessions within SLO", ("", ""), rows)
    yield PageTable("Sessions, turn by turn (TTFT in ms)", COLUMNS, [turn_cells(row) for row in sessions["turns"]])


def turn_charts(ours: Mapping[str, Any]) -> Iterator[PageChart]:
    """TTFT and hit rate by turn."""
    turns = ours.get("sessions", {}).get("turns", ())
    if len(turns) < 2:
        return
    xs = [float(row["turn"]) for row in turns]
    ttft = [
        line(
            statistic, xs, [row[f"{statistic}_ttft_ms"] for row in turns], colour, "%{y:,.1f} ms", mode="lines+markers"
        )
        for statistic, colour in (("p99", style.PALETTE[1]), ("mean", style.PALETTE[0]))
    ]
    shares = [None if (share := row["cached_tokens_share"]) is None else 100 * share for row in turns]
    hits = line("from the prefix cache", xs, shares, style.PALETTE[2], "%{y:.1f} %", mode="lines+markers")
    panels = [Panel("TTFT (ms)", ttft), Panel("of the prompt (%)", [hits], top=101)]
    note = "Later turns are taken together at the last point." if turns[-1]["last_turn"] > turns[-1]["turn"] else ""
    yield PageChart("Sessions, turn by turn", "turns of the session before it", panels, note, size="wide")
