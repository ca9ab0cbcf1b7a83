"""Long arrays a piece at a time: what is computed from them on the way then stays small, and in the CPU's cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ROWS_PER_SLICE = 65_536


def bounds(length: int) -> Iterator[slice]:
    """Slices of at most `ROWS_PER_SLICE` that cover 0 to `length`, in order."""
    for begin in range(0, length, ROWS_PER_SLICE):
        yield slice(begin, min(begin + ROWS_PER_SLICE, length))


def slices(segments: NDArray[np.void]) -> Iterator[NDArray[np.void]]:
    """Views of consecutive segments; none of them is empty."""
    for part in bounds(len(segments)):
        yield segments[part]
