"""Admission that leaves room for what those who run are still going to say."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from simbatch.policies.base import EngineView, Policy, RequestView

MOST = 16.0  # times the expected growth that can be kept free


class MemoryAware(Policy):
    """Admit while the free blocks would hold what those who run are expected to grow by, so that few are preempted.

    The growth of a request is expected to be half of the mean output seen, times a reserve that follows the
    preemptions: after every `adjustment_interval` finished requests it grows by a half when more than
    `max_preempted_share` of them had been preempted, and shrinks by a tenth when fewer were. Source: Gong et al.,
    Past-Future Scheduler for LLM Serving under SLA Guarantees (ASPLOS 2025): admitting by the memory to come, learned
    from past outputs, evicts far fewer requests than admitting by the memory of now, and holds more of them than
    reserving the longest output.
    """

    max_preempted_share: Annotated[float, Field(gt=0, lt=1, description="bound on the share of preempted requests")] = (
        0.05
    )
    expected_output_tokens: Annotated[float, Field(gt=0, description="of a request, until some have ended")] = 256.0
    adjustment_interval: Annotated[int, Field(ge=1, description="finished requests per adjustment")] = 50

    def start(self, engine: EngineView) -> None:
        """Expect what the parameter says."""
        self._mean_output = self.expected_output_tokens
        self._reserve = 1.0
        self._num_finished = self._num_seen = self._num_preempted = 0

    def seats(self, engine: EngineView) -> int:
        """One more than run now, if the blocks suffice; nobody is refused while the engine is idle."""
        num_running = engine.num_running
        growth_blocks = self._reserve * self._mean_output / 2 / engine.block_size
        fits = engine.free_blocks >= growth_blocks * (num_running + 1) or not num_running
        return min(num_running + 1 if fits else num_running, engine.max_num_seqs)

    def finished(self, request: RequestView) -> None:
        """Learn how long outputs are, and adjust the reserve now and then."""
        self._num_finished += 1
        self._mean_output += (request.num_output_tokens - self._mean_output) / min(self._num_finished, 1000)
        self._num_seen += 1
        self._num_preempted += request.num_preemptions > 0
        if self._num_seen >= self.adjustment_interval:
            is_much = self._num_preempted > self.max_preempted_share * self._num_seen
            self._reserve = min(self._reserve * 1.5, MOST) if is_much else self._reserve * 0.9
            self._num_seen = self._num_preempted = 0
