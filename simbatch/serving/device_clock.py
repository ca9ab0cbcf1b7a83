"""When a CUDA device begins and ends a step, on the host's clock (s of `time.monotonic`).

An event has no time of its own, only a distance to another event, in ms as a 32-bit float: a quarter of a millisecond
coarse after an hour, and device and host clocks drift apart meanwhile. So an event at a known moment (the anchor) is
set again a few times a second, by the recorder's thread on a stream of its own: it waits for nothing, and nobody waits
for it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple, Self

EVERY_S = 0.25  # clocks that differ by 50 millionths are 12 us apart by then
MAX_WIDTH_S = 0.0002  # of the moment of an anchor; wider ones are for want of a better
TRIES = 3
KEPT = 8  # steps are resolved within two anchors


class Anchor(NamedTuple):
    """An event that happened at `moment_s`, give or take half of `width_s`."""

    event: Any
    moment_s: float
    width_s: float


class DeviceClock:
    """Events on the stream of the engine's thread, and their times; `cuda` is `torch.cuda`."""

    def __init__(self, cuda: Any, now: Any = time.monotonic) -> None:
        self._cuda, self._now = cuda, now
        self._device = cuda.current_device()
        self._free: list[Any] = []
        self._stream = cuda.Stream(device=self._device)
        self._anchors = deque[Anchor](maxlen=KEPT)
        self.set_anchor()

    @classmethod
    def of_process(cls) -> Self | None:
        """The clock of this process's CUDA device, None where there is none."""
        import torch

        return cls(torch.cuda) if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    def mark(self, event: Any = None) -> Any:
        """An event behind all that the calling thread has launched; `event` itself where it is given, set again."""
        if event is None:
            event = self._free.pop() if self._free else self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def set_anchor(self) -> None:
        """Set an anchor if it is time for one; called by one thread."""
        if self._anchors and self._now() - self._anchors[-1].moment_s < EVERY_S:
            return
        with self._cuda.device(self._device):
            best = min((self._try() for _ in range(TRIES)), key=lambda anchor: anchor.width_s)
        if best.width_s <= MAX_WIDTH_S or not self._anchors:
            self._anchors.append(best)

    def moment_s(self, event: Any, not_before_s: float) -> float:
        """When an event happened; it is known to be later than `not_before_s`. Waits for it, and takes it back."""
        event.synchronize()
        before = [anchor for anchor in self._anchors if anchor.moment_s <= not_before_s]
        anchor = before[-1] if before else self._anchors[0]
        moment_s = anchor.moment_s + anchor.event.elapsed_time(event) / 1000
        self._free.append(event)
        return float(moment_s)

    def _try(self) -> Anchor:
        event = self._cuda.Event(enable_timing=True)
        begin_s = self._now()
        event.record(self._stream)
        event.synchronize()
        end_s = self._now()
        return Anchor(event, (begin_s + end_s) / 2, end_s - begin_s)
