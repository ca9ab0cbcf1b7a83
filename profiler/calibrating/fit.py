"""A fit from streams: its parts one after the other, on whichever runs are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.calibrating.columns import Columns
from simbatch.profiler.calibrating.decodes import Price, cells_of, context_price, fit_decodes
from simbatch.profiler.calibrating.episodes import SLOPE_HELD_S, Decode, Fitted, Problem
from simbatch.profiler.calibrating.parts import Parts
from simbatch.profiler.calibrating.priors import Shape
from simbatch.profiler.calibrating.reading import Run
from simbatch.profiler.calibrating.refine import refined
from simbatch.profiler.calibrating.way_in import fit_way_in
from simbatch.profiler.fitting.spread import noise_quantiles
from simbatch.sim.cost.provenance import HARDLY_TOLD
from simbatch.sim.errors import Problem as Mistake
from simbatch.sim.errors import UserError

MAX_CAPTURE = 512
BETTER = 0.9  # of the cost: as little must synchronous steps have, for asynchronous is the default of vLLM
BLURRED = 0.8  # of a gap: chunks that take as long say nothing of what one takes
SPREAD_LEAST, SPREAD_STEPS = 0.1, 50


class Steps(NamedTuple):
    """What the steps alone say."""

    decode: Decode
    mixed: Fitted
    price: Price
    problem: Problem


def fit_steps(runs: Sequence[Columns], shape: Shape) -> Steps:
    """Device and launches; raises UserError where the runs have too few steps for that."""
    cells = cells_of(runs)
    if not len(cells.time_s):
        rule = "too few steps of decodes alone: no batch stays the same for long enough"
        raise UserError(Mistake("FILES", rule, mend="give a result with more requests or longer outputs"))
    token_s = 1e-5
    for _ in range(2):  # a context's prior hangs on a prefill token's time, and that on the decodes beside it
        price = context_price(runs, shape.context * token_s)
        decode = Decode(*fit_decodes(cells, price))
        priors = shape.priors(float(decode.time_s[0]))
        problem = Problem(runs, decode, priors, MAX_CAPTURE)
        token_s = problem.first_slope()
    if not problem.used.any():
        rule = "no prompt was computed in a step that the streams show"
        raise UserError(Mistake("FILES", rule, mend="give a result with more requests"))
    mixed = problem.solve()
    other = Problem(runs, decode, priors, MAX_CAPTURE, is_async=False)
    synchronous = other.solve()
    if synchronous.cost < BETTER * mixed.cost:
        mixed, problem = synchronous, other
    if mixed.sure["per_seq_s"] > HARDLY_TOLD and priors.per_seq:
        problem.slope_sd_s = SLOPE_HELD_S
        mixed = problem.solve()
    return Steps(decode, mixed, price, problem)


def fit_parts(
    runs: Sequence[Run], shape: Shape, settings: dict[str, Any], *, is_refined: bool = True
) -> tuple[Parts, Steps]:
    """All parts; `settings` are the engine's."""
    steps = fit_steps([run.columns for run in runs], shape)
    chunk_s = chunk_of(runs)
    way_in = fit_way_in(
        [(run.seen.steps, run.batches) for run in runs],
        chunk_s,
        steps.mixed.host["lone_s"],
        is_async=steps.mixed.is_async,
    )
    parts = Parts(steps.decode, steps.mixed, way_in, way_in.chunk_s, steps.problem.priors, spread_of(steps))
    if is_refined:
        settings = {**settings, "async_scheduling": steps.mixed.is_async}
        parts = refined(parts, runs, settings)
    return parts, steps


def chunk_of(runs: Sequence[Run]) -> float:
    """What a chunk takes, s: of the runs whose steps it does not fill."""
    told = [run.seen.judgement for run in runs if run.seen.judgement.chunk_s > 0]
    clear = [each.chunk_s for each in told if each.share_of_gap < BLURRED] or [each.chunk_s for each in told]
    return float(np.median(clear)) if clear else 0.0


def spread_of(steps: Steps) -> dict[str, Any] | None:
    """Of launches, where enough of them show."""
    ratios = steps.problem.launch_ratios(steps.mixed)
    if len(ratios) < SPREAD_STEPS or ratios.std() < SPREAD_LEAST * ratios.mean():
        return None
    quantiles = noise_quantiles(ratios)
    return {"piecewise": quantiles, "none": quantiles}
