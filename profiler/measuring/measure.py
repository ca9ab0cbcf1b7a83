"""A whole measurement: warm-up, canary, batch table, episodes until it is enough, canary; all kept as it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simbatch.profiler.fitting.from_samples import HeldOut, held_out
from simbatch.profiler.fitting.samples import (
    Admission,
    EngineFacts,
    Samples,
    SampleWriter,
    StepSample,
    read_samples,
)
from simbatch.profiler.measuring.batches import Shape, batch_sizes, row_of, run_batch
from simbatch.profiler.measuring.design import draw
from simbatch.profiler.measuring.session import Session
from simbatch.profiler.measuring.stopping import MIN_EPISODES, Budget, Stopping
from simbatch.profiler.measuring.vllm_engine import VllmEngine
from simbatch.sim.errors import Problem, UserError

CANARY_EVERY = 0.1  # of the time budget
CANARY_EVERY_S = 10.0  # at least
MAX_TABLE = 0.4  # of the time budget
# what may differ between two starts of the same engine
MAY_DIFFER = {"num_gpu_blocks", "kv_cache_bytes", "activation_bytes", "graphs_bytes", "weights_bytes", "total_bytes"}
MAY_DIFFER |= {"command", "warnings", "seed", "format"}

Tell = Callable[[str], None]  # what is being done


@dataclass
class Kept:
    """Samples in memory and in their file, which grow together."""

    samples: Samples
    writer: SampleWriter

    def steps(self, steps: list[StepSample]) -> None:
        """Keep steps."""
        for step in steps:
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


def open_samples(path: Path, facts: EngineFacts, *, resume: bool) -> Kept:
    """Begin a samples file, or go on with one of the same engine; UserError when it is another's."""
    if resume and path.exists() and path.stat().st_size:
        samples = read_samples(path)  # without a last line that was cut off
        _check_same(path, samples.engine, facts)
        kept = Kept(samples, SampleWriter(path, facts, resume=True))
        kept.note(f"resumed after {len(samples.steps)} steps")
        return kept
    return Kept(Samples(facts), SampleWriter(path, facts))


def check_not_begun(path: Path, *, resume: bool) -> None:
    """UserError before a measurement that was begun is lost."""
    if not resume and path.exists() and path.stat().st_size:
        mend = "go on with --resume, or remove or rename the file"
        raise UserError(Problem(str(path), "holds an earlier measurement", mend=mend))


@dataclass
class Measurement:
    """Everything that one run of `simbatch profile` does with the engine."""

    engine: VllmEngine
    kept: Kept
    seed: int
    budget: Budget
    tell: Tell
    stopping: Stopping = field(default_factory=Stopping)
    found: HeldOut | None = None
    _last_canary_s: float = 0.0

    def run(self) -> str:
        """Measure; returns why it ended."""
        self.session = Session(self.engine, self.seed, self.kept.admission)
        self.session.warm_up(lambda done, total: self.tell(f"warm-up: {done} of {total} sizes"))
        self._canary()
        self._batch_table()
        why = self._episodes()
        self._canary()
        self.kept.note(why)
        return why

    def _canary(self) -> None:
        self.kept.steps(self.session.canary())
        self._last_canary_s = self.budget.elapsed_s

    def _batch_table(self) -> None:
        facts = self.engine.facts
        sizes, done = batch_sizes(facts.max_num_seqs), {row["batch_size"] for row in self.kept.samples.batches}
        shape, begin_s = Shape.of(facts), self.budget.elapsed_s
        for size in (size for size in sizes if size not in done):
            if self.budget.elapsed_s - begin_s > MAX_TABLE * self.budget.seconds:
                self.kept.note(f"the batch table ends before batch size {size}, for want of time; --resume goes on")
                break
            self.tell(f"batch table: batch size {size} of {sizes[-1]}")
            self.kept.row(self._row(size, shape))

    def _row(self, size: int, shape: Shape) -> dict[str, Any]:
        """Measured again when a size of step in it was met for the first time."""
        for attempt in range(2):
            prompts = [self.session.fresh(shape.prompt_len) for _ in range(size)]
            with self.session.recorded() as steps:
                lives = run_batch(self.engine, prompts, shape.output_len, f"batch{size}-{attempt}")
            if not self.session.met_new:
                break
        return row_of(self.engine.facts, shape, lives, steps)

    def _episodes(self) -> str:
        index = first = 1 + max((step.episode for step in self.kept.samples.fitted()), default=-1)
        while self.budget.left_s or not self._can_be_fitted(index):
            if self.stopping.is_time_to_look(index):
                self.found = held_out(self.kept.samples)
                if self.stopping.look(index, self.found):
                    return f"the held-out error stopped improving after {index} episodes"
            if self.budget.elapsed_s - self._last_canary_s > max(CANARY_EVERY_S, CANARY_EVERY * self.budget.seconds):
                self._canary()
            self.kept.steps(self.session.run(draw(self.session.limits, self.seed, index)))
            index += 1
            self._say(index)
        return f"the time was over after {index} episodes ({index - first} in this run)"

    def _can_be_fitted(self, num_episodes: int) -> bool:
        """Whether a fit has the least it needs: a budget that is too short for that is overrun by a little."""
        return held_out(self.kept.samples) is not None or num_episodes >= MIN_EPISODES

    def _say(self, num_episodes: int) -> None:
        text = f"episode {num_episodes}, {len(self.kept.samples.steps)} steps"
        if self.found is not None:
            text += "; held-out error " + ", ".join(f"{key} {error:.1%}" for key, error in self.found.errors.items())
            text += f"; totals to {max(self.found.total_errors.values()):.1%}"
        self.tell(text)


def _check_same(path: Path, before: EngineFacts, now: EngineFacts) -> None:
    there, here = before.model_dump(), now.model_dump()
    for key in there:
        if key not in MAY_DIFFER and there[key] != here[key]:
            rule = f"was measured with {key} {there[key]!r}, and this engine has {here[key]!r}"
            raise UserError(Problem(str(path), rule, mend="resume with the same options, or measure into another file"))
