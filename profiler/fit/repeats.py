"""What repeats of one step tell: how far the machine drifted, and the error below which no fit can come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from simbatch.profiler.records.samples import StepSample
from simbatch.profiler.records.steps import Floats

MAX_DRIFT = 0.05  # above that, times may be rescaled
SIMILAR = 1.02  # contexts that differ by less are nearly the same step
REGIME_OF = {(False, True): "decode", (True, False): "prefill", (True, True): "mixed"}


@dataclass(frozen=True)
class Drift:
    """How the canaries' times changed: `at` their positions among the steps, `speed` their time over the first's."""

    at: Floats
    slowness: Floats

    @property
    def last(self) -> float:
        """The last canary's time over the first's."""
        return float(self.slowness[-1])

    @property
    def is_large(self) -> bool:
        """Whether any canary is more than `MAX_DRIFT` away from the first."""
        return bool(np.abs(self.slowness - 1).max() > MAX_DRIFT)

    def factors(self, positions: Floats) -> Floats:
        """What to divide the times at these positions by: the drift there over its mean, so that the total stays."""
        slowness = np.interp(positions, self.at, self.slowness)
        return np.asarray(slowness / slowness.mean(), dtype=np.float64)


def drift_of(steps: Sequence[StepSample]) -> Drift | None:
    """From the medians of each visit to the canaries; None with less than two visits."""
    visits = _visits(steps)
    first: dict[Hashable, float] = {}
    at, slowness = [], []
    for position, times in visits:
        medians = {kind: float(np.median(values)) for kind, values in times.items()}
        for kind, value in medians.items():
            first.setdefault(kind, value)
        at.append(position)
        slowness.append(float(np.mean([value / first[kind] for kind, value in medians.items()])))
    return Drift(np.array(at), np.array(slowness)) if len(at) > 1 else None


def noise_floor(steps: Iterable[StepSample]) -> dict[str, float]:
    """Mean absolute deviation of repeats from their mean, as a share, by regime; regimes without repeats are left out.

    Repeats are steps of one episode, or one visit to a canary, with the same counts and nearly the same context. Groups
    of g deviate from their own mean by sqrt((g - 1) / g) of what they would from the true one, which is made good.
    """
    groups: defaultdict[tuple[str, Hashable], list[float]] = defaultdict(list)
    visit, before = 0, None
    for step in steps:
        visit += _begins_visit(before, step)
        before = step
        regime, *kind = _kind(step)
        group = (step.is_canary, visit if step.is_canary else step.episode, *kind)
        groups[(regime, group)].append(step.duration_s)
    deviations: defaultdict[str, list[float]] = defaultdict(list)
    for (regime, _), times in groups.items():
        if len(times) > 1:
            scale = np.sqrt(len(times) / (len(times) - 1)) / np.mean(times)
            deviations[regime] += list(np.abs(np.array(times) - np.mean(times)) * scale)
    return {regime: float(np.mean(deviations[regime])) for regime in REGIME_OF.values() if regime in deviations}


def _visits(steps: Sequence[StepSample]) -> list[tuple[float, dict[Hashable, list[float]]]]:
    """Runs of canaries: their mean position, and their times by kind."""
    runs: list[list[int]] = []
    for position, step in enumerate(steps):
        if _begins_visit(steps[position - 1] if position else None, step):
            runs.append([])
        if step.is_canary:
            runs[-1].append(position)
    visits = []
    for run in runs:
        times: defaultdict[Hashable, list[float]] = defaultdict(list)
        for position in run:
            regime, counts, _context = _kind(steps[position])  # contexts grow alike in every visit
            times[(regime, counts)].append(steps[position].duration_s)
        visits.append((float(np.mean(run)), dict(times)))
    return visits


def _begins_visit(before: StepSample | None, step: StepSample) -> bool:
    """Whether a canary is its visit's first: decodes, then prefills. Two starts of the engine leave two in a row."""
    if before is None or not before.is_canary:
        return step.is_canary
    return step.is_canary and step.entries[0].is_decode and not before.entries[0].is_decode


def _kind(step: StepSample) -> tuple[str, Hashable, int]:
    """Regime, counts, and the context on a scale on which a difference of 1 is a factor of `SIMILAR`."""
    prefills = tuple((entry.num_computed_tokens, entry.num_tokens) for entry in step.entries if not entry.is_decode)
    contexts = [entry.num_computed_tokens for entry in step.entries if entry.is_decode]
    context = round(np.log(max(1, sum(contexts))) / np.log(SIMILAR))
    return REGIME_OF[bool(prefills), bool(contexts)], (prefills, len(contexts)), context
