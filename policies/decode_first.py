"""Decodes before prompts: nothing disturbs those who are being answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simbatch.policies.base import EngineView, Plan, Policy, RequestView
from simbatch.policies.planning import Room, is_decoding


class DecodeFirst(Policy):
    """Compute no prompt while anybody decodes: whoever was admitted together is answered to the end, then the next.

    Plans every step. Source: the decode-prioritising schedulers of Agrawal et al., Taming Throughput-Latency Tradeoff
    in LLM Inference with Sarathi-Serve (OSDI 2024, section 3), FasterTransformer among them: the smallest time between
    tokens, and the lowest throughput, since seats stay empty.
    """

    max_batch_size: Annotated[int, Field(ge=1, description="most requests that run")] = 64

    def plan(self, running: Sequence[RequestView], waiting: Sequence[RequestView], engine: EngineView) -> Plan:
        """Decodes if there are any; else prompts, those begun first."""
        room = Room(running, engine, self.max_batch_size)
        decodes = [request for request in running if is_decoding(request)]
        for request in decodes:
            room.serve(request, reversed(running))
        if not decodes:
            for request in [*running, *waiting]:
                if not room.budget or not room.serve(request):
                    break
        return room.plan()

    def starvation_bound_s(self) -> float | None:
        """First come, first served."""
        return 0.0
