"""Random streams of a workload: one for each purpose, so that a change of one leaves the others' draws as they are."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Purpose(IntEnum):
    """What a stream is for; the numbers are part of what a seed means."""

    ARRIVALS = 1
    PROMPT_LEN = 2
    OUTPUT_LEN = 3
    PRIORITIES = 4
    PREFIX = 5
    TENANTS = 6
    BLOCKS = 7
    TURNS = 8
    THINK_TIMES = 9
    TOOL_TIMES = 10
    TOOLS = 11
    BRANCHES = 12
    SYSTEM_PROMPTS = 13


def stream(seed: int, purpose: Purpose, part: int | None = None) -> np.random.Generator:
    """A fresh generator; the same seed, purpose and part of a mix give the same draws."""
    parts = [] if part is None else [part + 1]  # numpy takes a 0 at the end for nothing
    return np.random.default_rng([seed, int(purpose), *parts])


def draw_shares(shares: Sequence[tuple[T, float]], rng: np.random.Generator, n: int) -> list[T] | None:
    """A class or a tenant for each of `n` requests, drawn independently; None when there are no shares."""
    if not shares:
        return None
    ends = np.cumsum([share for _, share in shares])
    which = np.searchsorted(ends, rng.random(n) * ends[-1], side="right")
    names = [name for name, _ in shares]
    return [names[i] for i in which.tolist()]
