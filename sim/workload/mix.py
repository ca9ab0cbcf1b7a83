"""Several tenants' requests in one stream: each with arrivals and lengths of its own, merged in order of arrival."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from simbatch.sim.workload.chunk import CHUNK_SIZE, RequestChunk
from simbatch.sim.workload.model import Workload, priority_of
from simbatch.sim.workload.synthetic import SyntheticSource
from simbatch.sim.workload.traffic_model import Part, Traffic

Row = tuple[int, int, int, int]  # arrival (ps), number of the part, prompt and output tokens


class MixSource:
    """A `RequestSource` of all parts together; a part's requests do not depend on what the others say.

    Requests that arrive at the same moment come in the order of the parts.
    """

    hash_block_tokens = 0
    think_time_ps = 0
    skipped = 0

    def __init__(self, parts: list[Part], *, seed: int, folder: Path, max_concurrency: int | None = None) -> None:
        self.max_concurrency = max_concurrency
        self._tenants = [part.tenant for part in parts]
        self._priorities = [priority_of(part.priority or 0) or 0 for part in parts]
        self._sources = [
            SyntheticSource(_alone(part), seed=seed, folder=folder, part=i) for i, part in enumerate(parts)
        ]
        self.num_requests: int | None = sum(source.num_requests or 0 for source in self._sources)

    def chunks(self) -> Iterator[RequestChunk]:
        """Draw the requests, always the same ones."""
        merged = heapq.merge(*(self._rows(i) for i in range(len(self._sources))))
        has_priorities = any(self._priorities)
        while rows := list(islice(merged, CHUNK_SIZE)):
            times, parts, prompts, outputs = (list(column) for column in zip(*rows, strict=True))
            yield RequestChunk(
                arrival_ps=times,
                num_prompt_tokens=prompts,
                num_output_tokens=outputs,
                priority=[self._priorities[part] for part in parts] if has_priorities else None,
                tenant=[self._tenants[part] for part in parts],
            )

    def _rows(self, part: int) -> Iterator[Row]:
        for chunk in self._sources[part].chunks():
            for row in zip(chunk.arrival_ps, chunk.num_prompt_tokens, chunk.num_output_tokens, strict=True):
                yield row[0], part, row[1], row[2]


def _alone(part: Part) -> Workload:
    """The part as a workload of its own."""
    return Workload(**{name: getattr(part, name) for name in Traffic.model_fields})
