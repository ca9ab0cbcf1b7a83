"""How long a step takes, from what a recorder wrote of it and of the one before.

On a device whose begin and end were recorded: its own time, from where the one before has ended. Elsewhere (vLLM's CPU
build, and several GPUs): from the update of the step before, or from schedule() when the engine was idle, to the step's
own update, less what taking requests in took meanwhile, which a profile says apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from simbatch.profiler.fitting.recorded_lines import RecordedRequest, RecordedStep
from simbatch.profiler.fitting.samples import Entry


class Clock:
    """Takes a server's lines in their order; says what each step took."""

    def __init__(self) -> None:
        self._device_s = self._updated_s = -math.inf
        self._has_waiting = False
        self._taking_in_s = 0.0  # since the last step was scheduled

    def takes_in(self, request: RecordedRequest) -> None:
        """A request."""
        self._taking_in_s += request.end_s - request.begin_s

    def took_s(self, step: RecordedStep) -> float:
        """Seconds."""
        if math.isnan(step.end_s):
            # who decodes had a step before, and who waits could not get into it: nobody was idle
            is_busy = step.num_decodes > 0 or self._has_waiting
            between_s = step.schedule_s - self._updated_s - self._taking_in_s if is_busy else 0.0
            own_s = step.updated_s - step.schedule_s + max(0.0, between_s)
        else:
            own_s = step.end_s - max(step.start_s, self._device_s)
            self._device_s = step.end_s
        self._updated_s, self._taking_in_s, self._has_waiting = step.updated_s, 0.0, step.num_waiting > 0
        return own_s


def durations_s(lines: Iterable[RecordedStep | RecordedRequest]) -> Iterator[tuple[RecordedStep, float]]:
    """The steps of these lines, each with what it took."""
    clock = Clock()
    for line in lines:
        if isinstance(line, RecordedRequest):
            clock.takes_in(line)
        else:
            yield line, clock.took_s(line)


def entries_of(step: RecordedStep) -> tuple[Entry, ...]:
    """The batch; decodes share their context evenly, for a recorder writes its sum."""
    each, more = divmod(step.context_tokens, max(1, step.num_decodes))
    decodes = (Entry(each + (i < more), 1, True) for i in range(step.num_decodes))
    return (*decodes, *(Entry(computed, tokens, False) for computed, tokens in step.prefills))
