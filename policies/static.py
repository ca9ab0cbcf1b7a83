"""Batches with a largest size and a longest wait, as model servers before LLMs form them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView


class Static(Policy):
    """Run a batch to its end, then form the next: at `max_batch_size` requests, or `max_delay_s` after the first.

    Source: Triton's dynamic batcher (`max_queue_delay_microseconds`) and TorchServe (`batch_size`, `max_batch_delay`);
    Clipper (Crankshaw et al., NSDI 2017, section 4.3.2, figure 5): waiting a little makes batches fuller and serves
    more per second of the device, at the price of latency.
    """

    known_as = "Triton, TorchServe"
    disciplines: ClassVar = ("static",)

    max_batch_size: Annotated[int, Field(ge=1, description="requests that make a full batch")] = 32
    max_delay_s: Annotated[float, Field(ge=0, description="longest wait of the first request for a full batch")] = 0.1

    def seats(self, engine: EngineView) -> int:
        """A full batch, as far as the engine has seats."""
        return min(self.max_batch_size, engine.max_num_seqs)

    def hold(self, head: RequestView, engine: EngineView) -> float:
        """Not at all for a full batch; else until the first request has waited long enough."""
        return engine.now_s if engine.num_waiting >= self.seats(engine) else head.arrival_s + self.max_delay_s
