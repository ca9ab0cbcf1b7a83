"""The busiest window of a long trace, which a fleet must bear: a day is planned for its peak, not for its mean.

Arrivals are counted in steps of a tenth of the window; the window is the one with the most tokens, prompts and outputs
together. It is named by the file's own clock, so that the scenario that is written can be read, and simulated, alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simbatch.sim.clock import PS_PER_S
from simbatch.sim.scenario import Scenario
from simbatch.sim.workload import open_workload
from simbatch.sim.workload.formats import RESULTS
from simbatch.sim.workload.traces.source import TraceSource
from simbatch.sim.workload.turns import turns_in

STEPS = 10  # of a window
LONG = 2  # windows: what is shorter is simulated as it is


@dataclass(frozen=True)
class PeakWindow:
    """`between` is [START, END) by the file's own clock; `rate` is its, and `mean` the whole trace's, in req/s."""

    between: tuple[str | int | float, str | int | float]
    seconds: float
    requests: int
    rate: float
    mean: float

    def text(self) -> str:
        """For the report."""
        start, end = self.between
        return (
            f"planned for the trace's busiest {self.seconds:g} s, {start} to {end} by its own clock: "
            f"{self.rate:.3g} req/s, {self.rate / self.mean:.2g} times the mean of {self.mean:.3g}"
        )


def peak_of(scenario: Scenario, seconds: float) -> PeakWindow | None:
    """The window with the most tokens; None where the trace is short, or says itself which part of it is meant."""
    trace = scenario.workload.trace
    if trace is None or trace.between is not None or trace.limit is not None:
        return None
    as_it_is = scenario.override({"workload.trace.rate_scale": 1.0, "workload.trace.resample_blocks": None})
    source = open_workload(as_it_is.workload, seed=scenario.seed, folder=scenario.folder)
    if turns_in(source) is not None:  # turns wait for answers: nothing says when they are sent
        return None
    chunks = [
        (np.array(c.arrival_ps), np.array(c.num_prompt_tokens) + np.array(c.num_output_tokens)) for c in source.chunks()
    ]
    arrival_ps, tokens = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    window_ps = round(seconds * PS_PER_S)
    if not isinstance(source, TraceSource) or source.format in RESULTS or arrival_ps[-1] < LONG * window_ps:
        return None
    step_ps = window_ps // STEPS
    work = np.bincount(arrival_ps // step_ps, weights=tokens)
    sums = np.convolve(work, np.ones(STEPS), mode="valid")
    begin_ps = int(np.argmax(sums)) * step_ps
    inside = int(((arrival_ps >= begin_ps) & (arrival_ps < begin_ps + STEPS * step_ps)).sum())
    between = (source.moment(begin_ps), source.moment(begin_ps + STEPS * step_ps))
    mean = (len(arrival_ps) - 1) / (arrival_ps[-1] / PS_PER_S)
    return PeakWindow(between, seconds, inside, inside / seconds, float(mean))
