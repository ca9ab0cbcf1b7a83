"""vLLM's `--prefill-schedule-interval`: prefills are held back so that decodes run undisturbed for some steps."""

from __future__ import annotations

from collections.abc import Iterable

from simbatch.sim.scheduler.request import Request


class Cadence:
    """When prefills are held: until `interval` steps lie between one that had some and the next (vLLM 0.33).

    Not while nobody decodes, nor after a step that was free to admit and left requests waiting: then prefills would
    never catch up.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self._num_steps = 0  # that computed something
        self._last_prefill = -interval
        self._is_behind = False

    def holds(self, running: Iterable[Request]) -> bool:
        """Whether the step to be planned leaves prefills out."""
        return (
            not self._is_behind
            and self._num_steps + 1 - self._last_prefill < self.interval
            and any(not request.is_chunk for request in running)
        )

    def note(self, is_empty: bool, has_prefill: bool, left_waiting: bool | None) -> None:
        """A step is planned; `left_waiting` is None where it was not free to admit."""
        if left_waiting is not None:
            self._is_behind = left_waiting
        self._num_steps += not is_empty
        if has_prefill:
            self._last_prefill = self._num_steps
