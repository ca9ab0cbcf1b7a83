"""Work on a second core, for what hardly needs the interpreter: numpy and pyarrow let go of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def beside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Do `work` in a thread, begun at once; yields what waits for its result. It is over when the block ends.

    Not for what is Python for the most part, nor beside it: each of its calls would wait 5 ms for its turn. Raises what
    `work` raises, where its result is asked for or the block ends.
    """
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(work)
        yield found.result
    found.result()
