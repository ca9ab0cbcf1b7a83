"""A sweep: many settings of one scenario, each under the same seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.errors import UserError
from simbatch.sim.files import data_frame, write_csv, write_table
from simbatch.sim.metrics import figures_of
from simbatch.sim.metrics.registry import Metric, shown
from simbatch.sim.results import Experiment, files
from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import BLOCKS, ONE_RUN
from simbatch.sim.scenario.model import OF_A_SESSION, Scenario
from simbatch.sim.search.cells import Cell, CellStore, cells_of, replicated_cells
from simbatch.sim.search.run import Say, run_cells
from simbatch.sim.search.sweep_grid import grid_of
from simbatch.sim.text import duration_words, table

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
OWN_FILES = ("summary.csv", "summary.parquet", "points.csv", "sweep.png", "report.html")
LAST = ("overloaded", "warnings", "key")  # columns after the metrics
MAX_LINES = 40
TRIED_S = 2.0  # of a cell that is tried for an estimate


@dataclass(frozen=True)
class Sweep:
    """What was planned (`cells`) and what is there (`summaries` by key); a shard has not run everything."""

    name: str
    keys: list[str]
    cells: Sequence[Cell]
    summaries: Mapping[str, Summary]
    replications: int = 1  # that were asked for; where the seed changes nothing there is one
    is_resampled: bool = False  # whether they are of traces, resampled in blocks

    @cached_property
    def rows(self) -> list[Row]:
        """A row per cell that is there, in the order planned: settings, seed, every metric, warnings, key."""
        there = (cell for cell in self.cells if cell.key in self.summaries)
        return [_row_of(cell, self.keys, self.summaries[cell.key]) for cell in there]

    @cached_property
    def points(self) -> list[Row]:
        """A row per setting: the mean of each metric over the seeds, and its 95 % interval (`.low`, `.high`)."""
        there = [cell for cell in self.cells if cell.key in self.summaries]
        chosen = [{key: cell.settings.get(key) for key in self.keys} for cell in there]
        places = [(json.dumps(each), None, cell.seed) for each, cell in zip(chosen, there, strict=True)]
        found = (self.summaries[cell.key] for cell in there)
        experiment = Experiment.of(places, found, is_resampled=self.is_resampled)
        settings = {name: each for (name, _, _), each in zip(places, chosen, strict=True)}
        return [each | point for each, point in zip(settings.values(), experiment.points(), strict=True)]

    @property
    def _limits(self) -> Mapping[str, float]:
        """The SLO in ms, by latency, where it is the same for all cells."""
        slo = [cell.scenario.get("slo") or {} for cell in self.cells]
        is_one = all(each == slo[0] for each in slo)
        given = slo[0] if is_one and slo else {}
        return {
            name.removesuffix("_ms"): limit
            for name, limit in given.items()
            if limit and not name.startswith(OF_A_SESSION)
        }

    @property
    def num_missing(self) -> int:
        """Cells that nobody has run yet."""
        return len(self.cells) - len(self.rows)

    def to_pandas(self) -> pd.DataFrame:
        """`rows` as a DataFrame."""
        return data_frame(self.rows)

    def text(self) -> str:
        """A line per setting, with the means of the main metrics."""
        metrics = shown("sweep", lambda metric: any(point.get(metric.key) is not None for point in self.points))
        header = [*_titles(self.keys), *(metric.heading for metric in metrics), ""]
        lines = [
            [*(_setting(point[key]) for key in self.keys), *(_figure(point, each) for each in metrics), _remark(point)]
            for point in self.points[:MAX_LINES]
        ]
        left_out = len(self.points) - len(lines)
        rest = [f"... and {left_out:,} more settings in summary.csv"] if left_out else []
        means = [*self._means()]
        missing = [f"{self.num_missing:,} of {len(self.cells):,} cells are missing"] if self.num_missing else []
        shown_table = table(header, lines, num_names=len(self.keys))
        return "\n".join([*shown_table, *rest, *means, *missing])

    def _means(self) -> Iterator[str]:
        """What the figures are means of, where several runs were asked for."""
        counts = {point["replications"] for point in self.points}
        if (most := max(counts, default=1)) > 1:
            runs = f"resamplings of the trace in {BLOCKS} blocks of time" if self.is_resampled else "seeds"
            yield f"means of {most} {runs}, with 95 % intervals"
        if self.replications > 1 and 1 in counts:
            yield f"where there is no interval {ONE_RUN}"

    def save(self, folder: Path | str, *, html: bool = False) -> list[Path]:
        """Write summary.csv and .parquet, points.csv with several seeds, and sweep.png where there is one to draw.

        `html`: report.html too, once a cell is there.
        """
        from simbatch.sim.report.page.page import page_writer
        from simbatch.sim.search import sweep_plot
        from simbatch.sim.search.sweep_page import sweep_page

        writers: dict[str, Callable[[Path], None]] = {
            "summary.csv": lambda path: write_csv(path, *_table(self.rows)),
            "summary.parquet": lambda path: write_table(path, *_table(self.rows)),
        }
        if len(self.rows) > len(self.points):
            writers["points.csv"] = lambda path: write_csv(path, *_table(self.points))
        if (drawing := sweep_plot.choose(self.points, self.keys, self._limits)) is not None:
            writers["sweep.png"] = lambda path: sweep_plot.write(path, self.name, drawing)
        page = partial(sweep_page, self.name, self.keys, self.points, self.cells, self.summaries, self.text())
        versions = [files.version_of(summary) for summary in self.summaries.values()]
        writers |= page_writer(page, html=html and bool(self.rows))
        return files.write_result(Path(folder), writers, OWN_FILES, versions)

    def __repr__(self) -> str:
        return f"Sweep({self.name}: {len(self.points):,} settings, {len(self.rows):,} of {len(self.cells):,} cells)"


def planned(
    scenario: Scenario, over: Mapping[str, Any] | None = None, *, replications: int = 1, origin: str = "over"
) -> Sweep:
    """Every cell, checked; nothing has run yet. Raises UserError with all that is wrong with any of them."""
    grid = grid_of(scenario, over, origin=origin)
    keys = grid.keys()
    if replications == 1:
        return Sweep(scenario.name, keys, cells_of(scenario, grid.settings, [scenario.seed], places=grid.places), {})
    cells = replicated_cells(scenario, grid.settings, replications, places=grid.places)
    traces = {cell.scenario["workload"]["trace"]["path"] for cell in cells if "trace" in cell.scenario["workload"]}
    return Sweep(scenario.name, keys, cells, {}, replications, bool(traces))


def sweep(
    scenario: Scenario,
    over: Mapping[str, Any] | None = None,
    *,
    replications: int = 1,
    jobs: int = -1,
    scheduler: str | None = None,
    folder: Path | str | None = None,
    say: Say | None = None,
) -> Sweep:
    """Simulate every combination of the scenario's `sweep` section and of `over` (dotted keys to lists of values).

    `replications` seeds from the scenario's on, the same arrivals for every setting (a trace is resampled in blocks,
    and what leaves nothing to the seed is run once); `jobs` processes (-1: one per core) or a Dask `scheduler`. With a
    `folder`, every cell is kept in its `cells/` and taken from there when it is there already. Raises UserError for
    what the user must mend.
    """
    plan = planned(scenario, over, replications=replications)
    store = None if folder is None else CellStore(Path(folder, "cells"))
    there = {} if store is None else store.those(cell.key for cell in plan.cells)
    todo = [cell for cell in plan.cells if cell.key not in there]
    found = run_cells(todo, store, jobs=jobs, scheduler=scheduler, say=say)
    done = replace(plan, summaries=there | found)
    if folder is not None:
        done.save(folder)
    return done


def write_summary(plan: Sweep, store: CellStore, folder: Path | str, *, html: bool = False) -> tuple[Sweep, list[Path]]:
    """The sweep with all cells that are in the store, and the files it wrote.

    Written again while cells of another shard came in meanwhile: of two shards that end at the same moment the one that
    writes last has then seen all of them.
    """
    while True:
        done = replace(plan, summaries=store.those(cell.key for cell in plan.cells))
        written = done.save(folder, html=html)
        if not any(store.has(cell.key) for cell in plan.cells if cell.key not in done.summaries):
            return done, written


def _row_of(cell: Cell, keys: Sequence[str], summary: Summary) -> Row:
    """The cell's settings by `keys` (None where it has none), its seed, every figure of its summary, its warnings."""
    warnings = summary["simbatch"]["warnings"]
    return {
        **{key: cell.settings.get(key) for key in keys},
        "seed": cell.seed,
        **figures_of(summary),
        "overloaded": any(warning.startswith("Overloaded") for warning in warnings),
        "warnings": " ".join(warnings),
        "key": cell.key,
    }


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """All columns, those that only some rows have (classes of priority) among the others, and the rows in order."""
    names = dict.fromkeys(name for row in rows for name in row if name not in LAST)
    columns = [*names, *(name for name in LAST if rows and name in rows[0])]
    return columns, [[row.get(name) for name in columns] for row in rows]


def _titles(keys: Sequence[str]) -> Sequence[str]:
    """Without their sections, where that still tells them apart."""
    short = ["policy" if key == "policy.name" else key.rpartition(".")[2] for key in keys]
    return short if len({*short}) == len(short) else keys


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {item}" for key, item in value.items())
    return "-" if value is None else str(value)


def _figure(point: Row, metric: Metric) -> str:
    mean, low, high = (point.get(f"{metric.key}{end}") for end in ("", ".low", ".high"))
    return metric.text_with(mean, low, high)


def _remark(point: Row) -> str:
    if not point["overloaded_runs"]:
        return ""
    return "overloaded" if point["replications"] == 1 else f"overloaded in {point['overloaded_runs']}"


def dry_run(mine: Sequence[Cell], store: CellStore, jobs: int) -> tuple[dict[str, Any], str]:
    """What these cells would take, as data and in words: which are there already, and the time for the others."""
    from joblib import effective_n_jobs

    there = store.those(cell.key for cell in mine)
    todo = [cell for cell in mine if cell.key not in there]
    cell_s = _seconds_per_cell(todo)
    total_s = None if cell_s is None else cell_s * len(todo) / int(effective_n_jobs(jobs))
    cells = [
        {"key": cell.key, "settings": cell.settings, "seed": cell.seed, "there": cell.key in there} for cell in mine
    ]
    lines = [f"{cell.key}  {cell.label()}{'  (there)' if cell.key in there else ''}" for cell in mine]
    count = f"{len(mine):,} cells, {len(there):,} of them there already"
    estimate = "" if total_s is None else f"; the others take about {duration_words(total_s)} on this machine"
    return {"cells": cells, "estimate_s": total_s}, "\n".join([*lines, count + estimate])


class _EnoughError(Exception):
    """A cell has been tried for long enough."""


def _seconds_per_cell(cells: Sequence[Cell]) -> float | None:
    """By the first, a middle and the last one, each for two seconds at most; None where nothing can be said."""
    chosen = [cells[i] for i in sorted({0, len(cells) // 2, len(cells) - 1})] if cells else []
    times = [_try(cell) for cell in chosen]
    known = [each for each in times if each is not None]
    return sum(known) / len(known) if known and len(known) == len(times) else None


def _try(cell: Cell) -> float | None:
    from simbatch.sim.search import simulate

    scenario = Scenario.from_dict(cell.scenario, folder=cell.folder, name=cell.name)
    begin_s, num_ended = time.perf_counter(), 0

    def tell(ended: int) -> None:
        nonlocal num_ended
        num_ended = ended
        if ended and time.perf_counter() - begin_s > TRIED_S:
            raise _EnoughError

    try:
        _ = simulate(scenario, progress=tell).summary
    except _EnoughError:
        total = scenario.workload.num_prompts
        return None if total is None else (time.perf_counter() - begin_s) * total / num_ended
    except UserError:
        return None
    return time.perf_counter() - begin_s
