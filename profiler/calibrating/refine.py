"""The last step of a fit: the engine itself serves the inputs' requests, and a few factors make its means right.

What users ask for are latencies of whole runs, so the engine has the last word: factors on groups of times, each held
near 1 by how far the streams' steps leave it open, are moved by Gauss-Newton steps until TTFT, TPOT and E2EL of every
run are as recorded, or nothing gets better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.calibrating.parts import Parts
from simbatch.profiler.calibrating.reading import Run
from simbatch.profiler.calibrating.replay import Means, real_means, simulated
from simbatch.sim.streams import Streams
from simbatch.sim.streams.streams import Floats

# by how much a factor may be off, as a standard deviation of its logarithm
HELD = {"decode": 0.02, "small": 0.1, "large": 0.03, "launch": 0.15, "work": 1.0, "delay": 0.5, "chunk": 0.1}
WANTED = Means(ttft=0.04, tpot=0.015, e2el=0.01)  # how well a mean has to be met, as shares
WANTED_APART = 0.15  # of the logarithm of steps with prefills
ROUNDS = 6
STEP = 0.5  # of `HELD`: how far a factor is moved to see what that does
SEEDS = 3  # where launches are drawn
MOST_REQUESTS = 1000  # of each run, from its begin


class _Wanted(NamedTuple):
    """The first requests of a run, and what was recorded of them."""

    streams: Streams
    means: Means
    num_mixed: int  # steps with prefills


def refined(parts: Parts, runs: Sequence[Run], settings: dict[str, Any]) -> Parts:
    """The parts with the factors that meet the runs best."""
    names, held = list(HELD), np.array(list(HELD.values()))
    chosen = [_wanted(run) for run in runs]

    seeds = range(SEEDS if parts.spread else 1)

    def misses(logs: Floats) -> Floats:
        content = content_of(parts.scaled(dict(zip(names, np.exp(logs).tolist(), strict=True))))
        of_runs = [np.mean([_missed(content, settings, run, seed) for seed in seeds], axis=0) for run in chosen]
        return np.concatenate([*of_runs, logs / held])

    best = _descend(misses, np.zeros(len(names)), STEP * held)
    return parts.scaled(dict(zip(names, np.exp(best).tolist(), strict=True)))


def _wanted(run: Run) -> _Wanted:
    streams = run.seen.streams.take(np.arange(len(run.seen.streams)) < MOST_REQUESTS)
    last = int(run.seen.steps.first[:MOST_REQUESTS].max())
    is_mixed = run.batches.prefill_tokens[: last + 1] > 0
    return _Wanted(streams, real_means(streams), int((is_mixed + run.batches.num_hidden[: last + 1]).sum()))


def _missed(content: dict[str, Any], settings: dict[str, Any], run: _Wanted, seed: int) -> Floats:
    """In standard deviations: TTFT, TPOT, E2EL, and the steps that cohorts took to come in."""
    means, num_mixed = simulated(content, settings, run.streams, seed)
    apart = np.log(max(1, num_mixed) / max(1, run.num_mixed)) / WANTED_APART
    return np.append(np.array(means.errors(run.means)) / np.array(WANTED), apart)


def content_of(parts: Parts) -> dict[str, Any]:
    """An inline profile whose memory never runs out."""
    return {"num_gpu_blocks": 2**30, "max_model_len": 2**24, **parts.sections()}


def _descend(misses: Callable[[Floats], Floats], at: Floats, steps: Floats) -> Floats:
    found = misses(at)
    for _ in range(ROUNDS):
        ahead = [misses(at + step) for step in np.diag(steps)]
        slopes = np.column_stack([(each - found) / size for each, size in zip(ahead, steps, strict=True)])
        move = np.linalg.lstsq(slopes, -found, rcond=None)[0]
        tried = ((at + share * move, misses(at + share * move)) for share in (1.0, 0.5, 0.25))
        better = next((each for each in tried if _is_less(each[1], found)), None)
        if better is None:  # cohorts that fall apart otherwise make steps of it: then one factor alone
            single = [
                *zip(at + np.diag(steps), ahead, strict=True),
                *((at - step, misses(at - step)) for step in np.diag(steps)),
            ]
            better = min(single, key=lambda each: float(each[1] @ each[1]))
            if not _is_less(better[1], found):
                break
        at, found = better
    return at


def _is_less(tried: Floats, found: Floats) -> bool:
    return bool(tried @ tried < 0.999 * (found @ found))
