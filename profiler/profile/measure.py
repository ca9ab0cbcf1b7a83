"""A whole measurement: warm-up, canary, batch table, waves and traffic until it is enough; all kept as it comes.

It is enough when the held-out error has stopped improving and totals are sure, or the time is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simbatch.profiler.fit import HeldOut, held_out
from simbatch.profiler.profile.batches import BatchShape, Lived, batch_sizes, row_of
from simbatch.profiler.profile.design import draw
from simbatch.profiler.profile.sections import way_of
from simbatch.profiler.profile.session import MeasuringSession, MeasuringTraffic, Spans
from simbatch.profiler.records.lines import RecordedRequest, RecordedStep, StepClock, entries_of
from simbatch.profiler.records.samples import Admission, EngineFacts, Samples, SampleWriter, StepSample, read_samples
from simbatch.profiler.server import Tail
from simbatch.profiler.server.client import Flight
from simbatch.sim.errors import Problem, UserError

CANARY_EVERY = 0.1  # of the time budget
CANARY_EVERY_S = 10.0  # at least
# what may differ between two starts of the same engine
MAY_DIFFER = {"num_gpu_blocks", "kv_cache_bytes", "activation_bytes", "graphs_bytes", "weights_bytes", "total_bytes"}
MAY_DIFFER |= {"command", "warnings", "seed", "format"}

Tell = Callable[[str], None]  # what is being done

MIN_WAVES = 40
MAX_TABLE, TRAFFIC = 0.3, 0.2  # of the time budget; the waves have the rest
GROWTH = 1.2  # the error is looked at again when there are that many times the waves
PATIENCE = 3  # looks in a row without improvement
IMPROVEMENT = 0.03  # of the best mean error so far: less is none
SURE = 0.01  # standard error of the totals: means over a long run are as good as that, however noisy its steps


@dataclass
class Budget:
    """Seconds from now on; `now` is a clock."""

    seconds: float
    now: Callable[[], float]
    start_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.start_s = self.now()

    @property
    def elapsed_s(self) -> float:
        """Since it was made."""
        return self.now() - self.start_s

    @property
    def left_s(self) -> float:
        """Never below zero."""
        return max(0.0, self.seconds - self.elapsed_s)


@dataclass
class Stopping:
    """Looks at the held-out error of the regimes now and then; they weigh the same."""

    best: float = float("inf")
    looks_without: int = 0
    next_look: int = MIN_WAVES

    def is_time_to_look(self, num_waves: int) -> bool:
        """Whether enough has come since the last look."""
        return num_waves >= self.next_look

    def look(self, num_waves: int, found: HeldOut | None) -> bool:
        """Whether to stop; None while there is not enough to fit."""
        self.next_look = max(num_waves + 1, int(num_waves * GROWTH))
        if found is None:
            return False
        error = sum(found.errors.values()) / len(found.errors)
        if error < self.best * (1 - IMPROVEMENT):
            self.best, self.looks_without = error, 0
        else:
            self.looks_without += 1
        return self.looks_without >= PATIENCE and max(found.total_errors.values()) <= SURE


@dataclass
class KeptSamples:
    """Samples in memory and in their file, which grow together."""

    samples: Samples
    writer: SampleWriter

    def step(self, step: StepSample) -> None:
        """Keep a step."""
        self.samples.steps.append(step)
        self.writer.step(step)

    def admission(self, admission: Admission) -> None:
        """Keep what taking a request in took."""
        self.samples.admissions.append(admission)
        self.writer.admission(admission)

    def row(self, row: dict[str, Any]) -> None:
        """Keep a row of the batch table."""
        self.samples.batches.append(row)
        self.writer.batch(row)

    def note(self, text: str) -> None:
        """Keep what happened."""
        self.samples.notes.append({"text": text})
        self.writer.note({"text": text})


def open_samples(path: Path, facts: EngineFacts, *, resume: bool) -> KeptSamples:
    """Begin a samples file, or go on with one of the same engine; UserError when it is another's."""
    if resume and path.exists() and path.stat().st_size:
        samples = read_samples(path)  # without a last line that was cut off
        _check_same(path, samples.engine, facts)
        kept = KeptSamples(samples, SampleWriter(path, facts, resume=True))
        kept.note(f"resumed after {len(samples.steps)} steps")
        return kept
    return KeptSamples(Samples(facts), SampleWriter(path, facts))


def check_not_begun(path: Path, *, resume: bool) -> None:
    """UserError before a measurement that was begun is lost."""
    if not resume and path.exists() and path.stat().st_size:
        mend = "go on with --resume, or remove or rename the file"
        raise UserError(Problem(str(path), "holds an earlier measurement", mend=mend))


@dataclass
class Measurement:
    """Everything that one run of `simbatch profile` does with the server."""

    session: MeasuringSession
    spans: Spans
    tail: Tail
    kept: KeptSamples
    traffic: MeasuringTraffic
    seed: int
    budget: Budget
    tell: Tell
    stopping: Stopping = field(default_factory=Stopping)
    found: HeldOut | None = None
    by_model: list[StepSample] = field(default_factory=list)
    clock: StepClock = field(default_factory=StepClock)
    _last_canary_s: float = 0.0

    async def run(self) -> str:
        """Measure; returns why it ended."""
        if self.facts.gpu == "cpu":
            await self.session.warm_up(lambda done, total: self.tell(f"warm-up: {done} of {total} sizes"))
        await self._canary()
        await self._batch_table()
        await self._traffic()
        why = await self._waves()
        await self._canary()
        self._take(await self.tail.settled())
        self.kept.note(why)
        return why

    @property
    def facts(self) -> EngineFacts:
        """The engine's."""
        return self.kept.samples.engine

    def _take(self, lines: Sequence[RecordedStep | RecordedRequest]) -> None:
        """Keep what has been recorded."""
        for line in lines:
            if isinstance(line, RecordedRequest):
                self.clock.takes_in(line)
                self.kept.admission(Admission(line.end_s - line.begin_s, line.num_prompt_tokens))
            else:
                self._keep(line, self.clock.took_s(line))

    def _keep(self, step: RecordedStep, took_s: float) -> None:
        """As a sample, if it is one; a wave whose tokens the model's config draws has a figure of its own."""
        span = self.spans.of(step)
        if span is None or took_s <= 0:
            return
        if span.kind == "wave" or (span.kind == "canary" and self.session.is_canary(step)):
            self.kept.step(StepSample(span.number, span.kind == "canary", took_s, entries_of(step)))
        elif span.kind == "model":
            self.by_model.append(StepSample(span.number, False, took_s, entries_of(step)))

    async def _canary(self) -> None:
        await self.session.canary()
        self._last_canary_s = self.budget.elapsed_s

    async def _batch_table(self) -> None:
        sizes, done = batch_sizes(self.facts.max_num_seqs), {row["batch_size"] for row in self.kept.samples.batches}
        shape, begin_s = BatchShape.of(self.facts), self.budget.elapsed_s
        for size in (size for size in sizes if size not in done):
            if self.budget.elapsed_s - begin_s > MAX_TABLE * self.budget.seconds:
                self.kept.note(f"the batch table ends before batch size {size}, for want of time; --resume goes on")
                break
            self.tell(f"batch table: batch size {size} of {sizes[-1]}")
            self._take(await self.tail.settled())
            flights = await self.session.together(size, *shape)
            lines = await self.tail.settled()
            self._take(lines)
            self.kept.row(self._row(shape, flights, lines))

    def _row(
        self, shape: BatchShape, flights: Sequence[Flight], lines: Sequence[RecordedStep | RecordedRequest]
    ) -> dict[str, Any]:
        """A row of the table, and what its way to the server and back took, where the streams tell."""
        steps = [line for line in lines if isinstance(line, RecordedStep)]
        lives = [Lived(flight.sent_s, flight.answer.chunk_s) for flight in flights]
        requests = [line for line in lines if isinstance(line, RecordedRequest)]
        way = way_of(flights, steps, requests, shape.prompt_len)
        return row_of(self.facts, shape, lives, steps) | ({"way": way._asdict()} if way else {})

    async def _traffic(self) -> None:
        """Streams at several rates, for the front end; once, however often the measurement is gone on with."""
        for name, run in self.traffic.runs(self.kept.samples.batches, TRAFFIC * self.budget.seconds):
            self.tell(f"traffic: {name}")
            await run()

    async def _waves(self) -> str:
        index = first = 1 + max((step.episode for step in self.kept.samples.fitted()), default=-1)
        while self.budget.left_s or not self._can_be_fitted(index):
            if self.stopping.is_time_to_look(index):
                self.found = held_out(self.kept.samples)
                if self.stopping.look(index, self.found):
                    return f"the held-out error stopped improving after {index} waves"
            if self.budget.elapsed_s - self._last_canary_s > max(CANARY_EVERY_S, CANARY_EVERY * self.budget.seconds):
                await self._canary()
            await self.session.run(draw(self.session.limits, self.seed, index))
            self._take(self.tail.new())
            index += 1
            self._say(index)
        return f"the time was over after {index} waves ({index - first} in this run)"

    def _can_be_fitted(self, num_waves: int) -> bool:
        """Whether a fit has the least it needs: a budget that is too short for that is overrun by a little."""
        return held_out(self.kept.samples) is not None or num_waves >= MIN_WAVES

    def _say(self, num_waves: int) -> None:
        text = f"wave {num_waves}, {len(self.kept.samples.steps)} steps"
        if self.found is not None:
            text += f"; held-out error{self._of_what()} " + ", ".join(
                f"{key} {error:.1%}" for key, error in self.found.errors.items()
            )
            text += f"; totals to {max(self.found.total_errors.values()):.1%}"
        self.tell(text)

    def _of_what(self) -> str:
        """What a sample is, where it is no step: two in flight, and the device has no clock."""
        said = self.tail.facts
        hides = said.get("async_scheduling") and not said.get("has_device_times")
        return " between updates (host and device in one):" if hides else ""


def _check_same(path: Path, before: EngineFacts, now: EngineFacts) -> None:
    there, here = before.model_dump(), now.model_dump()
    for key in there:
        if key not in MAY_DIFFER and there[key] != here[key]:
            rule = f"was measured with {key} {there[key]!r}, and this engine has {here[key]!r}"
            raise UserError(Problem(str(path), rule, mend="resume with the same options, or measure into another file"))
