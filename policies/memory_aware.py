"""Admission that leaves room for what those who run are still going to say."""

from __future__ import annotations

from collections import deque
from typing import Annotated

import numpy as np
from pydantic import Field

from simbatch.sim.plugins.policy import EngineView, Policy, RequestView

WINDOW = 1000  # outputs that are remembered
NUM_MOMENTS = 17  # of the future that are looked at
FIRST_MARGIN, SMALLEST_MARGIN, LARGEST_MARGIN = 0.05, 0.001, 0.5  # share of the blocks that is left free


class MemoryAware(Policy):
    """Admit while the KV cache would hold what those who run will need at the worst moment to come.

    A request that has said `a` tokens still runs `t` tokens later with the share of past outputs that were longer than
    `a + t` among those longer than `a`. What all together then hold must leave a margin free, which follows the
    preemptions: after every `adjustment_interval` finished requests it grows by a half when more than
    `max_preempted_share` of them had been preempted, and shrinks by a tenth otherwise. Source: Gong et al., Past-Future
    Scheduler for LLM Serving under SLA Guarantees (ASPLOS 2025): admitting by the peak of the memory to come, learned
    from past outputs, evicts far fewer requests than admitting by the memory of now, and runs more of them than
    reserving the longest output. Where they draw one output length for each request, this takes the expectation.
    """

    known_as = "Past-Future"
    max_preempted_share: Annotated[float, Field(gt=0, lt=1, description="bound on the share of preempted requests")] = (
        0.05
    )
    expected_output_tokens: Annotated[float, Field(gt=0, description="of a request, until some have ended")] = 256.0
    adjustment_interval: Annotated[int, Field(ge=1, description="finished requests per adjustment")] = 50

    def start(self, engine: EngineView) -> None:
        """Expect what the parameter says."""
        self._engine = engine
        self._seated: dict[str, tuple[RequestView, int]] = {}  # and the prompt tokens that it alone holds
        self._outputs: deque[int] = deque(maxlen=WINDOW)
        self._look_back()
        self._prompt_tokens = self._num_prompts = 0
        self._margin = FIRST_MARGIN
        self._num_seen = self._num_preempted = 0

    def seats(self, engine: EngineView) -> int:
        """One more than run now, if the blocks will suffice; nobody is refused while the engine is idle."""
        num_running = engine.num_running
        if not num_running:
            return 1
        return min(num_running + self._fits_one_more(num_running), engine.max_num_seqs)

    def admitted(self, request: RequestView) -> None:
        """Remember it; what it shares with others costs nothing."""
        held_alone = self._engine.block_size * self._engine.blocks_freed_by(request)
        prompt = request.num_prompt_tokens - max(request.num_computed_tokens - held_alone, 0)
        self._seated[request.request_id] = request, prompt
        self._prompt_tokens += prompt
        self._num_prompts += 1

    def finished(self, request: RequestView) -> None:
        """Learn how long outputs are, and adjust the margin now and then."""
        self._seated.pop(request.request_id, None)
        self._outputs.append(request.num_output_tokens)
        self._num_seen += 1
        self._num_preempted += request.num_preemptions > 0
        if self._num_seen >= self.adjustment_interval:
            is_much = self._num_preempted > self.max_preempted_share * self._num_seen
            self._margin = min(max(self._margin * (1.5 if is_much else 0.9), SMALLEST_MARGIN), LARGEST_MARGIN)
            self._num_seen = self._num_preempted = 0
        if not self._num_seen or len(self._outputs) < self.adjustment_interval:
            self._look_back()

    def _look_back(self) -> None:
        """How many outputs were longer than 0, 1, 2, ... tokens, and one more, for what has not been seen yet.

        What was expected counts as an output until enough have ended.
        """
        is_new = len(self._outputs) < self.adjustment_interval
        most = self._engine.num_usable_blocks * self._engine.block_size
        outputs = np.array([*self._outputs, *[min(int(self.expected_output_tokens), most)] * is_new])
        self._num_longer = len(outputs) + 1 - np.cumsum(np.bincount(outputs))
        self._moments = np.linspace(0, len(self._num_longer) - 1, NUM_MOMENTS)

    def _fits_one_more(self, num_running: int) -> bool:
        """Whether the worst moment to come leaves the margin free, with one more request of a usual prompt."""
        engine, newcomer = self._engine, self._prompt_tokens / self._num_prompts
        # half of everybody's last block is empty
        room = engine.block_size * (engine.free_blocks - self._margin * engine.num_usable_blocks - num_running / 2)
        if room >= (num_running + 1) * self._moments[-1] + newcomer:
            return True
        running = [  # own prompt, output, and what of both has no blocks yet; who was preempted has computed nothing
            (prompt, output := view.num_output_tokens, view.num_prompt_tokens + output - computed)
            for view, prompt in self._seated.values()
            if (computed := view.num_computed_tokens)
        ]
        prompts, said, missing = np.array([*running, (newcomer, 0, newcomer)]).T
        later = said[:, None] + self._moments
        longer = self._num_longer.take(later.astype(int), mode="clip")
        peak = ((prompts[:, None] + later) * longer / longer[:, :1]).sum(axis=0).max()
        return bool(peak - (prompts + said - missing).sum() <= room)
