"""Cells to summaries: in this process, on several, or on a Dask cluster; where they run changes nothing in them.

Each cell is a task of its own, and here a finished one is written down by the process that ran it: whatever dies or is
interrupted, only cells under way are lost. A worker that dies (killed, out of memory) is replaced and its cell run
again; when that happens time after time and no cell gets finished, it is said and left to the user.

A cluster is asked through `distributed` itself. joblib's Dask backend is not used: it never hears of a task whose
worker died for good (joblib 1.6, `_collect`), and waits for ever. A worker's death is the scheduler's to mend: it gives
the task to another one, three times over.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, contextmanager
from importlib.metadata import version
from typing import Any

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.results.runs import Settings, Summary, unread_in
from simbatch.sim.scenario import Scenario
from simbatch.sim.search.cells import Cell, CellStore, Outcome, attempt, cells_of, failed_cell

MAX_DEATHS = 3  # that a cell was suspected of, before it is run alone
MAX_DEATHS_IN_A_ROW = 10
AHEAD = 3  # cells handed out per process, so that none waits for its next
MAX_PROBLEMS = 20
SCHEDULER_FLAG = "--scheduler"
CONNECT_S = 10
_ADDRESS = re.compile(r"(\w+://)?[^/\s]+:[0-9]{1,5}")
OnResult = Callable[[Cell, Summary], None]
Watch = Callable[[int], AbstractContextManager[OnResult]]  # of so many cells: what is told of each that is finished
Say = Callable[[str], None]


def run_cells(
    cells: Sequence[Cell],
    store: CellStore | None = None,
    *,
    jobs: int = -1,
    scheduler: str | None = None,
    on_result: OnResult | None = None,
    say: Say | None = None,
) -> dict[str, Summary]:
    """The summary of each cell by its key; cells of one key are run once.

    `jobs` processes (-1: one per core; 1: this one), or the cluster of a Dask `scheduler`. Each result is put into
    `store` and told to `on_result` as it comes, in any order; `say` is told of workers that died. A cell that fails
    holds up no other: its problems are raised, with those of all others, as one UserError at the end.
    """
    if jobs == 0:
        raise UserError(Problem("--jobs", "must not be 0", 0, "-1 is one process per core"))
    todo = {cell.key: cell for cell in cells}
    found: dict[str, Summary] = {}
    problems: list[Problem] = []
    what = (todo, store, say or (lambda _: None))
    is_away = scheduler is not None and bool(todo)
    with closing(_on_cluster(str(scheduler), *what) if is_away else _on_this_machine(jobs, *what)) as outcomes:
        for outcome in outcomes:
            problems += outcome.problems
            if outcome.summary is not None:
                found[outcome.key] = outcome.summary
                if on_result is not None:
                    on_result(todo[outcome.key], outcome.summary)
    if problems:
        raise UserError(*problems[:MAX_PROBLEMS])
    return {key: found[key] for key in todo}


def run_kept(
    cells: Sequence[Cell],
    store: CellStore,
    watch: Watch,
    say: Say,
    *,
    jobs: int = -1,
    scheduler: str | None = None,
    resume: bool = False,
) -> dict[str, Summary]:
    """The summary of each cell by its key, all of them kept in `store`; with `resume` those there are not run again.

    `say` is told, in lines for a person, what is there already and how to go on after an interruption.
    """
    there = store.those(cell.key for cell in cells)
    if resume:
        say(f"{len(there):,} of {len(cells):,} cells are there already")
    elif there:
        say(f"{len(there):,} cells are there already and are simulated again; --resume would keep them")
        there = {}
    todo = [cell for cell in cells if cell.key not in there]
    try:
        with watch(len({cell.key for cell in todo})) as tell:
            return there | run_cells(todo, store, jobs=jobs, scheduler=scheduler, on_result=tell, say=say)
    except KeyboardInterrupt:
        num_done = len(store.those(cell.key for cell in cells))
        say(f"{num_done:,} of {len(cells):,} cells are in {store.folder}; go on with --resume")
        raise


def _on_this_machine(
    jobs: int, todo: dict[str, Cell], store: CellStore | None, say: Say
) -> Generator[Outcome, None, None]:
    """A death speaks against whatever was handed out; who stood there thrice is run alone, and then it is certain."""
    from joblib import effective_n_jobs

    remaining, in_a_row = dict(todo), 0
    deaths: Counter[str] = Counter()
    while remaining:
        order = sorted(remaining.values(), key=lambda cell: deaths[cell.key])
        trusted = [cell for cell in order if deaths[cell.key] < MAX_DEATHS]
        try:
            for outcome in _on_processes(trusted or order[:1], store, jobs):
                in_a_row = 0
                del remaining[outcome.key]
                yield outcome
        except BrokenProcessPool:
            in_a_row += 1
            if in_a_row == MAX_DEATHS_IN_A_ROW:
                rule = f"worker processes died {in_a_row} times, and no cell was finished in between (out of memory?)"
                mend = f"take fewer processes or smaller scenarios; {len(remaining):,} cells are not finished"
                raise UserError(Problem("--jobs", rule, jobs, mend)) from None
            if trusted:
                handed_out = [cell.key for cell in trusted if cell.key in remaining][: AHEAD * effective_n_jobs(jobs)]
                deaths.update(handed_out)
                say(f"a worker process died; {len(remaining):,} cells go on in new ones")
            else:
                rule = f"the process that ran it died {MAX_DEATHS + 1} times (out of memory?)"
                del remaining[order[0].key]
                yield failed_cell(order[0], rule, "make it smaller, or leave it out")


def _on_processes(cells: Iterable[Cell], store: CellStore | None, jobs: int) -> Generator[Outcome, None, None]:
    from joblib import Parallel, delayed

    if store is not None:
        store = CellStore(store.folder.absolute())  # workers live on, in the folder where they were started
    calls = [delayed(_attempt_here)(cell, store, os.getpid()) for cell in cells]
    parallel = Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=f"{AHEAD}*n_jobs", return_as="generator_unordered")
    with warnings.catch_warnings(), _no_word_of_lost_calls():
        warnings.filterwarnings("ignore", message=".*have been cancelled")  # whoever interrupts knows
        with closing(parallel(calls)) as outcomes:
            yield from outcomes


@contextmanager
def _no_word_of_lost_calls() -> Iterator[None]:
    """When it is interrupted, loky's thread may look for a call that it has just cancelled, a KeyError (joblib 1.6)."""
    told = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        name = None if args.thread is None else args.thread.name
        if not (args.exc_type is KeyError and name == "ExecutorManagerThread"):
            told(args)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = told


def _attempt_here(cell: Cell, store: CellStore | None, parent: int) -> Outcome:
    """In a worker, or in the parent itself when it has one process; Ctrl-C is the parent's to answer."""
    if os.getpid() != parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    outcome = attempt(cell)
    if store is not None and outcome.summary is not None:
        store.put(cell.key, outcome.summary)
    return outcome


def _on_cluster(
    address: str, todo: dict[str, Cell], store: CellStore | None, say: Say
) -> Generator[Outcome, None, None]:
    """Outcomes as they come, put into `store` here, since the workers may not see our disk.

    Traces, profiles and policies in files must be readable for the workers under the same paths. Raises UserError when
    there is no such scheduler, no `distributed`, or another simbatch on a worker.
    """
    client, as_completed = _connected(address)
    try:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            say(f"{address} has no workers yet; waiting for the first")
            client.wait_for_workers(1)
        _check_versions(client)
        futures = {client.submit(attempt, cell, pure=False): cell for cell in todo.values()}
        for future in as_completed(list(futures), loop=client.loop):
            outcome = _of_cluster(future, futures.pop(future), address)
            if store is not None and outcome.summary is not None:
                store.put(outcome.key, outcome.summary)
            yield outcome
    finally:
        client.close()  # what has not begun is dropped with its future


def _connected(address: str) -> tuple[Any, Any]:
    mend = "start one with `dask scheduler`, and name it as tcp://host:8786"
    if not _ADDRESS.fullmatch(address):
        raise UserError(Problem(SCHEDULER_FLAG, "must be an address with a port", address, mend))
    try:
        from distributed import Client, as_completed
    except ImportError:
        rule = "needs Dask, which is not installed"
        raise UserError(Problem(SCHEDULER_FLAG, rule, address, "pip install 'dask[distributed]'")) from None
    for name in ("distributed", "distributed.client"):  # which has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a lost scheduler is one line here, not 40
    make: Any = Client  # it has no types
    try:
        return make(address, timeout=CONNECT_S, set_as_default=False), as_completed
    except (OSError, ValueError) as error:
        rule = f"no Dask scheduler answers there ({type(error).__name__})"
        raise UserError(Problem(SCHEDULER_FLAG, rule, address, mend)) from None


def _check_versions(client: Any) -> None:
    ours = version("simbatch")
    theirs = client.run(version, "simbatch", on_error="return")
    for worker, found in sorted(theirs.items()):
        if found != ours:
            rule = f"the worker {worker} has another simbatch than this one, which is {ours}"
            value = found if isinstance(found, str) else NOTHING
            raise UserError(Problem(SCHEDULER_FLAG, rule, value, f"pip install simbatch=={ours} there"))


def _of_cluster(future: Any, cell: Cell, address: str) -> Outcome:
    """What came of the cell; UserError when the scheduler itself is gone."""
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        outcome: Outcome = future.result()
    except KilledWorker as error:
        rule = f"the workers that ran it died, the last one at {error.last_worker.address} (out of memory?)"
        return failed_cell(cell, rule, "give the workers more memory")
    except (CancelledError, CommClosedError):
        rule = "the scheduler went away, and with it the cells that were not finished"
        raise UserError(Problem(SCHEDULER_FLAG, rule, address, "start it again, and go on with --resume")) from None
    return outcome


class Runner:
    """Changes of one scenario and seeds in, summaries out; each different simulation runs once."""

    def __init__(
        self,
        scenario: Scenario,
        store: CellStore | None = None,
        *,
        jobs: int = -1,
        scheduler: str | None = None,
        resume: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._scenario, self._store, self._jobs, self._progress = scenario, store, jobs, progress
        self._scheduler, self._resume = scheduler, resume
        self._known: dict[str, Summary] = {}

    def __call__(self, asked: Sequence[tuple[Settings, int]]) -> list[Summary]:
        """The summaries in the order of what is asked; on as many processes as there are jobs."""
        cells = self._cells(asked)
        new = {cell.key: cell for cell in cells if cell.key not in self._known}
        if self._resume and self._store is not None:
            self._known |= {key: found for key in new if (found := self._store.get(key)) is not None}
        missing = [cell for key, cell in new.items() if key not in self._known]
        if missing:
            self._known |= run_cells(missing, self._store, jobs=self._jobs, scheduler=self._scheduler)
        if self._progress is not None:
            self._progress(self.num_runs)
        return [self._known[cell.key] for cell in cells]

    def _cells(self, asked: Sequence[tuple[Settings, int]]) -> list[Cell]:
        """All of a seed at once, since what they share is looked at once in each call."""
        cells: dict[int, Cell] = {}
        for seed in dict.fromkeys(seed for _, seed in asked):
            places = [place for place, (_, other) in enumerate(asked) if other == seed]
            of_seed = cells_of(self._scenario, [asked[place][0] for place in places], [seed])
            cells |= zip(places, of_seed, strict=True)
        return [cells[place] for place in range(len(asked))]

    @property
    def unread(self) -> list[str]:
        """How the traces of all simulations were read, in sentences."""
        return unread_in(self._known.values())

    @property
    def num_runs(self) -> int:
        """How many simulations there were, those taken from the store included."""
        return len(self._known)
