"""The sections of a profile from what was measured: device, host, front end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simbatch.profiler.calibrating.from_streams import fit_seen
from simbatch.profiler.calibrating.reading import read_results
from simbatch.profiler.fitting.from_samples import FittedProfile, fit_samples
from simbatch.profiler.fitting.samples import Samples
from simbatch.profiler.measuring.traffic import SHARES
from simbatch.sim.errors import UserError


def fit_measured(
    samples: Samples, steps: Sequence[Path], traffic: Callable[[str], Path], command: str
) -> FittedProfile:
    """A whole profile; `steps` are the recorder's files, `traffic` names those of the streams."""
    del steps
    front_end, note = front_end_of([path for name in SHARES if (path := traffic(name)).exists()], samples)
    return fit_samples(samples, command=command, sections=front_end, notes=(note,))


def front_end_of(paths: Sequence[Path], samples: Samples) -> tuple[dict[str, Any], str]:
    """The section, from streams; where these cannot tell, nothing and why."""
    engine = samples.engine
    limits = {"max_num_seqs": engine.max_num_seqs, "max_num_batched_tokens": engine.max_num_batched_tokens}
    try:
        found = fit_seen(read_results(paths), **limits, is_judged=False).parts.front_end()
    except UserError as error:
        return {}, f"front_end: not told, for {error.problems[0]}"
    return {"front_end": {"source": f"streams to {engine.gpu_name}'s server", **found}}, "front_end: from streams"
