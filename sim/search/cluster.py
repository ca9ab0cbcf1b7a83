"""Cells on a Dask cluster, through `distributed` itself.

joblib's Dask backend is not used: it never hears of a task whose worker died for good (joblib 1.6, `_collect`), and
waits for ever. A worker's death is the scheduler's to mend: it gives the task to another one, three times over.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError
from typing import Any

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.search.cells import Cell, Outcome, attempt

PLACE = "--scheduler"
CONNECT_S = 10
_ADDRESS = re.compile(r"(\w+://)?[^/\s]+:[0-9]{1,5}")


def on_cluster(address: str, cells: Iterable[Cell], say: Callable[[str], None]) -> Generator[Outcome, None, None]:
    """Outcomes as they come.

    Traces, profiles and policies in files must be readable for the workers under the same paths. Raises UserError when
    there is no such scheduler, no `distributed`, or another simbatch on a worker.
    """
    client, as_completed = _connected(address)
    try:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            say(f"{address} has no workers yet; waiting for the first")
            client.wait_for_workers(1)
        _check_versions(client)
        futures = {client.submit(attempt, cell, pure=False): cell for cell in cells}
        for future in as_completed(list(futures), loop=client.loop):
            yield _outcome(future, futures.pop(future), address)
    finally:
        client.close()  # what has not begun is dropped with its future


def _connected(address: str) -> tuple[Any, Any]:
    mend = "start one with `dask scheduler`, and name it as tcp://host:8786"
    if not _ADDRESS.fullmatch(address):
        raise UserError(Problem(PLACE, "must be an address with a port", address, mend))
    try:
        from distributed import Client, as_completed
    except ImportError:
        rule = "needs Dask, which is not installed"
        raise UserError(Problem(PLACE, rule, address, "pip install 'dask[distributed]'")) from None
    for name in ("distributed", "distributed.client"):  # which has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a lost scheduler is one line here, not 40
    make: Any = Client  # it has no types
    try:
        return make(address, timeout=CONNECT_S, set_as_default=False), as_completed
    except (OSError, ValueError) as error:
        rule = f"no Dask scheduler answers there ({type(error).__name__})"
        raise UserError(Problem(PLACE, rule, address, mend)) from None


def _check_versions(client: Any) -> None:
    ours = _version()
    theirs = client.run(_version, on_error="return")
    for worker, found in sorted(theirs.items()):
        if found != ours:
            rule = f"the worker {worker} has another simbatch than this one, which is {ours}"
            value = found if isinstance(found, str) else NOTHING
            raise UserError(Problem(PLACE, rule, value, f"pip install simbatch=={ours} there"))


def _version() -> str:
    from importlib.metadata import version

    return version("simbatch")


def _outcome(future: Any, cell: Cell, address: str) -> Outcome:
    """What came of the cell; UserError when the scheduler itself is gone."""
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        outcome: Outcome = future.result()
    except KilledWorker as error:
        rule = f"the workers that ran it died, the last one at {error.last_worker.address} (out of memory?)"
        return Outcome(cell.key, None, (Problem(f"cell {cell.label()}", rule, mend="give the workers more memory"),))
    except (CancelledError, CommClosedError):
        rule = "the scheduler went away, and with it the cells that were not finished"
        raise UserError(Problem(PLACE, rule, address, "start it again, and go on with --resume")) from None
    return outcome
