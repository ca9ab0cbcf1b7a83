"""`simbatch profile` without its command line: start vLLM, measure, fit, write."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from simbatch.profiler.fitting.from_samples import FittedProfile, fit_samples
from simbatch.profiler.fitting.samples import Samples
from simbatch.profiler.measuring.measure import Measurement, check_not_begun, open_samples
from simbatch.profiler.measuring.pictures import plot_memory, plot_throughput
from simbatch.profiler.measuring.stopping import Budget
from simbatch.profiler.measuring.vllm_engine import EngineOptions, VllmEngine, check_model, require_vllm
from simbatch.profiler.write import write_profile

Progress = Callable[[Budget], AbstractContextManager[Callable[[str], None]]]


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

    @property
    def pictures(self) -> tuple[Path, Path, Path]:
        """Throughput and latency, KV memory, predicted against measured."""
        return self._beside(".throughput.png"), self._beside(".memory.png"), self._beside(".fit.png")


@dataclass(frozen=True)
class Measured:
    """What a run found."""

    samples: Samples
    fitted: FittedProfile
    why_ended: str

    @property
    def canary_ratio(self) -> float:
        """The slowest over the fastest visit to the canary."""
        drift = self.fitted.drift
        return 1.0 if drift is None else float(drift.slowness.max() / drift.slowness.min())


def check_start(options: EngineOptions, files: Files, *, resume: bool) -> None:
    """UserError for what can be known before vLLM is started."""
    require_vllm()
    check_model(options)
    check_not_begun(files.samples, resume=resume)


def measure_profile(
    options: EngineOptions,
    files: Files,
    *,
    budget: Callable[[], Budget],
    resume: bool,
    command: str,
    progress: Progress,
) -> Measured:
    """Measure until it is enough, fit, write; the samples stay whatever happens. `budget` starts after vLLM's start."""
    engine = VllmEngine(options, command=command)
    kept = None
    try:
        kept = open_samples(files.samples, engine.facts, resume=resume)
        limited = budget()
        with progress(limited) as tell:
            why = Measurement(engine, kept, options.seed, limited, tell).run()
    finally:
        if kept is not None:
            kept.writer.close()
        engine.close()
    fitted = fit_samples(kept.samples, command=command)
    write_profile(fitted.profile, files.profile)
    throughput, memory, fit = files.pictures
    if kept.samples.batches:
        plot_throughput(kept.samples.batches, fitted.profile.name, throughput)
        plot_memory(kept.samples.batches, engine.facts, fitted.profile.name, memory)
    fitted.plot(fit)
    return Measured(kept.samples, fitted, why)
