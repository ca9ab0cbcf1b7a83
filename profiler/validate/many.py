"""Many recorded runs of one server, each beside its simulation: a table, the median error, the worst run and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from simbatch.profiler.records.recorded import GatheredRuns
from simbatch.profiler.validate import CLIENT, REAL, Bounds, ComparedFigure, Validation
from simbatch.sim.errors import UserError
from simbatch.sim.scenario import Scenario

SHOWN = ("mean_ttft_ms", "mean_tpot_ms", "mean_e2el_ms", "request_throughput")
RANKED = ("mean_e2el_ms", "mean_tpot_ms", "mean_ttft_ms", "request_throughput")  # where a part is not told
MIN_RUNS = 3  # to say that a run's traffic is the extreme one
LARGE = 0.10  # share of a request's time that is worth a reason


@dataclass(frozen=True)
class Compared:
    """One run by its name."""

    name: str
    validation: Validation

    def error(self, key: str) -> float | None:
        """Of one figure as the client counts; None where the run does not tell it."""
        figure = self.figure(key)
        return None if figure is None else figure.error

    def figure(self, key: str) -> ComparedFigure | None:
        """One figure as the client counts."""
        return next((f for f in self.validation.figures if f.clock == CLIENT and f.metric.key == key), None)

    @cached_property
    def traffic(self) -> dict[str, float]:
        """What may set a run apart: mean lengths and requests in flight, as simulated."""
        requests = self.validation.simulated.record.requests
        summary = self.validation.simulated.result.summary
        return {
            "prompts": float(requests.num_prompt_tokens.mean()),
            "outputs": float(requests.num_output_tokens.mean()),
            "requests in flight": float(summary["simbatch"]["mean_concurrent_requests"]),
        }

    @cached_property
    def parts_ms(self) -> tuple[float, float] | None:
        """How much longer the simulated mean request takes to its first token, and from there; None if not told."""
        ttft, e2el = self.figure("mean_ttft_ms"), self.figure("mean_e2el_ms")
        if ttft is None or e2el is None or ttft.simulated is None or e2el.simulated is None:
            return None
        waits = ttft.simulated - ttft.median
        return waits, e2el.simulated - e2el.median - waits

    @cached_property
    def off(self) -> float:
        """The largest part of a request's time that is off, as a share of it; else the first error that is told."""
        e2el, parts = self.figure("mean_e2el_ms"), self.parts_ms
        if e2el is None or parts is None:
            return abs(next((error for key in RANKED if (error := self.error(key)) is not None), 0.0))
        return max(abs(part) for part in (*parts, sum(parts))) / e2el.median

    @property
    def load(self) -> str:
        """How it was sent, in words."""
        return str(self.validation.source["load"])


@dataclass(frozen=True)
class Many:
    """All runs that could be compared, and those that could not with the reason."""

    runs: Sequence[Compared]
    not_compared: Sequence[tuple[str, str]] = ()

    def errors(self, key: str) -> list[float]:
        """Of one figure, of all runs that tell it."""
        return [error for run in self.runs if (error := run.error(key)) is not None]

    def median_error(self, key: str) -> float | None:
        """The median of the errors' sizes."""
        sizes = [abs(error) for error in self.errors(key)]
        return median(sizes) if sizes else None

    def bias(self, key: str) -> float | None:
        """The median error with its sign."""
        errors = self.errors(key)
        return median(errors) if errors else None

    @cached_property
    def worst(self) -> Compared:
        """The run of whose time the largest part is off."""
        return max(self.runs, key=lambda run: run.off)

    @property
    def outside(self) -> dict[str, list[str]]:
        """The figures that do not keep to their bounds, or are not told, by the run's name."""
        found = {
            run.name: [*(figure.metric.key for figure in run.validation.outside), *run.validation.unchecked]
            for run in self.runs
        }
        return {name: keys for name, keys in found.items() if keys}

    @property
    def is_within_bounds(self) -> bool:
        """Whether every run keeps every bound."""
        return not self.outside

    @cached_property
    def models(self) -> list[str]:
        """What the results call the model; more than one is hardly one server."""
        return sorted({str(run.validation.source["model"]) for run in self.runs if run.validation.source.get("model")})

    def why(self) -> list[str]:
        """What is known of the worst run's error: its parts, what the simulation warns of, what sets the run apart."""
        real = (note for note in self.worst.validation.notes if note.startswith(REAL))
        return [*self._parts(), *real, *self._warnings(), *self._apart()]

    def _parts(self) -> Iterator[str]:
        if self.worst.off < LARGE:
            yield f"no run is far off: at most {self.worst.off:.1%} of its mean E2EL"
        elif (parts := self.worst.parts_ms) is not None:
            ttft, decoding = parts
            if ttft * decoding < 0 and abs(ttft + decoding) < 0.5 * max(abs(ttft), abs(decoding)):
                yield f"its E2EL is right by chance: {ttft:+,.0f} ms to the first token, {decoding:+,.0f} ms after it"
            else:
                what = "waiting for the first token" if abs(ttft) > abs(decoding) else "the time between tokens"
                yield f"most of its {ttft + decoding:+,.0f} ms of mean E2EL are {what} ({max(parts, key=abs):+,.0f} ms)"

    def _warnings(self) -> Iterator[str]:
        summary = self.worst.validation.simulated.result.summary["simbatch"]
        others = [run.validation.simulated.result.summary["simbatch"]["warnings"] for run in self.runs]
        own = [text for text in summary["warnings"] if not all(text in warnings for warnings in others)]
        yield from (f"simulated: {text}" for text in own)
        if summary["num_preemptions"]:
            yield f"simulated: {summary['num_preemptions']:,} preemptions: the KV cache was full"

    def _apart(self) -> Iterator[str]:
        if len(self.runs) < MIN_RUNS:
            return
        for name, value in self.worst.traffic.items():
            others = [run.traffic[name] for run in self.runs if run is not self.worst]
            if min(others) <= value <= max(others):
                continue
            words, unit = (("fewest", "most"), "") if "flight" in name else (("shortest", "longest"), " tokens")
            known = f"{value:,.0f}{unit}, the others {min(others):,.0f} to {max(others):,.0f}"
            yield f"it has the {words[value > max(others)]} {name} of all: {known}"

    def as_dict(self) -> dict[str, Any]:
        """The content of validation.json."""
        first = self.runs[0].validation.as_dict()
        return {
            "scenario": first["scenario"],
            "simulated": first["simulated"],
            "runs": [{"name": run.name, **run.validation.as_dict()} for run in self.runs],
            "not_compared": [{"name": name, "reason": reason} for name, reason in self.not_compared],
            "median_abs_error": {key: self.median_error(key) for key in SHOWN},
            "median_error": {key: self.bias(key) for key in SHOWN},
            "worst": {
                "name": self.worst.name,
                "off": self.worst.off,
                "errors": {key: self.worst.error(key) for key in SHOWN},
                "why": self.why(),
            },
            "bounds": first["bounds"],
            "is_within_bounds": None if first["bounds"] is None else self.is_within_bounds,
        }


def compare_recorded(
    scenario: Scenario,
    gathered: GatheredRuns,
    source: str | None,
    bounds: Bounds | None,
    tell: Callable[[int], None] | None = None,
) -> Validation | Many:
    """Each run beside its simulation, one alone as it is; `tell` is told how many are done.

    A run that cannot be compared is named with the reason; UserError where none can.
    """
    from simbatch.profiler.validate.on_recorded import validate_recorded

    if len(gathered.runs) == 1 and not gathered.passed_over:
        alone = gathered.runs[0]
        return validate_recorded(scenario, alone.run, source, bounds, alone.file)
    compared, refused = list[Compared](), list[UserError]()
    not_compared = list(gathered.passed_over)
    for number, (name, file, run) in enumerate(gathered.runs, 1):
        try:
            compared.append(Compared(name, validate_recorded(scenario, run, source, bounds, file)))
        except UserError as error:
            refused.append(error)
            not_compared.append((name, str(error.problems[0])))
        if tell is not None:
            tell(number)
    if not compared:
        raise UserError(*(error.problems[0] for error in refused[:5]))
    return Many(compared, not_compared)
