"""Admission that leaves room for what those who run are still going to say."""

from __future__ import annotations

from collections import deque
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from simbatch.policies.base import EngineView, Policy, RequestView

WINDOW = 1000  # outputs that are remembered
NUM_MOMENTS = 17  # of the future that are looked at
FIRST_MARGIN, SMALLEST_MARGIN, LARGEST_MARGIN = 0.05, 0.001, 0.5  # share of the blocks that is left free


class Held(NamedTuple):
    """A running request as it was when it got its seat."""

    request: RequestView
    prompt: int  # tokens; what it shares with others costs nothing
    known: int  # tokens, all told
    since: int  # when its answer began, on the policy's clock
    num_preemptions: int


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

    max_preempted_share: Annotated[float, Field(gt=0, lt=1, description="bound on the share of preempted requests")] = (
        0.05
    )
    expected_output_tokens: Annotated[float, Field(gt=0, description="of a request, until some have ended")] = 256.0
    adjustment_interval: Annotated[int, Field(ge=1, description="finished requests per adjustment")] = 50

    def start(self, engine: EngineView) -> None:
        """Expect what the parameter says."""
        self._engine = engine
        self._running: dict[str, Held] = {}
        self._prefills: list[Held] = []  # whose blocks are not all taken yet
        self._begun = 0  # sum of `since - prompt` of all who run; whole, so that it is the same in any order
        self._clock = 0.0  # steps that gave everybody a token
        self._outputs: deque[int] = deque(maxlen=WINDOW)
        self._look_back()
        self._prompt_tokens = self._num_prompts = 0
        self._free_blocks = engine.num_usable_blocks
        self._margin = FIRST_MARGIN
        self._num_seen = self._num_preempted = 0

    def seats(self, engine: EngineView) -> int:
        """One more than run now, if the blocks will suffice; nobody is refused while the engine is idle."""
        num_running = engine.num_running
        self._free_blocks = engine.free_blocks
        if not num_running:
            self._clock = 0.0
            return 1
        self._set_clock(num_running)
        return min(num_running + self._fits_one_more(), engine.max_num_seqs)

    def admitted(self, request: RequestView) -> None:
        """Remember it; the blocks that are gone since it was let in are its own."""
        size, computed = self._engine.block_size, request.num_computed_tokens
        shared = size * (-(-computed // size) - (self._free_blocks - self._engine.free_blocks))
        prompt, said = request.num_prompt_tokens - shared, request.num_output_tokens
        held = Held(
            request, prompt, request.num_prompt_tokens + said, round(self._clock) - said, request.num_preemptions
        )
        self._forget(request)
        self._running[request.request_id] = held
        self._begun += held.since - held.prompt
        self._prefills.append(held)
        self._prompt_tokens += prompt
        self._num_prompts += 1

    def finished(self, request: RequestView) -> None:
        """Learn how long outputs are, and adjust the margin now and then."""
        self._forget(request)
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

    def _set_clock(self, num_running: int) -> None:
        """Nobody counts steps, but the blocks that are taken tell how far all have got together."""
        if len(self._running) > num_running:  # who has been preempted is told nowhere
            for held in [held for held in self._running.values() if not _is_running(held)]:
                self._forget(held.request)
        if self._prefills:  # the last token of what is computed again is a decode
            self._prefills = [held for held in self._prefills if _is_running(held) and _to_come(held) > 1]
        engine = self._engine
        taken = engine.block_size * (engine.num_usable_blocks - engine.free_blocks - num_running / 2)
        self._clock = (taken + sum(map(_to_come, self._prefills)) + self._begun) / num_running

    def _forget(self, request: RequestView) -> None:
        held = self._running.pop(request.request_id, None)
        if held is not None:
            self._begun -= held.since - held.prompt

    def _fits_one_more(self) -> bool:
        """Whether the worst moment to come leaves the margin free, with one more request of a usual prompt."""
        engine, num_running = self._engine, len(self._running)
        newcomer = self._prompt_tokens / self._num_prompts
        room = engine.block_size * (engine.free_blocks - self._margin * engine.num_usable_blocks - num_running / 2)
        if room >= (num_running + 1) * self._moments[-1] + newcomer:
            return True
        said = np.fromiter((self._clock - held.since for held in self._running.values()), float, num_running)
        said = np.append(np.maximum(said, 0.0), 0.0)
        prompts = np.fromiter((held.prompt for held in self._running.values()), float, num_running)
        tokens = np.append(prompts, newcomer) + said
        later = said[:, None] + self._moments
        longer = self._num_longer.take(later.astype(int), mode="clip")
        peak = ((tokens[:, None] + self._moments) * longer / longer[:, :1]).sum(axis=0).max()
        return bool(peak - tokens[:-1].sum() <= room)


def _to_come(held: Held) -> int:
    """How many of the tokens that it came with have no blocks yet."""
    return held.known - held.request.num_computed_tokens


def _is_running(held: Held) -> bool:
    """Whether it has not lost its seat since."""
    return held.request.num_preemptions == held.num_preemptions
