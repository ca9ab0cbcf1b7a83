"""Prompts before decodes: newcomers get their first token at once, and the others wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simbatch.sim.plugins.planning import Room
from simbatch.sim.plugins.policy import EngineView, Plan, Policy, RequestView


class PrefillFirst(Policy):
    """A step computes prompts alone while there are any that have a seat and blocks; else everybody decodes.

    Plans every step. Source: the prefill-prioritising schedulers of Agrawal et al. (Sarathi-Serve, OSDI 2024, section
    3), vLLM's first scheduler among them (Kwon et al., SOSP 2023): high throughput and short times to first token, but
    each newcomer stalls all who are being answered.
    """

    known_as = "vLLM's first scheduler"
    max_batch_size: Annotated[int, Field(ge=1, description="most requests that run")] = 256

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """Prompts, those begun first; without any, decodes."""
        room = Room(running, engine, self.max_batch_size)
        room.serve_prompts(running, waiting)
        if not room.tokens:
            for request in running:
                room.serve(request, reversed(running))
        return room.plan()

    def starvation_bound_s(self) -> float | None:
        """First come, first served."""
        return 0.0
