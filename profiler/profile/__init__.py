"""`simbatch profile` without its command line: a real vLLM server is started, driven and measured, then fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from simbatch.profiler.fit.report import plot_fit
from simbatch.profiler.profile.batches import plot_memory, plot_throughput
from simbatch.profiler.profile.measure import Budget, Measurement, check_not_begun, open_samples
from simbatch.profiler.profile.sections import FittedSections, fit_measured
from simbatch.profiler.profile.session import MeasuringSession, MeasuringTraffic, Spans
from simbatch.profiler.records.samples import EngineFacts, Samples
from simbatch.profiler.server import attached
from simbatch.profiler.server.client import Driver
from simbatch.profiler.server.start import EngineOptions, check_model, require_vllm, started
from simbatch.serving.processes import run_loop
from simbatch.sim.cost.by_name import write_profile

Progress = Callable[[Budget], AbstractContextManager[Callable[[str], None]]]


@dataclass(frozen=True)
class Running:
    """A server that somebody else has started, with the recorder, and the file of its steps."""

    url: str
    steps: Path
    model: str | None = None


@dataclass(frozen=True)
class Files:
    """Where everything of one measurement goes: beside the profile, under its name."""

    profile: Path

    def _beside(self, ending: str) -> Path:
        name = self.profile.name.removesuffix(".json")
        return self.profile.with_name(f"{name}{ending}")

    @property
    def samples(self) -> Path:
        """Every step, as it came."""
        return self._beside(".samples.jsonl")

    @property
    def log(self) -> Path:
        """What vLLM said."""
        return self._beside(".vllm.log")

    def steps(self, start: int) -> Path:
        """What the recorder wrote in the `start`-th start of the server."""
        return self._beside(".steps.jsonl" if start == 1 else f".steps-{start}.jsonl")

    @property
    def all_steps(self) -> list[Path]:
        """Those that are there."""
        found: list[Path] = []
        while (path := self.steps(len(found) + 1)).exists():
            found.append(path)
        return found

    def traffic(self, name: str) -> Path:
        """The streams of one run."""
        return self._beside(f".traffic-{name}.json")

    @property
    def pictures(self) -> tuple[Path, Path, Path]:
        """Throughput and latency, KV memory, predicted against measured."""
        return self._beside(".throughput.png"), self._beside(".memory.png"), self._beside(".fit.png")


@dataclass(frozen=True)
class MeasuredFit:
    """What a run found."""

    samples: Samples
    fitted: FittedSections
    why_ended: str

    @property
    def canary_ratio(self) -> float:
        """The slowest over the fastest visit to the canary, 1 where steps do not show."""
        drift = self.fitted.of_samples.drift
        return 1.0 if drift is None else float(drift.slowness.max() / drift.slowness.min())


def check_start(options: EngineOptions, files: Files, *, resume: bool) -> None:
    """UserError for what can be known before vLLM is started."""
    require_vllm()
    check_model(options)
    check_not_begun(files.samples, resume=resume)


@dataclass(frozen=True)
class Measuring:
    """One measurement: of vLLM with these options, or of a server that is there; `budget` starts after vLLM's start."""

    target: EngineOptions | Running
    files: Files
    budget: Callable[[], Budget]
    resume: bool
    seed: int
    command: str
    progress: Progress
    say: Callable[[str], None]

    def run(self) -> MeasuredFit:
        """Measure until it is enough, fit, write; the samples stay whatever happens."""
        files = self.files
        with self._server() as running:
            done, why = run_loop(self._measure(running))
        samples, steps = done.kept.samples, files.all_steps
        steps += [] if running.steps in steps else [running.steps]
        self.say(f"fitting {len(samples.steps):,} steps of waves, and all that the recorder wrote")
        fitted = fit_measured(samples, done.by_model, steps, command=self.command)
        write_profile(fitted.profile, files.profile)
        throughput, memory, fit = files.pictures
        if samples.batches:
            plot_throughput(samples.batches, fitted.profile.name, throughput)
            plot_memory(samples.batches, samples.engine, fitted.profile.name, memory)
        plot_fit(fitted.of_samples, fit)
        return MeasuredFit(samples, fitted, why)

    @contextmanager
    def _server(self) -> Iterator[Running]:
        if isinstance(self.target, Running):
            yield self.target
            return
        before, traffic = self.files.all_steps, self.files.traffic("*")
        if not self.resume:
            for path in (*before, *traffic.parent.glob(traffic.name)):
                path.unlink()
        with started(self.target, self.files.steps(1 + len(before) * self.resume), self.files.log) as server:
            yield Running(server.url, server.steps)

    async def _measure(self, running: Running) -> tuple[Measurement, str]:
        server, tail = await attached(running.url, running.steps, running.model)
        facts = engine_of(tail.facts, self.target, self.command, self.seed)
        kept = open_samples(self.files.samples, facts, resume=self.resume)
        driver, spans = Driver(server.endpoint, server.model), Spans()
        session = MeasuringSession(driver, facts, int(tail.facts["vocab_size"]), self.seed, spans)
        traffic = MeasuringTraffic(server, session, spans, self.files.traffic)
        try:
            limited = self.budget()
            with self.progress(limited) as tell:
                measurement = Measurement(session, spans, tail, kept, traffic, self.seed, limited, tell)
                return measurement, await measurement.run()
        finally:
            kept.writer.close()
            driver.close()
            tail.close()


def engine_of(said: dict[str, object], target: EngineOptions | Running, command: str, seed: int) -> EngineFacts:
    """The engine as its recorder says it."""
    own = {key: value for key, value in said.items() if key in EngineFacts.model_fields and key != "format"}
    warnings = target.warnings if isinstance(target, EngineOptions) else ()
    return EngineFacts.model_validate({**own, "command": command, "seed": seed, "warnings": warnings})
