"""The engine's clock: integer picoseconds, so that ties, sums and two machines agree exactly.

A day is 8.6e16 ps, well inside int64 (106 days). Seconds as floats stand at every edge: files, API, policies.
"""

from __future__ import annotations

PS_PER_S = 10**12
PS_PER_MS = 10**9


def to_ps(seconds: float) -> int:
    """Seconds to the nearest picosecond."""
    return round(seconds * PS_PER_S)


def to_s(picoseconds: int) -> float:
    """Picoseconds to seconds."""
    return picoseconds / PS_PER_S
