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


def stream(seed: int, purpose: Purpose) -> np.random.Generator:
    """A fresh generator; the same seed and purpose give the same draws."""
    return np.random.default_rng([seed, int(purpose)])
