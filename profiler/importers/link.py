"""All-reduce over a link: GPUs on PCIe without peer-to-peer pass each message through the host, at the board's pace.

One server's table says what that server's board does. The link is latency and bandwidth: a ring sends 2 (N - 1) / N of
the message past each of N GPUs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.importers.tables import Floats
from simbatch.sim.cost.link import Link

ELEMENT_BYTES = 2


class LinkAllReduce:
    """In the place of a table: one call on tokens x hidden elements."""

    def __init__(self, link: Link, num_gpus: int) -> None:
        self.link = link
        self._share = 2 * (num_gpus - 1) / num_gpus

    def time_s(self, tokens: NDArray[Any], hidden_size: int) -> Floats:
        """By the number of tokens, s."""
        message = tokens * hidden_size * ELEMENT_BYTES
        return np.asarray(self.link.latency_s + self._share * message / self.link.bandwidth_bytes_per_s)
