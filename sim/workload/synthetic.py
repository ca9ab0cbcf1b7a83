"""Requests drawn from distributions."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from simbatch.sim.clock import to_ps
from simbatch.sim.workload.arrivals import ClosedLoop, arrival_times
from simbatch.sim.workload.chunk import CHUNK_SIZE, RequestChunk
from simbatch.sim.workload.lengths import length_draw
from simbatch.sim.workload.model import Part, Prefix, TrafficShape, Workload, priority_of


class Purpose(IntEnum):
    """What a stream is for; the numbers are part of what a seed means."""

    ARRIVALS = 1
    PROMPT_LEN = 2
    OUTPUT_LEN = 3
    PRIORITIES = 4
    PREFIX = 5
    TENANTS = 6
    BLOCKS = 7


def stream(seed: int, purpose: Purpose, part: int | None = None) -> np.random.Generator:
    """A fresh generator; the same seed, purpose and part of a mix give the same draws."""
    parts = [] if part is None else [part + 1]  # numpy takes a 0 at the end for nothing
    return np.random.default_rng([seed, int(purpose), *parts])


T = TypeVar("T")


class SyntheticSource:
    """A `RequestSource` of `num_prompts` requests; the same workload and seed give the same requests.

    A shared prefix is one hash of `prefix_len` tokens, or several where it has a part in common with the others
    (`Prefix.hashes`). `part`: its number in a mix, whose parts draw from streams of their own.
    """

    skipped = 0

    def __init__(self, workload: Workload, *, seed: int, folder: Path, part: int | None = None) -> None:
        if workload.num_prompts is None or workload.prompt_len is None or workload.output_len is None:
            raise ValueError("a workload with a trace or a mix is more than synthetic; use open_workload")
        self.num_requests: int | None = workload.num_prompts
        self._arrival = workload.resolved_arrival()
        self._stream = partial(stream, seed, part=part)
        notes: list[str] = []
        self._prompt_len = length_draw(workload.prompt_len, folder=folder, of="num_prompt_tokens", notes=notes)
        self._output_len = length_draw(workload.output_len, folder=folder, of="num_output_tokens", notes=notes)
        self._notes = tuple(notes)
        self._priorities, self._tenants = workload.priority_shares(), workload.tenant_shares()
        self._prefix = workload.prefix
        self.hash_block_tokens = workload.prefix.hash_tokens if workload.prefix else 0
        closed = self._arrival if isinstance(self._arrival, ClosedLoop) else None
        self.max_concurrency = closed.max_concurrency if closed else workload.max_concurrency
        self.think_time_ps = to_ps(closed.think_time_s) if closed else 0
        self.is_closed_loop = closed is not None

    def unread(self) -> tuple[str, ...]:
        """How the files of empirical lengths were read."""
        return self._notes

    def chunks(self) -> Iterator[RequestChunk]:
        """Draw the requests, always the same ones."""
        prompts, outputs, priorities, prefixes, tenants = (
            self._stream(purpose)
            for purpose in (
                Purpose.PROMPT_LEN,
                Purpose.OUTPUT_LEN,
                Purpose.PRIORITIES,
                Purpose.PREFIX,
                Purpose.TENANTS,
            )
        )
        new_stream = partial(self._stream, Purpose.ARRIVALS)
        for arrival_ps in arrival_times(self._arrival, self.num_requests or 0, new_stream):
            n = len(arrival_ps)
            prompt_len, output_len = self._prompt_len(prompts, n), self._output_len(outputs, n)
            hash_ids: list[tuple[int, ...]] | None = None
            if self._prefix:
                which = draw_prefixes(self._prefix, prefixes, n)
                prompt_len = prompt_len + np.where(which >= 0, self._prefix.prefix_len, 0)
                hash_ids = [self._prefix.hashes(number) if number >= 0 else () for number in which.tolist()]
            yield RequestChunk(
                arrival_ps=arrival_ps.tolist(),
                num_prompt_tokens=prompt_len.tolist(),
                num_output_tokens=output_len.tolist(),
                priority=draw_shares(self._priorities, priorities, n),
                tenant=draw_shares(self._tenants, tenants, n),
                hash_ids=hash_ids,
            )


def draw_shares(shares: Sequence[tuple[T, float]], rng: np.random.Generator, n: int) -> list[T] | None:
    """A class or a tenant for each of `n` requests, drawn independently; None when there are no shares."""
    if not shares:
        return None
    ends = np.cumsum([share for _, share in shares])
    which = np.searchsorted(ends, rng.random(n) * ends[-1], side="right")
    names = [name for name, _ in shares]
    return [names[i] for i in which.tolist()]


def draw_prefixes(prefix: Prefix, rng: np.random.Generator, n: int) -> npt.NDArray[np.int64]:
    """The number of the prefix that each of `n` prompts begins with, -1 for none."""
    shared = rng.random((n, 2))  # whether, and which: a row per request, so that chunks do not matter
    if prefix.zipf:
        ends = np.cumsum(np.arange(1, prefix.num_prefixes + 1, dtype=float) ** -prefix.zipf)
        which = np.searchsorted(ends, shared[:, 1] * ends[-1], side="right")
    else:
        which = np.minimum((shared[:, 1] * prefix.num_prefixes).astype(np.int64), prefix.num_prefixes - 1)
    return np.where(shared[:, 0] < prefix.share, which, -1)


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
    return Workload(**{name: getattr(part, name) for name in TrafficShape.model_fields})
