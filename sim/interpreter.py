"""What is asked of Python itself: a second core, and to look for circles of objects when it costs least.

A command makes few circles that nobody needs, and hundreds of thousands of objects that stay.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
# objects, and looks of the younger two generations, between two looks for circles
IN_A_COMMAND = (50_000, 10, 10)  # with Python's (700, 10, 10) the looks take a tenth of a short command's time
IN_A_RUN = (200_000, 50, 1000)


@contextmanager
def beside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Do `work` in a thread, begun at once; yields what waits for its result. It is over when the block ends.

    For what hardly needs the interpreter: numpy and pyarrow let go of it meanwhile. Not for what is Python for the most
    part, nor beside it: each of its calls would wait 5 ms for its turn. Raises what `work` raises, where its result is
    asked for or the block ends.
    """
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(work)
        yield found.result
    found.result()


def collect_for_a_command() -> None:
    """Look for circles rarely from now on, and not when the process ends: 0.2 s of one that goes anyway."""
    gc.set_threshold(*IN_A_COMMAND)
    atexit.register(gc.freeze)


@contextmanager
def few_collections() -> Iterator[None]:
    """Look for circles rarely: a run makes hardly any, and what it holds would be looked through each time.

    Compiled, 20,000 sessions of 10 turns took 5.5 s of processor time and then 4.5 s, with 7 MiB more at the peak.
    """
    before = gc.get_threshold()
    gc.set_threshold(*IN_A_RUN)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def frozen() -> Iterator[None]:
    """Pass over all that is there now in every look for circles: one that goes through it all takes long."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
