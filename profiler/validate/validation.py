"""A real run beside its simulation: figures, files, and whether the simulation keeps to its bounds.

`step_figures` says where an error comes from: the steps that the real engine did, beside what the profile says that
each of them takes. When the profile is right about the steps, an error left is the simulated scheduler's, the host's or
the front end's; when it is not, the machine has drifted since it was measured, or the profile does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.records.lines import durations_s
from simbatch.profiler.records.real_run import AnyRun, RealRun, features
from simbatch.profiler.validate.figures import CLIENT, LATENCIES, Bounds, ComparedFigure, figures_of
from simbatch.sim.clock import PS_PER_MS, PS_PER_S
from simbatch.sim.cost.model import CostModel, step_ps


def step_figures(runs: Sequence[RealRun], cost: CostModel) -> list[dict[str, Any]]:
    """Per regime: how many steps, what they took on average and what the profile says of them, ms."""
    found: dict[str, list[tuple[float, int]]] = {"decode-only": [], "with prefills": []}
    for run in runs:
        for step, took_s in durations_s(run.lines):
            pair = took_s * PS_PER_S, step_ps(cost, features(step, cost.windows))
            found["with prefills" if step.prefills else "decode-only"].append(pair)
    return [_row(regime, np.array(pairs, dtype=np.float64)) for regime, pairs in found.items() if pairs]


def _row(regime: str, pairs: NDArray[np.float64]) -> dict[str, Any]:
    real_ms, profile_ms = pairs.mean(axis=0) / PS_PER_MS
    figures = {"real_ms": float(real_ms), "profile_ms": float(profile_ms), "error": float(profile_ms / real_ms - 1)}
    return {"regime": regime, "num_steps": len(pairs), **figures}


REAL = "real: "  # what notes on a real run begin with
NOISY = 0.15  # a spread of a mean that makes its error worth little


@dataclass(frozen=True)
class Validation:
    """The real runs and the simulation of the same requests; `source` says what was run, as plain data."""

    real: Sequence[AnyRun]
    simulated: RealRun
    cost: CostModel
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    bounds: Bounds | None = None
    admission_ms: dict[str, float] | None = None  # of a request: the real mean, and what the profile says

    @cached_property
    def figures(self) -> list[ComparedFigure]:
        """Everything that both sides know."""
        return figures_of(self.real, self.simulated, self.bounds)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The real steps beside what the profile says of them; empty where no steps were recorded."""
        return step_figures(self.recorded, self.cost)

    @property
    def recorded(self) -> list[RealRun]:
        """The real runs whose requests are known: all, or none where their totals alone are."""
        return [run for run in self.real if isinstance(run, RealRun)]

    @property
    def outside(self) -> list[ComparedFigure]:
        """What does not keep to its bound."""
        return [figure for figure in self.figures if figure.is_within is False]

    @property
    def unchecked(self) -> list[str]:
        """Bounds that hold for no figure, since the real run does not tell it: they are not kept."""
        known = [figure.metric.key for figure in self.figures if figure.clock == CLIENT]
        return [] if self.bounds is None else self.bounds.unchecked(known)

    @property
    def is_within_bounds(self) -> bool:
        """Whether every bound is kept."""
        return not self.outside and not self.unchecked

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.simulated.facts.scenario_name

    @cached_property
    def all_notes(self) -> list[str]:
        """What a reader of the figures must know."""
        warnings = self.simulated.result.summary["simbatch"]["warnings"]
        return [*self.notes, *self._untold(), *self._noise(), *(f"simulated: {text}" for text in warnings)]

    def _untold(self) -> Iterator[str]:
        """What was left out, once for each reason."""
        named: dict[str, list[str]] = {}
        for name, reason in (pair for run in self.real for pair in run.untold.items()):
            words = name.upper() if name in (*LATENCIES, "itl") else name.replace("_", " ")
            if words not in named.setdefault(reason, []):
                named[reason].append(words)
        yield from (f"{', '.join(names)} left out: {reason}" for reason, names in named.items())

    def _noise(self) -> Iterator[str]:
        """What the runs say of each other."""
        if len(self.real) == 1:
            yield "one real run says nothing of the noise from run to run"
        spreads = {figure.metric.key: figure.spread or 0.0 for figure in self.figures if figure.clock == CLIENT}
        widest = max((key for key in spreads if key.startswith("mean_")), key=spreads.__getitem__, default=None)
        if widest is not None and spreads[widest] > NOISY:
            yield (
                f"the real runs are up to {spreads[widest]:.0%} off their own median ({widest}), and errors below that "
                "say little: measure on a machine that does nothing else, at a lower load, or with more runs"
            )

    def as_dict(self) -> dict[str, Any]:
        """The content of validation.json."""
        ours = self.simulated.result.summary["simbatch"]
        return {
            "scenario": self.name,
            "real": {**self.source, "runs": len(self.real)},
            "simulated": {key: ours[key] for key in ("profile", "engine", "policy", "seed")},
            "num_requests": len(self.simulated.record.requests),
            "figures": [figure.as_dict() for figure in self.figures],
            "steps": self.steps,
            "admission_ms": self.admission_ms,
            "bounds": None if self.bounds is None else dict(self.bounds.shares),
            "is_within_bounds": None if self.bounds is None else self.is_within_bounds,
            "notes": self.all_notes,
        }
