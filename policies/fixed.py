"""A constant batch size."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge

from simbatch.policies.base import EngineView, Policy


class Fixed(Policy):
    """A constant batch size: at most `batch_size` requests run; the others wait in order of arrival.

    Continuous: seats freed are filled at once. Static: batches of up to `batch_size`, formed from whoever waits. The
    engine's own `max_num_seqs` holds as well.
    """

    disciplines: ClassVar = ("continuous", "static")

    batch_size: Annotated[int, Ge(1)] = 32

    def seats(self, engine: EngineView) -> int:
        """The constant, as far as the engine has seats."""
        return min(self.batch_size, engine.max_num_seqs)
