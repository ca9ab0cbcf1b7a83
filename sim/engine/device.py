"""The GPU: it works on one batch after the other, in the order of their launches."""

from __future__ import annotations

from simbatch.sim.cost.draws import NoiseDraws
from simbatch.sim.cost.model import CostModel, Features, step_ps


class Device:
    """How long it works on a batch, and when it is free."""

    def __init__(self, cost: CostModel, noise: NoiseDraws | None = None) -> None:
        self.cost = cost
        self.noise = noise
        self.free_ps = 0  # end of the batch that was launched last

    def work_ps(self, features: Features) -> int:
        """How long it works on a batch; the next draw, if its times are noisy."""
        duration_ps = step_ps(self.cost, features)
        if self.noise is None:
            return duration_ps
        return self.noise.step_ps(duration_ps, features.prefill_tokens > 0)
