"""The capacity as it is asked for in Python, and its answer, with its page.

The page has the rate that holds, and every run by its rate, kept or broken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.files import data_frame
from simbatch.sim.report import style
from simbatch.sim.report.engine_text import trust_of
from simbatch.sim.report.page.charts import PageChart, Panel, is_wide, limit, line, points, span
from simbatch.sim.report.page.page import PageTable, ReportPage, page_writer, settings_tables, trust_rows
from simbatch.sim.scenario import Scenario, resolve
from simbatch.sim.search.cells import CellStore
from simbatch.sim.search.run import Runner
from simbatch.sim.tuning import capacity_report
from simbatch.sim.tuning.capacity import REPLICATIONS, Capacity, capacity_limits, find_capacity
from simbatch.sim.tuning.capacity_report import report
from simbatch.sim.tuning.goal import Goal, Limit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


HOLDS, FAILS, BOUND, OWN = style.PALETTE[0], "#8A8A8A", style.PALETTE[2], style.PALETTE[3]
MAX_LABEL = 30  # characters before a colon that are a label


def capacity_page(found: Capacity) -> ReportPage:
    """The answer as the console has it, and where it comes from."""
    lines, own_rate = report(found).splitlines(), found.load.own
    first = min(found.tried, key=lambda run: abs(run.rate - own_rate)).runs.summaries[0]["simbatch"]
    title, about, *answer = [line for line in lines if line]
    return ReportPage(
        title=title,
        about=f"{about}, by simbatch tune --capacity",
        answer=[*_pairs(answer), ("Trust", f"{trust_of(first['profile'])}.")],
        warnings=[warning for warning in first["warnings"] if not warning.startswith("Overloaded")],
        charts=[*(_by_rate(found, each, own_rate) for each in found.limits), *_by_seed(found)],
        tables=[_table(found)],
        settings=[*settings_tables(first)],
        trust=[*trust_rows(first)],
        scenario=resolve(found.scenario).dump(),
        seeds=(found.bound or found).seeds,
        text="\n".join(lines),
    )


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for text in lines:
        label, colon, rest = text.partition(": ")
        yield (label, rest) if colon and len(label) <= MAX_LABEL else ("", text.strip())


def _by_rate(found: Capacity, bound: Limit, own_rate: float) -> PageChart:
    """The limited figure over the rate."""
    metric, per_s = bound.metric, found.load.times
    scale = metric.scale
    traces = []
    for is_met, name, colour in ((True, "holds", HOLDS), (False, "fails", FAILS)):
        runs = [run for run in found.tried if run.is_met == is_met and run.means[metric.key] is not None]
        if runs:
            texts = [f"seed {run.seed}{', broken: ' + ', '.join(run.broken) if run.broken else ''}" for run in runs]
            ys = [scale * (run.means[metric.key] or 0.0) for run in runs]
            hover = "%{x:.4~g}: %{y:,.4~g}, %{text}"
            traces.append(points(name, [run.rate * per_s for run in runs], ys, colour, hover, text=texts))
    (left, right), (low, high) = span(traces, "x"), span(traces, "y")
    traces.append(limit(str(bound), [left, right], [scale * bound.bound] * 2))
    ends = [min(0.0, low), high]
    if found.bound is not None:
        name, at = f"capacity, kept in {found.bound.kept} of {len(found.bound.seeds)}", found.bound.rate * per_s
        traces.append(line(name, [at, at], ends, BOUND, name))
    traces.append(line("as it stands", [own_rate * per_s] * 2, ends, OWN, "as it stands", line={"dash": "dot"}))
    panel = Panel(metric.unit, traces)
    return PageChart(metric.title, found.load.axis, [panel], is_log_x=is_wide(left, right), size="wide")


def _by_seed(found: Capacity) -> Iterator[PageChart]:
    """The highest rate that each seed keeps: how much is chance."""
    known = {seed: rate * found.load.times for seed, rate in found.by_seed.items() if rate is not None}
    if len(known) < 2:
        return
    seeds = [f"{seed}" for seed in known]
    traces = [points(f"highest {found.load.what} kept", seeds, [*known.values()], HOLDS, "seed %{x}: %{y:.4~g}")]
    if found.bound is not None:
        at = found.bound.rate * found.load.times
        traces.append(line("capacity", [seeds[0], seeds[-1]], [at, at], BOUND, f"{at:.4g}"))
    panel = Panel(found.load.axis, traces)
    yield PageChart(
        f"How much is chance: the highest {found.load.what} of each seed",
        "seed",
        [panel],
        size="wide",
        x_axis={"type": "category"},
    )


def _table(found: Capacity) -> PageTable:
    metrics = [each.metric for each in found.limits]
    rows = [
        (
            f"{run.rate * found.load.times:.4g}",
            str(run.seed),
            *(metric.text(run.means[metric.key]) for metric in metrics),
            "; ".join(run.broken) or "holds",
        )
        for run in sorted(found.tried, key=lambda run: (run.rate, run.seed))
    ]
    header = (found.load.words, "seed", *(metric.label for metric in metrics), "")
    return PageTable("Every run", header, rows, "Every figure is in trials.csv.")


@dataclass(frozen=True)
class CapacityAnswer:
    """The highest rate that was `found` to keep the limits, and every run on the way to it; `num_runs` simulations."""

    found: Capacity
    num_runs: int

    @property
    def rate(self) -> float | None:
        """Requests per second, kept in 17 of 18 seeds; None where no rate holds, or none fails."""
        bound = self.found.bound
        return None if bound is None else bound.rate * self.found.load.times

    @property
    def binds(self) -> Mapping[str, int]:
        """What breaks just above it, and under how many seeds."""
        return self.found.binding()

    def text(self) -> str:
        """The answer, and where it comes from."""
        return capacity_report.report(self.found)

    def as_dict(self) -> dict[str, Any]:
        """The content of tune.json."""
        return capacity_report.content(self.found, self.num_runs)

    def save(self, folder: Path | str, *, html: bool = False) -> list[Path]:
        """Write tune.json, trials.csv, capacity.png, and with `html` report.html; returns their paths."""
        more = page_writer(partial(capacity_page, self.found), html=html)
        return capacity_report.save(self.found, Path(folder), self.num_runs, more)

    def table(self) -> list[dict[str, Any]]:
        """A row per run: `rate` (req/s), `seed`, whether it `met` the limits, those that are `broken`, every figure."""
        times = self.found.load.times
        return [
            {
                "rate": run.rate * times,
                "seed": run.seed,
                "met": run.is_met,
                "broken": [*run.broken],
                **run.means,
            }
            for run in sorted(self.found.tried, key=lambda run: (run.rate, run.seed))
        ]

    def to_pandas(self) -> pd.DataFrame:
        """`table` as a DataFrame."""
        return data_frame(self.table())

    def plot(self) -> Figure:
        """A matplotlib Figure: what binds over the rate, where it holds and where it fails."""
        with style.inline(*capacity_report.SIZE) as drawing:
            capacity_report.draw(drawing, self.found)
        return drawing

    def __repr__(self) -> str:
        rate = "no rate" if self.rate is None else f"{self.rate:.4g} req/s"
        return f"CapacityAnswer({self.found.scenario.name}: {rate})"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text())}</pre>"


def capacity(
    scenario: Scenario,
    limits: Mapping[str, float] | None = None,
    *,
    replications: int = REPLICATIONS,
    jobs: int = -1,
    folder: Path | str | None = None,
) -> CapacityAnswer:
    """Find the highest request rate that keeps `limits` (`{"p99_ttft_ms": 1000}`), or 99 % within the scenario's SLO.

    `replications` seeds are searched and ten more tried; `jobs` processes (-1: one per core); with a `folder` every
    simulation is kept there. Raises UserError for what the user must mend.
    """
    given = [Limit.parse(f"{name}={bound!r}") for name, bound in (limits or {}).items()]
    kept = capacity_limits(scenario, given)
    Goal((), kept).check_slo(scenario.slo)
    store = None if folder is None else CellStore(Path(folder, "cells"))
    runner = Runner(scenario, store, jobs=jobs)
    return CapacityAnswer(find_capacity(scenario, kept, runner, replications), runner.num_runs)
