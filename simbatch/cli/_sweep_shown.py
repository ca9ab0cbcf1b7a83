"""A sweep for a person: what is going on, on stderr, and what would go on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.cli._progress import progress_of
from simbatch.sim.errors import UserError

if TYPE_CHECKING:
    from simbatch.sim.search.cells import Cell
    from simbatch.sim.search.store import CellStore
    from simbatch.sim.search.sweep import Sweep

TRIED_S = 2.0  # of a cell that is tried for an estimate
NUM_LINES = 10  # of progress, where there is no bar


@dataclass(frozen=True)
class Shown:
    """The cells of a plan that are to be run here, and where they are kept."""

    plan: Sweep
    mine: Sequence[Cell]
    store: CellStore
    quiet: bool

    def run(self, folder: Path, *, jobs: int, scheduler: str | None, resume: bool) -> tuple[Sweep, list[Path]]:
        """Run what is missing (everything, without `resume`), and write the summary of all cells that are there then.

        Those of other shards are among them.
        """
        from simbatch.sim.search.run import run_cells
        from simbatch.sim.search.sweep import stored, write_summary

        there = stored(self.store, self.mine)
        if there and not resume:
            self._say(f"{len(there):,} cells are there already and are simulated again; --resume would keep them")
            there = {}
        todo = [cell for cell in self.mine if cell.key not in there]
        if resume:
            self._say(f"{len(there):,} of {len(self.mine):,} cells are there already")
        try:
            with _progress(self.plan.name, len({cell.key for cell in todo}), quiet=self.quiet) as tell:
                run_cells(todo, self.store, jobs=jobs, scheduler=scheduler, on_result=tell, say=self._say)
        except KeyboardInterrupt:
            num_done = len(stored(self.store, self.mine))
            self._say(f"{num_done:,} of {len(self.mine):,} cells are in {self.store.folder}; go on with --resume")
            raise
        except UserError:
            write_summary(self.plan, self.store, folder)
            raise
        return write_summary(self.plan, self.store, folder)

    def dry_run(self, jobs: int, *, as_json: bool) -> str:
        """Each cell with its key, how many are there, and how long the others would take on this machine."""
        from simbatch.sim.search.sweep import stored

        there = stored(self.store, self.mine)
        todo = [cell for cell in self.mine if cell.key not in there]
        cell_s = _seconds_per_cell(todo)
        total_s = None if cell_s is None else cell_s * len(todo) / _num_processes(jobs)
        if as_json:
            cells = [
                {"key": cell.key, "settings": cell.settings, "seed": cell.seed, "there": cell.key in there}
                for cell in self.mine
            ]
            return json.dumps({"cells": cells, "estimate_s": total_s}, indent=2, ensure_ascii=False)
        lines = [f"{cell.key}  {cell.label()}{'  (there)' if cell.key in there else ''}" for cell in self.mine]
        count = f"{len(self.mine):,} cells, {len(there):,} of them there already"
        estimate = "" if total_s is None else f"; the others take about {_duration(total_s)} on this machine"
        return "\n".join([*lines, count + estimate])

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr)


def run_shown(
    cells: Sequence[Cell], store: CellStore, *, jobs: int, resume: bool, quiet: bool
) -> dict[str, dict[str, Any]]:
    """The summaries of cells by key, what is in the `store` taken from there with `resume`."""
    from simbatch.sim.search.run import run_cells
    from simbatch.sim.search.sweep import stored

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr)

    there = stored(store, cells) if resume else {}
    if resume:
        say(f"{len(there):,} of {len(cells):,} cells are there already")
    todo = [cell for cell in cells if cell.key not in there]
    try:
        with _progress("simulations", len({cell.key for cell in todo}), quiet=quiet) as tell:
            found = run_cells(todo, store, jobs=jobs, on_result=tell, say=say)
    except KeyboardInterrupt:
        say(f"{len(stored(store, cells)):,} of {len(cells):,} cells are in {store.folder}; go on with --resume")
        raise
    return there | found


@contextmanager
def _progress(name: str, total: int, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """What to call at every result: a bar for a person, ten lines for a log."""
    done, begin_s = 0, time.monotonic()
    with progress_of(name, total, quiet=quiet) as bar:

        def tell(*_: object) -> None:
            nonlocal done
            done += 1
            if bar is not None:
                bar(done)
            elif not quiet and done * NUM_LINES // total > (done - 1) * NUM_LINES // total:
                left_s = (time.monotonic() - begin_s) / done * (total - done)
                print(f"{done:,} of {total:,} cells, {_duration(left_s)} left", file=sys.stderr, flush=True)

        yield tell


class _EnoughError(Exception):
    """A cell has been tried for long enough."""


def _seconds_per_cell(cells: Sequence[Cell]) -> float | None:
    """By the first, a middle and the last one, each for two seconds at most; None where nothing can be said."""
    chosen = [cells[i] for i in sorted({0, len(cells) // 2, len(cells) - 1})] if cells else []
    times = [_try(cell) for cell in chosen]
    known = [each for each in times if each is not None]
    return sum(known) / len(known) if known and len(known) == len(times) else None


def _try(cell: Cell) -> float | None:
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.search.simulate import simulate

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


def _num_processes(jobs: int) -> int:
    from joblib import effective_n_jobs

    return int(effective_n_jobs(jobs))


def _duration(seconds: float) -> str:
    units = ((99.5, 1, "s"), (99.5 * 60, 60, "min"), (float("inf"), 3600, "h"))
    divisor, unit = next((divisor, unit) for below, divisor, unit in units if seconds < below)
    return f"{seconds / divisor:.{0 if seconds >= 10 * divisor or divisor == 1 else 1}f} {unit}"
