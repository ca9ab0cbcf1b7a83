"""Which requests arrive, and when: synthetic processes, mixes of them, and traces."""

from __future__ import annotations

from pathlib import Path

from simbatch.sim.workload.chunk import RequestChunk, RequestSource
from simbatch.sim.workload.model import Workload

__all__ = ["RequestChunk", "RequestSource", "Workload", "open_workload"]


def open_workload(workload: Workload, *, seed: int, folder: Path) -> RequestSource:
    """The requests of a workload; relative paths start at `folder`.

    Raises UserError, at once for settings and missing files, while reading for malformed rows.
    """
    if workload.trace is not None:
        from simbatch.sim.workload.traces import open_trace

        trace = open_trace(workload.trace, folder=folder, workload=workload, seed=seed)
        if workload.trace.resample_blocks is None:
            return trace
        from simbatch.sim.workload.traces.resample import ResampledSource

        return ResampledSource(trace, workload.trace.resample_blocks, seed)
    if workload.sessions is not None:
        from simbatch.sim.workload.session_source import SessionSource

        return SessionSource(workload, seed=seed, folder=folder)
    if workload.mix is not None:
        from simbatch.sim.workload.synthetic import MixSource

        return MixSource(workload.mix, seed=seed, folder=folder, max_concurrency=workload.max_concurrency)
    from simbatch.sim.workload.synthetic import SyntheticSource

    return SyntheticSource(workload, seed=seed, folder=folder)
