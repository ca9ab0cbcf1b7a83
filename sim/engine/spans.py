"""Sums of steps in closed form: with n decodes they last d, d + s, d + 2s, ..., since contexts grow by n a step."""

from __future__ import annotations

from math import isqrt


def span_ps(num_steps: int, duration_ps: int, slope_ps: int) -> int:
    """Time of steps that last d, d + s, d + 2s, ..."""
    return num_steps * duration_ps + slope_ps * (num_steps * (num_steps - 1) // 2)


def steps_until(time_ps: int, duration_ps: int, slope_ps: int) -> int:
    """The fewest such steps that last `time_ps` or longer."""
    if time_ps <= 0:
        return 0
    if not slope_ps:
        return -(-time_ps // duration_ps)
    b = 2 * duration_ps - slope_ps  # slope*j^2 + b*j >= 2*time
    j = (isqrt(b * b + 8 * slope_ps * time_ps) - b) // (2 * slope_ps)
    return j if j * duration_ps + slope_ps * (j * (j - 1) // 2) >= time_ps else j + 1
