"""Whether steps rebuilt from streams can be believed, and what is odd about the streams, in sentences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simbatch.sim.streams import Ints, RebuiltSteps, Streams, rebuild_steps

FEW_REQUESTS = 8
REGULAR = 0.8  # of the requests that have all their chunks: as many must keep step with the others
WHOLE = 0.25  # of the requests must have all their chunks, so that every step is told by somebody
MISSING_WARN, MISSING_REFUSE = 0.005, 0.02  # of the tokens: a client that reads two at once, or odd characters
SPECULATES = 1.1  # tokens a chunk: several come out of one step
BLURRED = 0.3  # of a gap: what the client takes to read one step's chunks
FAILED = 0.02


STANDS_S, STANDS = 0.5, 5.0  # and that many times what steps with as many prompt tokens take
ALIKE, ALIKE_STEPS = 0.7, 5  # of its prompt tokens, or more; so many such steps
TAKEN_OUT = "standstills of {0:.1f} s or more: {1} of them, {2:.1f} of its {3:.0f} s, are taken out of its clock"


def without_standstills(steps: RebuiltSteps) -> tuple[Streams, str | None]:
    """A run by a clock that stood when the server did (kernels compiled at a first visit), and a sentence on that.

    No other run repeats them, and in a mean they are most of it: 12 s of 28 on a server of a mixture of experts.
    """
    stands = _standstills(steps)
    if not len(stands):
        return steps.streams, None
    gaps_s = np.diff(steps.mean_s)
    begins, ends = steps.end_s[stands], steps.begin_s[stands + 1]
    lost_s = np.maximum(0.0, ends - begins - np.median(gaps_s))
    moments = np.column_stack([begins, ends]).ravel()
    lost = np.column_stack([np.cumsum(lost_s) - lost_s, np.cumsum(lost_s)]).ravel()
    streams = steps.streams.at(lambda time_s: time_s - np.interp(time_s, moments, lost))
    said = TAKEN_OUT.format(gaps_s[stands].min(), len(stands), lost_s.sum(), steps.mean_s[-1] - steps.mean_s[0])
    return streams, said


def _standstills(steps: RebuiltSteps) -> Ints:
    """Steps before the gaps in which somebody waited far longer than in others with as many prompt tokens, or more."""
    gaps_s, is_busy = np.diff(steps.mean_s), steps.num_decodes[1:] > 0
    tokens = steps.prompt_tokens[1:]  # of the step that came late, or of the next one, whose launch it waited for
    tokens = np.maximum(tokens, np.append(tokens[1:], 0))
    found = []
    for step in np.flatnonzero(is_busy & (gaps_s > STANDS_S)).tolist():
        alike = gaps_s[is_busy & (tokens >= max(1.0, ALIKE * tokens[step]))]
        if len(alike) >= ALIKE_STEPS and gaps_s[step] > STANDS * np.median(alike):
            found.append(step)
    return np.array(found, dtype=np.int64)


@dataclass(frozen=True)
class Judgement:
    """Figures of streams, and what follows: `refusals` is empty where their steps can be believed."""

    num_requests: int
    num_failed: int
    num_steps: int
    tokens_per_chunk: float
    share_missing: float  # of the chunks, where fewer than tokens
    share_whole: float  # of the requests: as many chunks as tokens
    share_regular: float  # of these: they keep step with the others
    chunk_s: float  # between two chunks of one step, at the client
    share_of_gap: float  # what a step's chunks take of the time between two steps
    num_engines: int  # 2: those that do not keep step with the others do so among themselves
    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def judge(steps: RebuiltSteps, num_failed: int = 0) -> Judgement:
    """Look at a run's streams; requests that failed are not among them."""
    streams = steps.streams
    num_tokens, num_chunks = int(streams.num_output_tokens.sum()), len(streams.time_s)
    is_whole = streams.number == streams.num_output_tokens
    gaps_s = streams.gaps_s
    chunk_s = _chunk_s(steps)
    median_s = float(np.median(gaps_s)) if len(gaps_s) else 0.0
    share_regular = float(steps.is_regular[is_whole].mean()) if is_whole.any() else 0.0
    found = Judgement(
        num_requests=len(streams),
        num_failed=num_failed,
        num_steps=len(steps),
        tokens_per_chunk=num_tokens / max(1, num_chunks),
        share_missing=max(0.0, 1 - num_chunks / max(1, num_tokens)),
        share_whole=float(is_whole.mean()) if len(streams) else 0.0,
        share_regular=share_regular,
        chunk_s=chunk_s,
        share_of_gap=chunk_s * float(np.median(steps.num_seen)) / median_s if median_s else 0.0,
        num_engines=2 if share_regular < REGULAR and _is_second_engine(steps, is_whole) else 1,
    )
    return Judgement(**{**vars(found), "refusals": tuple(_refusals(found)), "warnings": tuple(_warnings(found))})


def _chunk_s(steps: RebuiltSteps) -> float:
    several = steps.num_seen > 1
    if not several.any():
        return 0.0
    return float(np.median((steps.end_s - steps.begin_s)[several] / (steps.num_seen[several] - 1)))


def _is_second_engine(steps: RebuiltSteps, is_whole: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> bool:
    others = is_whole & ~steps.is_regular
    if others.sum() < FEW_REQUESTS:
        return False
    return float(rebuild_steps(steps.streams.take(others)).is_regular.mean()) >= REGULAR


def _refusals(found: Judgement) -> list[str]:
    if found.num_requests < FEW_REQUESTS:
        return [f"{found.num_requests} requests with tokens are too few: {FEW_REQUESTS} at least"]
    all_requests = found.num_requests + found.num_failed
    reasons = []
    if found.num_failed > FAILED * all_requests:
        reasons.append(f"{found.num_failed} of {all_requests} requests failed: what they took of the server is unknown")
    if found.tokens_per_chunk > SPECULATES:
        reasons.append(
            f"a chunk has {found.tokens_per_chunk:.2f} tokens on average, so that one step gives several "
            "(speculative decoding, or several steps a schedule): a chunk is no step's"
        )
    elif found.share_missing > MISSING_REFUSE:
        reasons.append(
            f"{found.share_missing:.1%} of the tokens have no chunk of their own: server or client fell behind and put "
            "several into one; give them more cores, or less concurrency"
        )
    elif found.share_whole < WHOLE:
        reasons.append(
            f"only {found.share_whole:.0%} of the requests have a chunk for each token: the client read several at "
            "once because it fell behind; run it on a faster machine, or with less concurrency"
        )
    elif found.share_regular < REGULAR:
        kept = f"only {found.share_regular:.0%} of the requests get a token in every step of the others"
        if found.num_engines > 1:
            reasons.append(f"{kept}, and the rest keep step among themselves: several engines behind one port")
        else:
            reasons.append(
                f"{kept}: several engines behind one port, chunks that were split or collected on their way, several "
                "steps a schedule, or preemptions"
            )
    return reasons


def _warnings(found: Judgement) -> list[str]:
    told = []
    if found.num_failed:
        told.append(f"{found.num_failed} requests failed, and are left out")
    if MISSING_WARN < found.share_missing <= MISSING_REFUSE:
        told.append(f"{found.share_missing:.1%} of the tokens have no chunk of their own")
    if found.share_of_gap > BLURRED:
        told.append(
            f"sending and reading a step's chunks ({1e6 * found.chunk_s:.0f} µs each) takes {found.share_of_gap:.0%} "
            "of the time between two steps: the streams, not the engine, may set the pace"
        )
    return told
