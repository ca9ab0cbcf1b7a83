"""Program-level attained service: who has had little of the engine goes first, session by session."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView

MAX_SESSIONS = 100_000  # that are remembered; of more the one that was served longest ago is new again


class ProgramAttainedService(Policy):
    """The turn goes first whose session has been served least so far: short programs before long ones, unforeseen.

    A session's attained service is the time that its turns have run, from seat to last token, those in parallel
    added up. It sinks by a level when that passes the level's quantum, twice that of the level above. On a level first
    come is first served, and who has waited for `promote_s` goes before all. A request without a session is a program
    of one call. Nobody who runs is stopped for another one's sake.

    Source: Luo et al., Autellix: An Efficient Serving Engine for LLM Agents as General Programs (arXiv 2502.13965):
    program-level attained service (PLAS), its levels, its promotion against starvation. There a running call can be
    swapped out, too, and parallel calls count by their longest chain (ATLAS). As a trend: under load short programs end
    sooner than first come, first served, and long ones later.
    """

    quantum_s: Annotated[float, Field(gt=0, description="service that a session has on the highest level")] = 2.0
    num_levels: Annotated[int, Field(ge=1, le=32, description="levels, each with twice the quantum")] = 8
    promote_s: Annotated[float, Field(gt=0, description="who has waited so long goes before all levels")] = 60.0

    def start(self, engine: EngineView) -> None:
        """Nobody has been served."""
        self._engine = engine
        self._served_s: OrderedDict[str, float] = OrderedDict()  # by session
        self._seated_s: dict[str, float] = {}  # since when a request has its seat

    def lane(self, request: RequestView) -> Hashable:
        """The level that its session has sunk to."""
        served_s = self._served_s.get(request.session_id or "", 0.0)
        level, passed_s = 0, self.quantum_s
        while served_s >= passed_s and level < self.num_levels - 1:
            level, passed_s = level + 1, passed_s + self.quantum_s * 2 ** (level + 1)
        return level

    def order(self, request: RequestView) -> tuple[bool, int, float]:
        """Of the heads of the levels: who has waited too long, then the highest level."""
        is_patient = self._engine.now_s - request.arrival_s < self.promote_s
        level = self.lane(request) if is_patient else 0
        assert isinstance(level, int)
        return is_patient, level, request.arrival_s

    def admitted(self, request: RequestView) -> None:
        """It runs from now on, or again."""
        self._seated_s.setdefault(request.request_id, self._engine.now_s)

    def finished(self, request: RequestView) -> None:
        """Charge its session for the time that it ran."""
        ran_s = self._engine.now_s - self._seated_s.pop(request.request_id, self._engine.now_s)
        if request.session_id is not None:
            self._served_s[request.session_id] = self._served_s.get(request.session_id, 0.0) + ran_s
            self._served_s.move_to_end(request.session_id)
            if len(self._served_s) > MAX_SESSIONS:
                self._served_s.popitem(last=False)
