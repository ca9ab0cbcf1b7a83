"""The link between the GPUs of a profile, where their all-reduce was computed from it."""

from __future__ import annotations

from pydantic import Field

from simbatch.sim.cost.step_time import Strict


class Link(Strict):
    """Latency of a call, and bandwidth in one direction."""

    latency_s: float = Field(gt=0, le=1, allow_inf_nan=False)
    bandwidth_bytes_per_s: float = Field(gt=0, le=1e15, allow_inf_nan=False)

    def text(self) -> str:
        """`40 us and 16 GB/s`."""
        return f"{1e6 * self.latency_s:g} us and {self.bandwidth_bytes_per_s / 1e9:g} GB/s"
