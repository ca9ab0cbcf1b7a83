"""What the clock of client and server, which is one, says of the way to the server and back.

The batch table sends n requests at once: their tokens are made in steps whose updates are recorded, in the order in
which the chunks arrive. So each chunk has its update: the first of a step's comes after what the way takes, and the
others one after the other, as fast as the server's process sends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from simbatch.profiler.fitting.recorded_lines import RecordedRequest, RecordedStep
from simbatch.profiler.served.driver import Flight

FEW = 4  # chunks of a step, to tell their distance


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
        if number >= FEW:
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


def joined(ways: Sequence[Way]) -> dict[str, float]:
    """As keys of a profile's front end: a lone request's way, the largest batches' distance of chunks."""
    if not ways:
        return {}
    chunks = [way.chunk_s for way in ways if way.chunk_s is not None]
    return {
        "network_s": max(0.0, ways[0].in_s) + max(0.0, ways[0].out_s),
        "per_chunk_s": float(np.median(chunks[-3:])) if chunks else 0.0,
    }
