"""The capacity as it is asked for in Python, and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.metrics.columns import data_frame
from simbatch.sim.report import style
from simbatch.sim.report.page.page import page_writer
from simbatch.sim.scenario import Scenario
from simbatch.sim.search.run import Runner
from simbatch.sim.search.store import CellStore
from simbatch.sim.tuning import capacity_picture, capacity_report
from simbatch.sim.tuning.capacity import REPLICATIONS, Capacity, capacity_limits, find_capacity
from simbatch.sim.tuning.capacity_page import capacity_page
from simbatch.sim.tuning.goal import Goal, Limit

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CapacityAnswer:
    """The highest rate that was `found` to keep the limits, and every run on the way to it; `num_runs` simulations."""

    found: Capacity
    num_runs: int

    @property
    def rate(self) -> float | None:
        """Requests per second, kept in 17 of 18 seeds; None where no rate holds, or none fails."""
        bound = self.found.bound
        return None if bound is None else bound.rate * self.found.unit.times

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
        times = self.found.unit.times
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
        with style.inline(*capacity_picture.SIZE) as drawing:
            capacity_picture.draw(drawing, self.found)
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
    Goal((), kept).check_slo(bool(scenario.slo.model_dump(exclude_none=True)))
    store = None if folder is None else CellStore(Path(folder, "cells"))
    runner = Runner(scenario, store, jobs=jobs)
    return CapacityAnswer(find_capacity(scenario, kept, runner, replications), runner.num_runs)
