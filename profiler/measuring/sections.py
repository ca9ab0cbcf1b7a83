"""A profile from what was measured: device, host, front end, and what stands beside its figures.

Where two batches are in flight, or the device's own times were recorded, the recorder's fit tells host and device
apart. Elsewhere (vLLM's CPU build) a step is all that happens from one update to the next, but for requests that are
taken in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simbatch.profiler.fitting.facts import own_name
from simbatch.profiler.fitting.from_samples import FittedProfile, fit_samples, request_overhead_s
from simbatch.profiler.fitting.recorded_steps import read_steps
from simbatch.profiler.fitting.samples import Samples, StepSample
from simbatch.profiler.measuring.notes import first_visits_note, sampling_note
from simbatch.profiler.measuring.way_out import Way, joined
from simbatch.profiler.recorded.from_recorder import RecorderProfile, Sections, sections_of
from simbatch.sim.cost.profile import MeasuredProfile

DIGITS = 4


@dataclass(frozen=True)
class Fitted:
    """The profile, what is said of it, and the fit of its steps alone, with its drift and its picture."""

    profile: MeasuredProfile
    text: str
    of_samples: FittedProfile


def fit_measured(samples: Samples, by_model: Sequence[StepSample], steps: Sequence[Path], *, command: str) -> Fitted:
    """Fit everything; `steps` are the recorder's files."""
    sections = _recorded(steps)
    tells_apart = sections.fit.async_scheduling or sections.fit.has_device_times
    front_end = {**sections.front_end, **_way(sections.front_end, samples)}
    own: dict[str, Any] = {"front_end": front_end}
    if tells_apart:
        own |= sections.content() | {"front_end": front_end, "error": None, "range": None}
    else:
        overhead_s = round(request_overhead_s(samples.admissions), 9)
        own["host"] = {"source": sections.host["source"], "admit": {"base_s": overhead_s}}
    fitted = fit_samples(samples, name=f"{own_name(samples.engine)}-measured", command=command, sections=own)
    cost = fitted.profile.cost_model()
    notes = [
        "front_end: the way in by the server's stamps, the way out and the chunks by the streams of the batch table",
        f"api_server_count {samples.engine.api_server_count}, as the server was started",
        sampling_note(by_model, cost),
        first_visits_note(samples.fitted(), cost),
    ]
    fitted = fitted.with_notes([note for note in notes if note])
    return Fitted(fitted.profile, _text(fitted, sections, front_end, is_recorders=tells_apart), fitted)


def _recorded(steps: Sequence[Path]) -> Sections:
    """The recorder's fit; what it cannot tell of the way out, the streams do."""
    found = sections_of([read_steps(path) for path in steps], [path.name for path in steps])
    taken = {key: text for key, text in found.fit.taken.items() if not key.startswith("front end, chunks")}
    return replace(found, fit=found.fit.model_copy(update={"taken": taken}))


def _way(front_end: dict[str, Any], samples: Samples) -> dict[str, float]:
    """What the table's streams add to the way from the server's stamp to its engine."""
    told = joined([Way(**row["way"]) for row in samples.batches if "way" in row])
    if not told:
        return {}
    told["network_s"] += front_end.get("network_s", 0.0)
    return {key: float(f"{value:.{DIGITS}g}") for key, value in told.items()}


def _text(fitted: FittedProfile, sections: Sections, front_end: dict[str, Any], *, is_recorders: bool) -> str:
    """The recorder's report where its fit is the profile's, else that of the samples; and the notes."""
    if not is_recorders:
        return fitted.text()
    report = RecorderProfile(fitted.profile, replace(sections, front_end=front_end)).text()
    return "\n".join([report, "", *(f"- {note}" for note in fitted.profile.notes)])
