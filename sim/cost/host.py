"""What the engine's thread and the front end take beside the device, in integer ps: the resolved form.

A launch is of kind `graph` (no prefills, at most as many requests as the largest CUDA graph holds), `piecewise` (other
batches of at most that many tokens) or `none` (the rest, and every batch where graphs are off).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

GRAPH, PIECEWISE, NONE = "graph", "piecewise", "none"


@dataclass(frozen=True, slots=True)
class LaunchTimes:
    """Host time to schedule and launch a batch of one kind."""

    base_ps: int = 0
    per_seq_ps: int = 0
    per_prefill_ps: int = 0  # per entry that is not a decode
    per_token_ps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimes:
    """Host time of launches, updates and admissions; when the device can begin and end relative to a launch."""

    graph: LaunchTimes = LaunchTimes()
    piecewise: LaunchTimes = LaunchTimes()
    none: LaunchTimes = LaunchTimes()
    update_base_ps: int = 0
    update_per_seq_ps: int = 0
    admit_base_ps: int = 0
    admit_per_prompt_token_ps: int = 0
    lag_ps: int = 0  # the device can begin a batch this long after its schedule() began
    tail_ps: int = 0  # and ends it no earlier than this long after its launch has returned


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndTimes:
    """What the server's processes do to a request on its way in, and to its tokens on their way out."""

    per_request_ps: int = 0
    per_prompt_token_ps: int = 0
    per_chunk_ps: int = 0
    network_ps: int = 0


class HostDraws(Protocol):
    """Noise of launches; a stream of draws in the order of the launches that draw."""

    def draws_for(self, kind: str) -> bool:
        """Whether launches of this kind are spread."""

    def launch_ps(self, mean_ps: int, kind: str) -> int:
        """How long the next launch of this kind lasts that takes `mean_ps` on average."""
