"""Requests drawn from distributions."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from simbatch.sim.clock import to_ps
from simbatch.sim.json_values import MAX_TOKENS, priority_of
from simbatch.sim.workload.arrivals import ClosedLoop, arrival_times
from simbatch.sim.workload.chunk import CHUNK_SIZE, Purpose, RequestChunk, draw_shares, stream
from simbatch.sim.workload.formats import Trace
from simbatch.sim.workload.model import Part, Prefix, TrafficShape, Workload
from simbatch.sim.workload.sessions import Empirical, FixedLength, Geometric, Length, Lognormal, Quantiles, Uniform

Ints = npt.NDArray[np.int64]
Draw = Callable[[np.random.Generator, int], Ints]
LengthOf = Literal["num_prompt_tokens", "num_output_tokens"]


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
        lengths, shares = (
            (Purpose.PROMPT_LEN, Purpose.OUTPUT_LEN),
            (Purpose.PRIORITIES, Purpose.PREFIX, Purpose.TENANTS),
        )
        prompts, outputs, priorities, prefixes, tenants = map(self._stream, (*lengths, *shares))
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


def length_draw(length: Length, *, folder: Path, of: LengthOf, notes: list[str] | None = None) -> Draw:
    """A function that draws so many lengths (int64, at least 1); an empirical one reads its trace first.

    `notes` gets how such a file was read, and what in it was not, in sentences.
    """
    match length:
        case FixedLength():
            fixed = int(length.mean)
            return lambda _, n: np.full(n, fixed, dtype=np.int64)
        case Uniform():
            return _uniform(length)
        case Lognormal():
            # mean m and variance (cv*m)^2 of exp(N(mu, sigma^2)), solved for mu and sigma^2
            variance = math.log1p(length.cv**2)
            mu, sigma = math.log(length.mean) - variance / 2, math.sqrt(variance)
            return lambda rng, n: _whole(rng.lognormal(mu, sigma, n), length.min, length.max)
        case Geometric():
            p = 1 / length.mean
            return lambda rng, n: np.clip(rng.geometric(p, n), length.min or 1, length.max or MAX_TOKENS)
        case Empirical():
            return _empirical(length, folder, of, [] if notes is None else notes)
        case Quantiles():
            return _quantiles(length)


def _uniform(length: Uniform) -> Draw:
    low, high = length.min, length.max
    if length.cv is None or length.mean is None:
        return lambda rng, n: rng.integers(low or 1, high or MAX_TOKENS, n, endpoint=True)
    middle, half = length.mean, math.sqrt(3) * length.cv * length.mean
    return lambda rng, n: _whole(rng.uniform(middle - half, middle + half, n), low, high)


def _quantiles(length: Quantiles) -> Draw:
    """Straight lines between the points, on paper where a lognormal distribution is one: normal score, log of tokens.

    p50: 800 and p99: 6000 are the points (0, log 800) and (2.33, log 6000): log tokens = 6.68 + 0.866 z.
    """
    scores = np.array([NormalDist().inv_cdf(percent / 100) for percent, _ in length.points()])
    logs = np.log([tokens for _, tokens in length.points()])
    slopes = np.diff(logs) / np.diff(scores)

    def draw(rng: np.random.Generator, n: int) -> Ints:
        z = rng.standard_normal(n)
        below, above = np.minimum(z - scores[0], 0) * slopes[0], np.maximum(z - scores[-1], 0) * slopes[-1]
        return _whole(np.exp(np.interp(z, scores, logs) + below + above), length.min, length.max)

    return draw


def _whole(values: npt.NDArray[np.float64], low: int | None, high: int | None) -> Ints:
    return np.clip(np.rint(values), low or 1, high or MAX_TOKENS).astype(np.int64)


def _empirical(length: Empirical, folder: Path, of: LengthOf, notes: list[str]) -> Draw:
    from simbatch.sim.workload.traces import open_trace

    keys = ("path", "format", "columns", "limit", "between", "on_empty", "chars_per_token", "tokenizer")
    trace = Trace(**{key: getattr(length, key) for key in keys})
    wanted = "prompt" if of == "num_prompt_tokens" else "output"
    place = "workload.prompt_len" if of == "num_prompt_tokens" else "workload.output_len"
    counts: Counter[int] = Counter()
    source = open_trace(trace, folder=folder, place=place, wanted=(wanted,))
    for chunk in source.chunks():
        counts.update(getattr(chunk, of))
    notes += [note for note in source.unread() if note not in notes]
    values = np.array(sorted(counts), dtype=np.int64)
    ends = np.cumsum([counts[int(value)] for value in values])  # value i is rows ends[i-1]..ends[i]-1, sorted
    low, high = length.min or 1, length.max or MAX_TOKENS

    def draw(rng: np.random.Generator, n: int) -> Ints:
        rows = rng.integers(0, ends[-1], n)
        return np.clip(values[np.searchsorted(ends, rows, side="right")], low, high)

    return draw
