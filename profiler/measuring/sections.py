"""The sections of a profile from what was measured: device, host, front end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simbatch.profiler.calibrating.from_streams import fit_seen
from simbatch.profiler.calibrating.reading import read_results
from simbatch.profiler.fitting.from_samples import FittedProfile, fit_samples
from simbatch.profiler.fitting.samples import Samples, StepSample
from simbatch.profiler.measuring.notes import first_visits_note, sampling_note
from simbatch.profiler.measuring.way_out import Way, joined
from simbatch.sim.errors import UserError


def fit_measured(
    samples: Samples, by_model: Sequence[StepSample], steps: Sequence[Path], traffic: Sequence[Path], command: str
) -> FittedProfile:
    """A whole profile; `steps` are the recorder's files, `traffic` those of the streams."""
    front_end, note = front_end_of(traffic, samples)
    fitted = fit_samples(samples, command=command, sections=front_end)
    cost = fitted.profile.cost_model()
    notes = [note, sampling_note(by_model, cost), first_visits_note(samples.fitted(), cost)]
    return fitted.with_notes([note for note in notes if note])


def front_end_of(paths: Sequence[Path], samples: Samples) -> tuple[dict[str, Any], str]:
    """The section, from streams; where these cannot tell, nothing and why."""
    engine = samples.engine
    limits = {"max_num_seqs": engine.max_num_seqs, "max_num_batched_tokens": engine.max_num_batched_tokens}
    way = joined([Way(**row["way"]) for row in samples.batches if "way" in row])
    try:
        found = fit_seen(read_results(paths), **limits, is_judged=False).parts.front_end()
    except UserError as error:
        return {"front_end": way}, f"front_end: not told, for {error.problems[0]}"
    return {"front_end": {"source": f"streams to {engine.gpu_name}'s server", **found, **way}}, "front_end: from streams"
