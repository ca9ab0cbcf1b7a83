"""How long an engine step lasts, told from the calls that vLLM makes.

`LLMEngine.step` is not one engine step: under asynchronous scheduling (the default on a GPU) it returns early while the
queue of batches fills, and then waits for a batch that an earlier call has launched. So a duration belongs to the
scheduler output that `update_from_output` is given. It ends when the call with that update ends, and begins at the end
of the call with the update before it, or, when the engine was idle then, with the call that launched the batch.
Without asynchronous scheduling the same rule gives the time of the whole call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from simbatch.profiler.fitting.samples import Entry

Entries = tuple[tuple[str, Entry], ...]


class RecordedStep(NamedTuple):
    """One engine step on the clock of `time.perf_counter`; the counts are those after the step's update."""

    start_s: float
    end_s: float
    entries: Entries
    free_blocks: int
    num_running: int
    num_waiting: int

    @property
    def duration_s(self) -> float:
        """From the later of launch and previous update to its own update's end."""
        return self.end_s - self.start_s


class Counts(NamedTuple):
    """The scheduler after an update."""

    free_blocks: int
    num_running: int
    num_waiting: int


class StepClock:
    """Pairs each update with the launch of its batch; `on_step` gets the steps that computed something."""

    def __init__(self, now: Callable[[], float], on_step: Callable[[RecordedStep], None]) -> None:
        self._now = now
        self._on_step = on_step
        self._call_start_s = 0.0
        self._last_end_s = float("-inf")
        # by identity; the output is kept, or another one could get its id
        self._launched: dict[int, tuple[object, float, Entries]] = {}
        self._updated: tuple[object, float, Entries] | None = None

    def call_begins(self) -> None:
        """`LLMEngine.step` is called."""
        self._call_start_s = self._now()
        self._updated = None

    def launched(self, scheduler_output: object, entries: Entries) -> None:
        """`schedule` has returned a batch."""
        self._launched[id(scheduler_output)] = (scheduler_output, self._call_start_s, entries)

    def updated(self, scheduler_output: object) -> None:
        """`update_from_output` was given the results of a batch."""
        self._updated = self._launched.pop(id(scheduler_output))

    def call_ends(self, counts: Counts) -> None:
        """`LLMEngine.step` returns."""
        if self._updated is None:
            return
        now, (_, launch_s, entries) = self._now(), self._updated
        start_s = max(launch_s, self._last_end_s)
        self._last_end_s = now
        if entries:
            self._on_step(RecordedStep(start_s, now, entries, *counts))
