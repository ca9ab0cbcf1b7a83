"""The first step that two runs of the same requests decide differently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from simbatch.sim.clock import to_s
from simbatch.sim.engine.resources import Listener, Step
from simbatch.sim.scenario.resolved import Resolved
from simbatch.sim.search.simulate import listen

MAX_STEPS = 200_000  # further than that nobody looks
Decision = tuple[tuple[Any, ...], ...]  # entries (request, tokens, tokens computed before), then who was preempted


@dataclass(frozen=True)
class FirstStep:
    """Step number, counted from 0 over all that decided something; when it is scheduled in each run; what differs."""

    number: int
    times_s: tuple[float, float]
    request_id: str
    what: tuple[str, str]  # what becomes of this request in each


class Decisions(Listener):
    """Remembers what each step decides, as a number; stops where `known` has another one, or after `last`."""

    def __init__(self, known: list[int] | None = None, last: int = MAX_STEPS) -> None:
        self.digests: list[int] = []
        self.newest: tuple[Decision, int] | None = None  # what was decided last, and when
        self.differs = False
        self._known, self._last = known, last

    def planned(self, step: Step) -> None:
        """See `Listener`; empty steps decide nothing."""
        if not step.batch.entries and not step.batch.preempted:
            return
        entries = tuple((e.request.request_id, e.num_tokens, e.num_computed_tokens) for e in step.batch.entries)
        decision = entries, tuple(request.request_id for request in step.batch.preempted)
        self.newest = decision, step.schedule_ps
        number, digest = len(self.digests), hash(decision)
        self.digests.append(digest)
        self.differs = self._known is not None and (number >= len(self._known) or self._known[number] != digest)

    def wants_end(self) -> bool:
        """See `Listener`."""
        return self.differs or len(self.digests) > self._last


def first_difference(old: Callable[[], Resolved], new: Callable[[], Resolved]) -> FirstStep | None:
    """Run both, each afresh as often as it takes; None where the same is decided in every step that was looked at."""
    known = Decisions()
    listen(old(), known)
    other = Decisions(known.digests)
    listen(new(), other)
    if not other.differs:
        return None
    number = len(other.digests) - 1
    again = Decisions(last=number)
    listen(old(), again)
    assert again.newest is not None
    assert other.newest is not None
    (ours, our_ps), (theirs, their_ps) = again.newest, other.newest
    request_id = _first_request(ours, theirs)
    what = _fate(request_id, ours), _fate(request_id, theirs)
    return FirstStep(number, (to_s(our_ps), to_s(their_ps)), request_id, what)


def _first_request(old: Decision, new: Decision) -> str:
    """Whose share of the step is another one."""
    for ours, theirs in zip_longest(old[0], new[0]):
        if ours != theirs:
            both = {entry[0]: entry for entry in (theirs, ours) if entry is not None}
            return str(next((name for name in both if _fate(name, old) != _fate(name, new)), next(iter(both))))
    return str(next(iter(set(old[1]) ^ set(new[1])), old[1][0]))


def _fate(request_id: str, decision: Decision) -> str:
    entries, preempted = decision
    entry = next((entry for entry in entries if entry[0] == request_id), None)
    if entry is not None:
        again = "preempted and " if request_id in preempted else ""
        return f"{again}computed: {entry[1]:,} tokens after {entry[2]:,}"
    return "preempted" if request_id in preempted else "not in the step"
