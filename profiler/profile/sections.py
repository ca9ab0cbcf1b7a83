"""A profile from what was measured: device, host, front end, and what stands beside its figures.

Where two batches are in flight, or the device's own times were recorded, the recorder's fit tells host and device
apart. Elsewhere (vLLM's CPU build) a step is all that happens from one update to the next, but for requests that are
taken in.

The way to the server and back is told by the clock of client and server, which is one (`way_of`): the batch table sends
n requests at once: their tokens are made in steps whose updates are recorded, in the order in which the chunks arrive.
So each chunk has its update: the first of a step's comes after what the way takes, and the others one after the other,
as fast as the server's process sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.fit import FittedProfile, fit_samples, request_overhead_s
from simbatch.profiler.fit.facts import own_name
from simbatch.profiler.fit.recorder import RecorderProfile, Sections, sections_of
from simbatch.profiler.fit.recorder.moments import read_steps
from simbatch.profiler.fit.report import report_text
from simbatch.profiler.fit.two_regime import non_negative
from simbatch.profiler.records import predict_s
from simbatch.profiler.records.lines import RecordedRequest, RecordedStep
from simbatch.profiler.records.samples import Samples, StepSample, steps_of
from simbatch.profiler.server.client import Flight
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.profile import MeasuredProfile

FEW_CHUNKS = 4  # chunks of a step, to tell their distance


class Way(NamedTuple):
    """Of one batch, s: to the server's stamp, from an update to its first chunk, between two of its chunks."""

    in_s: float
    out_s: float
    chunk_s: float | None


def way_of(
    flights: Sequence[Flight], steps: Sequence[RecordedStep], requests: Sequence[RecordedRequest], prompt_len: int
) -> Way | None:
    """Of a batch of equal prompts that nothing was sent beside; None where chunks were merged."""
    arrived_s = np.sort([moment_s for flight in flights for moment_s in flight.answer.chunk_s])
    made = [step.num_decodes + sum(sum(pair) == prompt_len for pair in step.prefills) for step in steps]
    ends = np.cumsum(made)
    if not len(arrived_s) or ends[-1] != len(arrived_s):
        return None
    firsts, gaps = [], []
    for step, end, number in zip(steps, ends, made, strict=True):
        of_step = arrived_s[end - number : end]
        if number:
            firsts.append(of_step[0] - step.updated_s)
        if number >= FEW_CHUNKS:
            gaps.append((of_step[-1] - of_step[0]) / (number - 1))
    stamped = {flight.name: flight.sent_s for flight in flights}
    ins = [
        request.arrival_s - stamped[name]
        for request in requests
        if (name := next((name for name in stamped if f"-{name}-" in f"-{request.request_id}-"), None))
    ]
    if not ins:
        return None
    return Way(float(np.median(ins)), float(np.median(firsts)), float(np.median(gaps)) if gaps else None)


def joined_ways(ways: Sequence[Way]) -> dict[str, float]:
    """As keys of a profile's front end: a lone request's way, the largest batches' distance of chunks."""
    if not ways:
        return {}
    chunks = [way.chunk_s for way in ways if way.chunk_s is not None]
    return {
        "network_s": max(0.0, ways[0].in_s) + max(0.0, ways[0].out_s),
        "per_chunk_s": float(np.median(chunks[-3:])) if chunks else 0.0,
    }


FEW_STEPS = 30  # steps


def sampling_note(by_model: Sequence[StepSample], cost: CostModel) -> str:
    """What drawing tokens as the model's own config says adds to a step, beside greedy ones, of decodes alone."""
    steps, took_s, _ = steps_of(by_model)
    rows = steps.prefill_tokens == 0
    if rows.sum() < FEW_STEPS:
        return "sampling: greedy (temperature 0); too few steps with the model's own config to tell what that adds"
    n = steps.num_decodes[rows]
    more_s = took_s[rows] - predict_s(cost, steps.select(rows))
    usual = more_s <= np.quantile(more_s, 0.95)  # without standstills
    base_s, each_s = non_negative(np.column_stack([np.ones(len(n)), n])[usual], more_s[usual])
    return (
        "sampling: greedy (temperature 0); as the model's generation_config.json says a step of decodes takes "
        f"{1e3 * base_s:.2f} ms and {1e6 * each_s:.1f} us a request longer ({rows.sum():,} steps)"
    )


def first_visits_note(samples: Sequence[StepSample], cost: CostModel) -> str:
    """How much longer steps take whose number of tokens is met for the first time; a server meets them too."""
    steps, took_s, _ = steps_of(samples)
    _, first = np.unique(steps.num_tokens, return_index=True)
    more_s = took_s - predict_s(cost, steps)
    again = np.delete(more_s, first)
    if min(len(first), len(again)) < FEW_STEPS:
        return ""
    return (
        f"first visits: {len(first):,} steps had a number of tokens that no step before had; they took "
        f"{1e3 * (more_s[first].mean() - again.mean()):+.2f} ms on average against the others, and are fitted with them"
    )


DIGITS = 4
NOT_TOLD = (
    "sampling by the model's generation_config.json, first visits, drift: not told, for without the device's own clock "
    "a single step hides behind launches"
)


@dataclass(frozen=True)
class FittedSections:
    """The profile, what is said of it, and the fit of the samples alone, with their drift and picture."""

    profile: MeasuredProfile
    text: str
    of_samples: FittedProfile


def fit_measured(
    samples: Samples, by_model: Sequence[StepSample], steps: Sequence[Path], *, command: str
) -> FittedSections:
    """Fit everything; `steps` are the recorder's files."""
    sections = _recorded(steps)
    tells_apart = sections.fit.async_scheduling or sections.fit.has_device_times
    steps_show = sections.fit.has_device_times or not sections.fit.async_scheduling
    front_end = {**sections.front_end, **_way(sections.front_end, samples)}
    own: dict[str, Any] = {"front_end": front_end}
    if tells_apart:
        own |= sections.content() | {"front_end": front_end, "error": None, "range": None}
    else:
        overhead_s = round(request_overhead_s(samples.admissions), 9)
        own["host"] = {"source": sections.host["source"], "admit": {"base_s": overhead_s}}
    fitted = fit_samples(
        samples,
        name=f"{own_name(samples.engine)}-measured",
        command=command,
        sections=own,
        is_whole=not tells_apart,
        steps_show=steps_show,
    )
    cost = fitted.profile.cost_model()
    notes = [
        "front_end: the way in by the server's stamps, the way out and the chunks by the streams of the batch table",
        f"api_server_count {samples.engine.api_server_count}, as the server was started",
    ]
    notes += [sampling_note(by_model, cost), first_visits_note(samples.fitted(), cost)] if steps_show else [NOT_TOLD]
    fitted = fitted.with_notes([note for note in notes if note])
    return FittedSections(fitted.profile, _text(fitted, sections, front_end, is_recorders=tells_apart), fitted)


def _recorded(steps: Sequence[Path]) -> Sections:
    """The recorder's fit; what it cannot tell of the way out, the streams do."""
    found = sections_of([read_steps(path) for path in steps], [path.name for path in steps])
    taken = {key: text for key, text in found.fit.taken.items() if not key.startswith("front end, chunks")}
    return replace(found, fit=found.fit.model_copy(update={"taken": taken}))


def _way(front_end: dict[str, Any], samples: Samples) -> dict[str, float]:
    """What the table's streams add to the way from the server's stamp to its engine."""
    told = joined_ways([Way(**row["way"]) for row in samples.batches if "way" in row])
    if not told:
        return {}
    told["network_s"] += front_end.get("network_s", 0.0)
    return {key: float(f"{value:.{DIGITS}g}") for key, value in told.items()}


def _text(fitted: FittedProfile, sections: Sections, front_end: dict[str, Any], *, is_recorders: bool) -> str:
    """The recorder's report where its fit is the profile's, else that of the samples; and the notes."""
    if not is_recorders:
        return report_text(fitted)
    report = RecorderProfile(fitted.profile, replace(sections, front_end=front_end)).text()
    return "\n".join([report, "", *(f"- {note}" for note in fitted.profile.notes)])
