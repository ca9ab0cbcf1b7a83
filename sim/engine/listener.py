"""Who is told what happens in a replica. Not compiled, as its neighbours are: it is made to be inherited from."""

from __future__ import annotations

from simbatch.sim.engine.resources import Step
from simbatch.sim.scheduler.request import Request


class Listener:
    """Who is told what happens in a replica, as it happens; a replica that is listened to does every step.

    Hears everything and does nothing; times in ps on the clock of the engine's thread.
    """

    def arrived(self, request: Request, now_ps: int) -> None:
        """A request is taken in, or turned away next."""

    def turned_away(self, request: Request, reason: str, now_ps: int) -> None:
        """A request leaves without an answer."""

    def preempted(self, request: Request, needed_by: Request | None) -> None:
        """A running request loses its blocks, to another one or to itself."""

    def planning(self, now_ps: int) -> None:
        """A step is about to be scheduled."""

    def planned(self, step: Step) -> None:
        """A step has been scheduled and launched; it may be empty."""

    def updating(self, step: Step) -> None:
        """The tokens of a step are about to be taken in."""

    def updated(self, step: Step, finished: list[Request]) -> None:
        """A step's tokens have been taken in, and those that ended have left."""

    def is_idle(self, now_ps: int) -> None:
        """Nothing can be done until the next request arrives."""

    def wants_end(self) -> bool:
        """Whether the run is to be cut here."""
        return False
