"""A fit from streams: its parts one after the other, on whichever runs are given.

Last, the engine itself serves the inputs' requests, and a few factors make its means right (`refined`): what users ask
for are latencies of whole runs, so the engine has the last word: factors on groups of times, each held near 1 by how
far the streams' steps leave it open, are moved by Gauss-Newton steps until TTFT, TPOT and E2EL of every run are as
recorded, or nothing gets better. Its parts make the sections of a profile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.fit.facts import Priors
from simbatch.profiler.fit.streams.episodes import SLOPE_HELD_S, Decode, EpisodesProblem, FittedEpisodes
from simbatch.profiler.fit.streams.runs import Means, StreamRun, chunk_of, real_means, simulated
from simbatch.profiler.fit.streams.steps import Price, StepColumns, cells_of, fit_decodes, price_of
from simbatch.profiler.fit.streams.way_in import WayIn, fit_way_in
from simbatch.profiler.records import noise_quantiles
from simbatch.sim.cost.provenance import HARDLY_TOLD
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.streams import Floats, Streams

DIGITS = 4
MOST_BELOW = 0.3  # of the smallest batch that was seen: how much shorter a step of one decode may be


@dataclass(frozen=True)
class Parts:
    """What the streams said; times in s."""

    decode: Decode
    mixed: FittedEpisodes
    way_in: WayIn
    chunk_s: float
    priors: Priors
    spread: dict[str, Any] | None = None

    def scaled(self, factors: dict[str, float]) -> Parts:
        """With times multiplied: decode, small and large (steps with prefills), launch, work, delay, chunk."""
        knots = self.mixed.knots
        place = np.log(knots / knots[0]) / max(1e-9, np.log(knots[-1] / knots[0]))
        mixed_s = self.mixed.time_s * factors["small"] ** (1 - place) * factors["large"] ** place
        launch = {key: value * factors["launch"] for key, value in self.mixed.host.items() if key != "graph_s"}
        return replace(
            self,
            decode=self.decode._replace(time_s=self.decode.time_s * factors["decode"]),
            mixed=self.mixed._replace(time_s=np.maximum.accumulate(mixed_s), host=self.mixed.host | launch),
            way_in=self.way_in._replace(
                per_request_s=self.way_in.per_request_s * factors["work"],
                per_prompt_token_s=self.way_in.per_prompt_token_s * factors["work"],
                delay_s=self.way_in.delay_s * factors["delay"],
            ),
            chunk_s=self.chunk_s * factors["chunk"],
        )

    def step_time(self) -> dict[str, Any]:
        """The device's."""
        mixed, priors = self.mixed, self.priors
        return {
            "form": "two_regime",
            "decode": {
                "seqs": _knots(*self._decode_knots()),
                "per_context_token_s": _short(self.decode.context_s),
            },
            "mixed": {
                "tokens": _knots(*self._mixed_knots()),
                "per_decode_seq_s": 0.0,
                "per_context_token_s": _short(priors.mixed_context * self.decode.context_s),
                "per_attention_unit_s": _short(priors.attention * mixed.token_s),
            },
        }

    def _decode_knots(self) -> tuple[Any, Any]:
        """From one decode on: below the smallest batch that was seen along the line of those above."""
        knots, time_s = self.decode.knots, self.decode.time_s
        if knots[0] == 1:
            return knots, time_s
        slope = (time_s[-1] - time_s[0]) / (knots[-1] - knots[0]) if len(knots) > 1 else 0.0
        first = max(time_s[0] - slope * (knots[0] - 1), (1 - MOST_BELOW) * time_s[0])
        return np.append(1, knots), np.append(first, time_s)

    def _mixed_knots(self) -> tuple[Any, Any]:
        """With a jump behind the largest CUDA graph, if what was seen on both sides of it does not lie along a line.

        Kernels launched one by one take their time whatever the tokens: 12 ms at 176, 62 at 1,025 and 66 at 8,192 are
        12 up to a graph of 1,024 and 62 from there on, not 0.06 ms a token in between.
        """
        knots, time_s, size = self.mixed.knots, self.mixed.time_s, self.priors.max_capture
        above = int(np.searchsorted(knots, size, side="right"))
        if not 0 < above < len(knots) - 1:
            return knots, time_s
        slope = (time_s[-1] - time_s[above]) / (knots[-1] - knots[above])
        last_s = time_s[above - 1] + slope * (size - int(knots[above - 1]))
        tokens_s = slope * (int(knots[above]) - size - 1)
        first_s = time_s[above] - tokens_s
        if first_s <= last_s + slope:
            return knots, time_s
        if first_s - last_s > tokens_s:  # launches, then, which tokens hide behind
            first_s = time_s[above]
        new = np.array([size, size + 1])
        lacks = ~np.isin(new, knots)
        return np.insert(knots, above, new[lacks]), np.insert(time_s, above, np.array([last_s, first_s])[lacks])

    def host(self) -> dict[str, Any]:
        """The engine's thread's."""
        host = self.mixed.host
        slopes = {"per_seq_s": host["per_seq_s"], "per_prefill_s": host["per_prefill_s"]}
        # a slope per prefill counts those beyond the first
        base = {kind: max(0.0, host[f"{kind}_s"] - slope * host["per_prefill_s"]) for kind, slope in _SHARES.items()}
        launch = {
            "graph": {"base_s": _short(host["graph_s"])},
            **{
                kind: {"base_s": _short(base[kind]), **{key: _short(share * v) for key, v in slopes.items()}}
                for kind, share in _SHARES.items()
            },
        }
        return {"launch": launch} | ({"spread": self.spread} if self.spread else {})

    def front_end(self) -> dict[str, Any]:
        """The server's processes'."""
        return {
            "per_request_s": _short(self.way_in.per_request_s),
            "per_prompt_token_s": _short(self.way_in.per_prompt_token_s),
            "per_chunk_s": _short(self.chunk_s),
            "network_s": _short(self.way_in.delay_s),
        }

    def sections(self) -> dict[str, Any]:
        """All of them."""
        return {"step_time": self.step_time(), "host": self.host(), "front_end": self.front_end()}


_SHARES = {"piecewise": 0.5, "none": 1.0}  # of the launches' slopes, see `EpisodesProblem.launch_s`


def _knots(counts: Any, times_s: Any) -> dict[str, Any]:
    return {"count": [int(count) for count in counts], "time_s": [_short(float(time_s)) for time_s in times_s]}


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


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


def refined(parts: Parts, runs: Sequence[StreamRun], settings: dict[str, Any]) -> Parts:
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


def _wanted(run: StreamRun) -> _Wanted:
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


FIRST_TOKEN_S, LEAST_TOKEN_S = 1e-5, 1e-7
BETTER = 0.9  # of the cost: as little must synchronous steps have, for asynchronous is the default of vLLM
SPREAD_LEAST, SPREAD_STEPS = 0.1, 50


class FittedSteps(NamedTuple):
    """What the steps alone say."""

    decode: Decode
    mixed: FittedEpisodes
    price: Price
    problem: EpisodesProblem


def fit_steps(runs: Sequence[StepColumns], shape: Priors) -> FittedSteps:
    """Device and launches; raises UserError where the runs have too few steps for that."""
    cells = cells_of(runs)
    if not len(cells.time_s):
        rule = "too few steps of decodes alone: no batch stays the same for long enough"
        raise UserError(Problem("FILES", rule, mend="give a result with more requests or longer outputs"))
    token_s = FIRST_TOKEN_S
    for _ in range(2):  # a context's prior hangs on a prefill token's time, and that on the decodes beside it
        price = price_of(runs, shape.context * token_s)
        decode = Decode(*fit_decodes(runs, cells, price))
        priors = shape.priors(float(decode.time_s[0]))
        problem = EpisodesProblem(runs, decode, priors)
        if not problem.used.any():
            rule = "no prompt was computed in a step that the streams show"
            raise UserError(Problem("FILES", rule, mend="give a result with more requests"))
        mixed = problem.solve()
        token_s = max(LEAST_TOKEN_S, mixed.token_s)
    other = EpisodesProblem(runs, decode, priors, is_async=False)
    synchronous = other.solve()
    if synchronous.cost < BETTER * mixed.cost:
        mixed, problem = synchronous, other
    if mixed.sure["per_seq_s"] > HARDLY_TOLD and priors.per_seq:
        problem.slope_sd_s = SLOPE_HELD_S
        mixed = problem.solve()
    ratios = problem.launch_ratios(mixed)
    problem.weigh(mixed)
    if _is_spread(ratios):
        problem.spread(ratios)
    mixed = problem.solve()
    return FittedSteps(decode, mixed, price, problem)


def fit_parts(runs: Sequence[StreamRun], shape: Priors, settings: dict[str, Any]) -> tuple[Parts, FittedSteps]:
    """All parts; `settings` are the engine's."""
    steps = fit_steps([run.columns for run in runs], shape)
    return refined(parts_of(runs, steps), runs, {**settings, "async_scheduling": steps.mixed.is_async}), steps


def parts_of(runs: Sequence[StreamRun], steps: FittedSteps) -> Parts:
    """What the steps said, and the way in, before the runs' means have a say."""
    way_in = fit_way_in(
        [(run.seen.steps, run.batches) for run in runs],
        chunk_of(runs),
        steps.mixed.host["lone_s"],
        is_async=steps.mixed.is_async,
    )
    return Parts(steps.decode, steps.mixed, way_in, way_in.chunk_s, steps.problem.priors, spread_of(steps))


def spread_of(steps: FittedSteps) -> dict[str, Any] | None:
    """Of launches, where enough of them show."""
    ratios = steps.problem.launch_ratios(steps.mixed)
    if not _is_spread(ratios):
        return None
    quantiles = noise_quantiles(ratios)
    return {"piecewise": quantiles, "none": quantiles}


def _is_spread(ratios: Floats) -> bool:
    return len(ratios) >= SPREAD_STEPS and bool(ratios.std() >= SPREAD_LEAST * ratios.mean())
