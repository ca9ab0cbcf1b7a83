"""Earliest deadline first, and no work for those who are late anyhow."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from simbatch.policies.base import EngineView, Policy, RequestView


class EarliestDeadlineFirst(Policy):
    """Admit in order of the deadline for the first token; drop a request that cannot meet it any more.

    The deadline is `target_ttft_ms` after arrival, times `class_factor` for each class below high. Hopeless is a
    request whose prompt, computed at once, would end after its deadline by the profile. Source: Liu and Layland (JACM
    1973) for the order; Clockwork (Gujarati et al., OSDI 2020) for shedding: under overload goodput stays at what the
    device can do, while without it everybody is late.
    """

    disciplines: ClassVar = ("continuous", "static")

    target_ttft_ms: Annotated[float, Field(gt=0, description="deadline of the first token, class high")] = 1000.0
    class_factor: Annotated[float, Field(ge=1, description="how much later the deadline of each further class is")] = (
        2.0
    )
    shed_hopeless: Annotated[bool, Field(description="drop who would miss the deadline anyhow")] = True

    def order(self, request: RequestView) -> float:
        """The deadline."""
        return request.arrival_s + self._allowed_s(request)

    def shed(self, request: RequestView, engine: EngineView) -> str | None:
        """Late by the profile, even if it is computed in the very next step."""
        late_s = engine.now_s + engine.step_time_s(request.num_prompt_tokens) - self.order(request)
        return "would miss its deadline for the first token" if self.shed_hopeless and late_s > 0 else None

    def starvation_bound_s(self) -> float | None:
        """Between high (0) and low (2), the classes that have names."""
        return self.target_ttft_ms / 1000 * (self.class_factor**2 - 1)

    def _allowed_s(self, request: RequestView) -> float:
        return self.target_ttft_ms / 1000 * self.class_factor**request.priority
