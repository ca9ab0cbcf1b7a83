"""One measurement on a running server: warm-up, canaries, waves; each step that the recorder writes is a sample."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simbatch.profiler.profile.design import DENSE, MIN_CONTEXT, Prompt, Wave, WaveLimits, counts, stream_tokens
from simbatch.profiler.records.lines import RecordedStep
from simbatch.profiler.records.samples import EngineFacts
from simbatch.profiler.server.client import Driver, Flight
from simbatch.profiler.server.http import now

CANARY_REPEATS = 9
CANARY_BATCH, CANARY_CONTEXT, CANARY_PREFILL = 8, 256, 256
VISITS = 2  # of each batch size in a warm-up
# Every count is visited up to this one, or to where steps last so long that a first visit's few ms are a small share.
EVERY, LONG_S = 512, 0.05
IDLE_S = 0.05  # before prompts that come alone: in traffic nothing ran then, and a CPU's first step is slower
GREEDY: dict[str, Any] = {"temperature": 0}
BY_MODEL: dict[str, Any] = {}  # the server takes what the model's generation_config.json says
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Span:
    """A part of a measurement, from begin_s to end_s of `time.monotonic`; `number` is a wave's."""

    kind: str  # canary, wave, model (a wave whose tokens are drawn by the model's config), table, traffic, warm-up
    number: int
    begin_s: float
    end_s: float


class Spans:
    """Which part a step belongs to."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def add(self, kind: str, number: int, begin_s: float) -> Span:
        """A part that ends now."""
        self._spans.append(Span(kind, number, begin_s, now()))
        return self._spans[-1]

    def of(self, step: RecordedStep) -> Span | None:
        """The part that had begun, and not ended, when it was scheduled."""
        at = bisect_right(self._spans, step.schedule_s, key=lambda span: span.begin_s) - 1
        span = self._spans[at] if at >= 0 else None
        return span if span is not None and step.schedule_s < span.end_s else None


class MeasuringSession:
    """Sends what a design says."""

    def __init__(self, driver: Driver, facts: EngineFacts, vocab_size: int, seed: int, spans: Spans) -> None:
        self.driver, self.limits, self._spans = driver, WaveLimits.of(facts), spans
        self._seed, self._vocab_size = seed, vocab_size
        # prompts that no run before had, and no server that was asked before
        self._rng = np.random.default_rng([seed, int(1e3 * now())])

    async def warm_up(self, tell: Tell) -> None:
        """Visit token counts and batch sizes: on a CPU a first visit builds a primitive, and takes half as long again.

        Some counts show first how long steps last; where they are short every count is visited.
        """
        begin_s, most = now(), self.limits.max_num_batched_tokens
        some, dense = counts(most), DENSE
        total = len(counts(most, EVERY)) + self.limits.largest_batch
        for done, count in enumerate(some, 1):
            if count <= EVERY and await self._compute(count) < LONG_S:
                dense = max(dense, count)
            tell(done, total)
        for done, count in enumerate(sorted(set(counts(most, dense)).difference(some)), len(some) + 1):
            await self._compute(count)
            tell(done, total)
        await self._visit_batches()
        tell(total, total)
        self._spans.add("warm-up", 0, begin_s)

    async def canary(self) -> None:
        """The same decodes and the same prefill, several times each."""
        begin_s, batch = now(), min(CANARY_BATCH, self.limits.largest_batch)
        context = max(1, min(CANARY_CONTEXT, self.limits.longest_prompt - CANARY_REPEATS - 2))
        decodes = [self._send(self._stream(i, context), CANARY_REPEATS + 2) for i in range(batch)]
        await self.driver.ended(decodes)
        for _ in range(CANARY_REPEATS):
            await self._compute(self.canary_prefill)
        self._spans.add("canary", 0, begin_s)

    def is_canary(self, step: RecordedStep) -> bool:
        """Whether a step of a canary's span is one of the repeats."""
        if step.prefills:
            (_, tokens), *others = step.prefills
            return not others and not step.num_decodes and tokens == self.canary_prefill
        return step.num_decodes == min(CANARY_BATCH, self.limits.largest_batch)

    @property
    def canary_prefill(self) -> int:
        """Tokens of the canary's prompts: one step each."""
        return min(CANARY_PREFILL, self.limits.longest_prompt, self.limits.max_num_batched_tokens)

    async def run(self, wave: Wave) -> None:
        """Do a wave; the parts of it that decode and those that are prefilled meet as the server lets them."""
        begin_s, sampling = now(), GREEDY if wave.is_greedy else BY_MODEL
        decodes = [
            self._send(self._stream(i, context), number, sampling)
            for i, (context, number) in enumerate(zip(wave.contexts, wave.num_tokens, strict=True))
        ]
        await self.driver.first_tokens(decodes)
        last = max(decodes, key=lambda flight: flight.max_tokens, default=None)
        for injection in wave.injections:
            if last is None:
                await asyncio.sleep(IDLE_S)
            else:
                await self.driver.tokens(last, last.num_tokens + injection.gap)
                if last.has_ended:
                    break
            await self.driver.ended([self._send(self._prompt(prompt), 1, sampling) for prompt in injection.prompts])
        await self.driver.ended(decodes)
        self._spans.add("wave" if wave.is_greedy else "model", wave.index, begin_s)

    async def together(self, number: int, prompt_len: int, output_len: int) -> list[Flight]:
        """So many requests at once, with prompts that no cache knows."""
        begin_s = now()
        flights = [self._send(self.fresh(prompt_len), output_len) for _ in range(number)]
        await self.driver.ended(flights)
        self._spans.add("table", number, begin_s)
        return flights

    def fresh(self, length: int) -> list[int]:
        """Tokens that no prompt before had."""
        tokens: list[int] = self._rng.integers(0, self._vocab_size, size=length).tolist()
        return tokens

    async def _compute(self, num_tokens: int) -> float:
        """One step of a prompt with so many tokens, or of several; how long they took to be answered, s."""
        longest = self.limits.longest_prompt
        parts = [longest] * (num_tokens // longest) + [num_tokens % longest]
        flights = [self._send(self.fresh(part), 1) for part in parts if part]
        await self.driver.ended(flights)
        return max(flight.answer.chunk_s[-1] - flight.sent_s for flight in flights)

    async def _visit_batches(self) -> None:
        """Every batch size, from the largest down: one more request ends every `VISITS` steps."""
        number = self.limits.largest_batch
        room = self.limits.longest_prompt - MIN_CONTEXT - 8
        visits = max(1, min(VISITS, room // max(1, number)))
        ends = [min(8 + visits * i, max(1, room)) for i in range(1, number + 1)]
        await self.driver.ended([self._send(self.fresh(MIN_CONTEXT), end) for end in ends])

    def _send(self, prompt: Sequence[int], max_tokens: int, sampling: dict[str, Any] = GREEDY) -> Flight:
        return self.driver.send(prompt, max_tokens, sampling)

    def _prompt(self, prompt: Prompt) -> list[int]:
        return self._stream(prompt.stream, prompt.history) + self.fresh(prompt.num_tokens)

    def _stream(self, stream: int, length: int) -> list[int]:
        return stream_tokens(stream, length, self._vocab_size, self._seed)
