"""High before normal, and nobody starves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView


class Priority(Policy):
    """High before normal before low, with ageing: a request gains one class for every `ageing_s` it has waited.

    So a normal request is overtaken only by high ones that arrive within `ageing_s` after it, and waits at most that
    much longer than in order of arrival. Comparing `arrival_s + priority * ageing_s` says the same at every moment, so
    the order never changes while requests wait. When blocks run out, the last in this order is preempted. Source:
    `PriorityBatcher` of the source material; Jackson, Waiting-Time Distributions for Queues with Dynamic Priorities
    (Naval Research Logistics Quarterly, 1962): the more load, the nearer do the waits of two classes come to differing
    by their ageing, and not by more.
    """

    known_as = "priorities with ageing"
    disciplines: ClassVar = ("continuous", "static")

    max_batch_size: Annotated[int, Field(ge=1, description="most requests that run")] = 64
    ageing_s: Annotated[float, Field(gt=0, description="waiting that is worth a class")] = 30.0

    def order(self, request: RequestView) -> float:
        """Classes first, age against them."""
        return request.arrival_s + request.priority * self.ageing_s

    def seats(self, engine: EngineView) -> int:
        """The batch is filled up from below: whatever the classes, no seat stays empty while anybody waits."""
        return min(self.max_batch_size, engine.max_num_seqs)

    def starvation_bound_s(self) -> float:
        """Between high (0) and low (2), the classes that have names."""
        return 2 * self.ageing_s

    def victim(self, running: Sequence[RequestView]) -> RequestView:
        """The one that would be served last; of equals the one admitted last."""
        return max(reversed(running), key=self.order)
