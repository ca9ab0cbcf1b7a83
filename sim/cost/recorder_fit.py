"""What a profile that was fitted from a recorder's files says of itself: what it saw, how far off it is, what hides."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simbatch.sim.cost.error import FitError
from simbatch.sim.cost.measured_range import MeasuredRange
from simbatch.sim.cost.step_time import Strict

Count = Annotated[int, Field(ge=0)]


class GapFigures(Strict):
    """Gaps between updates, replayed along the recorded batches by a fit that had not seen them."""

    number: Count
    mean_ms: float
    error_ms: float = Field(description="mean |error|")
    noise_ms: float | None = Field(
        default=None, description="mean distance of gaps from the mean of those alike: no model can beat it"
    )
    total: float = Field(description="predicted over real sum, less 1")


class RecorderFit(Strict):
    """A fit from every step of one server."""

    files: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    steps: Count
    requests: Count
    recorded_s: float = Field(ge=0, description="from the first step to the last, all files together")
    has_device_times: bool = Field(description="by the GPU's own clock; else by when the thread's waits ended")
    device_shows: dict[str, float] = Field(description="share of the steps of a regime whose device time shows")
    launches: dict[str, Count] = Field(description="steps by kind of launch")
    error: FitError = Field(description="of the device's times, held out")
    gaps: GapFigures | None = Field(
        default=None, description="held out; null: the file is too short to leave a part out"
    )
    taken: dict[str, str] = Field(
        default_factory=dict, description="what the files did not tell, and what stands there"
    )
    max_num_seqs: int | None = Field(default=None, gt=0)
    max_num_batched_tokens: int | None = Field(default=None, gt=0)
    async_scheduling: bool
    range: MeasuredRange

    def summary(self) -> str:
        """One line for people."""
        what = f"fitted from a recorder's files ({self.steps:,} steps, {self.requests:,} requests)"
        if self.gaps is not None:
            floor = "" if self.gaps.noise_ms is None else f", of which no model can tell {self.gaps.noise_ms:.2f}"
            what += (
                f"; gaps between tokens, held out: {self.gaps.error_ms:.2f} of {self.gaps.mean_ms:.2f} ms off{floor}, "
                f"their sum {100 * self.gaps.total:+.1f} %"
            )
        return f"{what}; not told: {', '.join(self.taken)}" if self.taken else what
