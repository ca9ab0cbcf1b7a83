"""Earliest deadline first, and no work for those who are late anyhow."""

from __future__ import annotations

from collections import deque
from typing import Annotated, ClassVar

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView

NUM_REMEMBERED = 10  # requests


class EarliestDeadlineFirst(Policy):
    """Admit in order of the deadline for the first token; drop a request that cannot meet it any more.

    The deadline is `target_ttft_ms` after arrival, times `class_factor` for each class below high. Hopeless is a
    request whose prompt, computed at once, would end after its deadline: by the profile, and, unless it would run
    alone, by what the profile left out for the worst of the last ten (prompts in the same steps, the step in flight).

    Source: Liu and Layland (JACM 1973) for the order; Gujarati et al., Serving DNNs like Clockwork (OSDI 2020) for
    shedding by predicted times: under overload goodput stays at what the device can do, while without it everybody is
    late.
    """

    known_as = "Clockwork"
    disciplines: ClassVar = ("continuous", "static")

    target_ttft_ms: Annotated[float, Field(gt=0, description="deadline of the first token, class high")] = 1000.0
    class_factor: Annotated[float, Field(ge=1, description="how much later the deadline of each further class is")] = (
        2.0
    )
    shed_hopeless: Annotated[bool, Field(description="drop who would miss the deadline anyhow")] = True

    def start(self, engine: EngineView) -> None:
        """Trust the profile until it is found out."""
        self._engine = engine
        self._expected_s: dict[str, float] = {}  # end of the prompt, by request
        self._delays_s = deque([0.0], maxlen=NUM_REMEMBERED)

    def order(self, request: RequestView) -> float:
        """The deadline."""
        return request.arrival_s + self._allowed_s(request)

    def shed(self, request: RequestView, engine: EngineView) -> str | None:
        """Late, even if it is computed in the very next step."""
        if not self.shed_hopeless:
            return None
        allowed_s = self._allowed_s(request)
        delay_s = min(max(self._delays_s), allowed_s / 2) if engine.num_running else 0.0
        is_late = self._first_token_s(request) + delay_s > request.arrival_s + allowed_s
        return "would miss its deadline for the first token" if is_late else None

    def admitted(self, request: RequestView) -> None:
        """Note when the profile has its first token."""
        self._expected_s.setdefault(request.request_id, self._first_token_s(request))

    def finished(self, request: RequestView) -> None:
        """Note how much later it came."""
        if request.ttft_s is not None:
            came_s = request.arrival_s + request.ttft_s
            self._delays_s.append(max(came_s - self._expected_s.pop(request.request_id), 0.0))

    def starvation_bound_s(self) -> float | None:
        """Between high (0) and low (2), the classes that have names."""
        return self.target_ttft_ms / 1000 * (self.class_factor**2 - 1)

    def _first_token_s(self, request: RequestView) -> float:
        return self._engine.now_s + self._engine.step_time_s(request.num_prompt_tokens)

    def _allowed_s(self, request: RequestView) -> float:
        return self.target_ttft_ms / 1000 * self.class_factor**request.priority
