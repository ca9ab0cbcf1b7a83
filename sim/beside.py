"""Work on a second core, for what hardly needs the interpreter: numpy and pyarrow let go of it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def beside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Do `work` in a thread, begun at once; yields what waits for its result. It is over when the block ends.

    Not for what is Python for the most part, nor beside it: each of its calls would wait 5 ms for its turn. Raises what
    `work` raises, where its result is asked for or the block ends.
    """
    found: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # it belongs to who waits for the result
            errors.append(error)

    def result() -> T:
        thread.join()
        if errors:
            raise errors[0]
        return found[0]

    thread = Thread(target=run)
    thread.start()
    try:
        yield result
    finally:
        thread.join()
    result()
