"""One random stream per purpose, so that changing the lengths never moves the arrivals."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for; the numbers are part of what a seed means."""

    ARRIVALS = 1
    PROMPT_LEN = 2
    OUTPUT_LEN = 3
    PRIORITIES = 4
    PREFIX = 5
    TENANTS = 6
    BLOCKS = 7


def stream(seed: int, purpose: Purpose, part: int | None = None) -> np.random.Generator:
    """A fresh generator; the same seed, purpose and part of a mix give the same draws."""
    parts = [] if part is None else [part + 1]  # numpy takes a 0 at the end for nothing
    return np.random.default_rng([seed, int(purpose), *parts])
