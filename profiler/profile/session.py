"""One measurement on a running server: warm-up, canaries, waves, and traffic as users send it.

Each step that the recorder writes is a sample. Traffic are streams at several rates, from which the front end is told
(`simbatch fit` reads them): one at a time, then Poisson arrivals at two rates that are five times apart, then cohorts
that come at once. Rates are shares of what the batch table says the server does. Each run is kept as `vllm bench serve
--save-detailed` would.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.profiler.profile.design import DENSE, MIN_CONTEXT, Prompt, Wave, WaveLimits, counts, stream_tokens
from simbatch.profiler.records import Requests
from simbatch.profiler.records.lines import RecordedStep
from simbatch.profiler.records.samples import EngineFacts
from simbatch.profiler.server import Server
from simbatch.profiler.server.client import Client, Driver, Flight, ServerGoneError
from simbatch.profiler.server.http import now
from simbatch.profiler.server.result import ServedRun
from simbatch.sim.clock import to_ps
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import write_all, write_json
from simbatch.sim.workload.chunk import RequestChunk

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
        """Decodes of one batch and one prefill, several times each: whether the machine is as fast as before."""
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


MEAN_PROMPT, MEAN_OUTPUT = 400, 64
SPREAD = 0.8  # of lengths round their mean, either way
SHARES = {"alone": 0.0, "light": 0.1, "heavy": 0.4, "cohorts": 0.3}  # of the server's tokens per second
COHORT = 8
MOST_S, LEAST = 25.0, 8  # seconds a run, requests in it


@dataclass(frozen=True)
class MeasuringTraffic:
    """Runs against one server; `path_of` names the file of each."""

    server: Server
    session: MeasuringSession
    spans: Spans
    path_of: Callable[[str], Path]

    def runs(
        self, rows: Sequence[dict[str, Any]], seconds: float
    ) -> Iterator[tuple[str, Callable[[], Awaitable[None]]]]:
        """What is still to be sent within `seconds`, by name; `rows` are the batch table's."""
        rate = max((row["output_throughput"] for row in rows), default=0.0)
        each_s = min(MOST_S, seconds / len(SHARES))
        for name, share in SHARES.items():
            if rate and not self.path_of(name).exists():
                lone_s = min(row["e2el_ms"] for row in rows) / 1e3 * MEAN_OUTPUT / rows[0]["output_len"]
                per_s = share * rate / MEAN_OUTPUT if share else 1 / lone_s
                number = max(LEAST, int(per_s * each_s))
                yield f"{name}, {number} requests", lambda n=name, m=number, r=per_s: self._send(n, m, r)  # type: ignore[misc]

    async def _send(self, name: str, number: int, per_s: float) -> None:
        begin_s = now()
        requests = self._requests(name, number, per_s)
        columns, limit = requests.all, self.session.limits.max_model_len
        bodies = [
            self.server.completion({"prompt": self.session.fresh(length), "max_tokens": most, **GREEDY})
            for length, most in zip(columns.num_prompt_tokens, columns.num_output_tokens, strict=True)
        ]
        client = Client(self.server.endpoint, requests, lambda sent: bodies[sent.index], limit, lambda *_: None)
        try:
            await client.run()
        except ServerGoneError as error:
            mend = "look into its log; measured so far is kept, go on with --resume"
            raise UserError(
                Problem(f"the server at {self.server.endpoint.url}", f"is gone: {error}", mend=mend)
            ) from None
        served = ServedRun(client.sent, {"cpu_share": client.cpu_share}, 0)
        write_all(
            self.path_of(name).parent,
            {
                self.path_of(name).name: lambda path: write_json(
                    path, served.detail(self.server.model, requests.max_concurrency)
                ),
            },
        )
        self.spans.add("traffic", 0, begin_s)

    def _requests(self, name: str, number: int, per_s: float) -> Requests:
        rng, limits = np.random.default_rng([list(SHARES).index(name), number]), self.session.limits
        prompts, outputs = lengths(limits, rng, number)
        if name == "cohorts":
            at_s = np.arange(number) // COHORT * COHORT / per_s
        else:
            at_s = np.cumsum(rng.exponential(1 / per_s, number)) if name != "alone" else np.zeros(number)
        chunk = RequestChunk([to_ps(float(moment_s)) for moment_s in at_s], prompts.tolist(), outputs.tolist())
        return Requests(chunk, max_concurrency=1 if name == "alone" else None)


def lengths(limits: WaveLimits, rng: np.random.Generator, number: int) -> tuple[Any, Any]:
    """Prompt and output tokens, uniform round their means, or round what the model's length allows."""
    most = limits.longest_prompt
    prompt = min(MEAN_PROMPT, most // 4)
    output = min(MEAN_OUTPUT, max(2, most // 8))
    drawn = rng.uniform(1 - SPREAD, 1 + SPREAD, (2, number))
    return np.maximum(1, drawn[0] * prompt).astype(int), np.maximum(2, drawn[1] * output).astype(int)
