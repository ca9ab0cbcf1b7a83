"""What a profile that was fitted from streams says of itself: what it saw, how sure it is, what it cannot know."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simbatch.sim.cost.error import span
from simbatch.sim.cost.measured_range import MeasuredRange
from simbatch.sim.cost.step_time import Strict

HARDLY_TOLD = 0.5  # a standard error that large, over the value
Count = Annotated[int, Field(ge=0)]
Pair = Annotated[tuple[Count, Count], Field(strict=False)]


class MeanErrors(Strict):
    """Simulated over recorded means, less 1."""

    ttft: float
    tpot: float
    e2el: float


class SeenRun(Strict):
    """One result that was fitted on; `predicted` is how far the other ones alone predict it."""

    file: str
    requests: Count
    steps: Count
    max_concurrency: int | None = None
    batch: Pair = Field(description="decodes of a step, 5 to 95 %")
    prompt_tokens: Pair
    prefill_steps: Count
    fitted: MeanErrors
    predicted: MeanErrors | None = None


class StreamFit(Strict):
    """A fit from the streams of benchmark results."""

    runs: Annotated[tuple[SeenRun, ...], Field(strict=False, min_length=1)]
    halves: float | None = Field(
        description="time of the second halves' steps, predicted by the first, over real, less 1"
    )
    sure: dict[str, float] = Field(description="standard error over value, by part; above 0.5: hardly told")
    taken: dict[str, str] = Field(description="parts that the streams did not tell, and where they are from")
    warnings: Annotated[tuple[str, ...], Field(strict=False)] = ()
    max_num_seqs: int | None = Field(default=None, gt=0, description="the server's, where it was said or reached")
    max_num_batched_tokens: int = Field(gt=0, description="the server's, said or read off the steps")
    async_scheduling: bool
    kv_tokens: Count = Field(description="most tokens that were in the KV cache at once")
    range: MeasuredRange

    def summary(self) -> str:
        """One line for people."""
        requests, steps = sum(run.requests for run in self.runs), sum(run.steps for run in self.runs)
        what = f"fitted from the streams of {len(self.runs)} results ({requests:,} requests, {steps:,} steps)"
        predicted = [run.predicted for run in self.runs if run.predicted is not None]
        if predicted:
            shares = ", ".join(
                f"{name} {span((min(values), max(values)))}"
                for name, values in (
                    ("mean TTFT", [each.ttft for each in predicted]),
                    ("mean TPOT", [each.tpot for each in predicted]),
                )
            )
            what += f"; each predicted from the others: {shares}"
        return f"{what}; not told: {', '.join(self.taken)}" if self.taken else what
