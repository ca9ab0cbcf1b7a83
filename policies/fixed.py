"""A constant batch size."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy


class Fixed(Policy):
    """A constant batch size: at most `batch_size` requests run; the others wait in order of arrival.

    Continuous: seats freed are filled at once. Static: batches of up to `batch_size`, formed from whoever waits. The
    engine's own `max_num_seqs` holds as well. Source: the batches of `llm.generate(batch)`; what their size trades is
    in Pope et al., Efficiently Scaling Transformer Inference (MLSys 2023, figure 1): a larger one serves more per
    second, each request more slowly, and every doubling gives less than the one before.
    """

    known_as = "generate(batch)"
    disciplines: ClassVar = ("continuous", "static")

    batch_size: Annotated[int, Field(ge=1, description="most requests that run")] = 32

    def seats(self, engine: EngineView) -> int:
        """The constant, as far as the engine has seats."""
        return min(self.batch_size, engine.max_num_seqs)
