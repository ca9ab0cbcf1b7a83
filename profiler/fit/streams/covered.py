"""What a fit from streams saw, how sure it is of its parts, and what it took from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simbatch.profiler.fit.streams.fit import FittedSteps, Parts
from simbatch.profiler.fit.streams.runs import Means, StreamRun
from simbatch.profiler.fit.streams.steps import basis, joined
from simbatch.profiler.fit.streams.windows import NORMAL, share_at
from simbatch.profiler.fit.streams.worth import batch_span, bounds
from simbatch.profiler.records import MeasuredSteps, Steps
from simbatch.profiler.records import range_of as range_of_steps
from simbatch.sim.cost.profile import Profile
from simbatch.sim.cost.provenance import HARDLY_TOLD
from simbatch.sim.streams import Floats

DIGITS = 4


def seen_run(run: StreamRun, ours: Means, theirs: Means | None) -> dict[str, Any]:
    """A result as the profile keeps it: how far it is met, and predicted by the others."""
    columns = run.columns
    return {
        "file": run.seen.name,
        "requests": len(run.seen.streams),
        "steps": len(run.seen.steps),
        "max_concurrency": run.seen.streams.max_concurrency,
        "batch": bounds(columns.num_decodes[columns.num_decodes > 0]),
        "prompt_tokens": bounds(run.seen.streams.num_prompt_tokens.astype(np.float64)),
        "prefill_steps": int((columns.tokens > 0).sum()),
        "fitted": {key: round(value, DIGITS) for key, value in ours._asdict().items()},
        "predicted": None if theirs is None else {key: round(value, DIGITS) for key, value in theirs._asdict().items()},
    }


def sure_of(steps: FittedSteps) -> dict[str, float]:
    """Standard errors over values of what people ask for."""
    sure, host = steps.mixed.sure, steps.mixed.host
    largest = f"tokens_{steps.mixed.knots[-1]}"
    shown = {
        "decode context": steps.price.error_s / steps.decode.context_s if steps.decode.context_s else 99.0,
        "prefill": sure[largest],
    }
    for kind, key in ((1, "piecewise"), (2, "none")):
        if kind in steps.mixed.kinds:
            shown[f"launch {key}"] = sure[f"{key}_s"]
    if host["per_seq_s"] or host["per_prefill_s"]:
        shown |= {"launch per request": sure["per_seq_s"], "launch per prefill": sure["per_prefill_s"]}
    return shown


MOST_GROWTH = 0.01  # of a launch, with each request: 0.007 and 0.03 on the two hosts where it was told


def growth_of(steps: FittedSteps) -> dict[str, float] | None:
    """Where launches are known, and how well what they grow by with each request is; nobody's grow faster than some."""
    running, host = steps.problem.running(), steps.mixed.host
    around = float(np.mean(running)) if running else 0.0
    launch_s = host["none_s"] + host["per_seq_s"] * around
    if launch_s <= 0:
        return None
    error_s, most_s = steps.mixed.sure["per_seq_s"] * max(host["per_seq_s"], 1e-9), MOST_GROWTH * launch_s
    error_s = (error_s**-2 + most_s**-2) ** -0.5 if error_s > 0 else 0.0
    return {"around": round(around, 1), "launch_s": float(f"{launch_s:.4g}"), "error_s": float(f"{error_s:.3g}")}


HIDES = 0.4  # the share of a time that shows
WITHIN = 0.03  # of a prefill's time: what is called told lies that near, in 19 of 20 cases
LAUNCH_WITHIN = 0.1  # and of a launch's
TOLD, LAUNCH_TOLD = WITHIN / NORMAL, LAUNCH_WITHIN / NORMAL  # as standard errors
PLACES = 400  # numbers of tokens that are looked at


def taken_of(
    parts: Parts, steps: FittedSteps, runs: Sequence[StreamRun], nearest: Profile | None, assumed: str | None
) -> dict[str, str]:
    """What the streams do not tell, and what stands there instead; `assumed` of the seats, where nobody said them."""
    origin = "of no profile: what transformers usually have" if nearest is None else f"{nearest.name}'s, scaled"
    taken = {"KV capacity": "never reached: simulations have no end of it" if nearest is None else f"{nearest.name}'s"}
    taken["attention"] = origin
    taken["context beside prefills"] = origin
    if not steps.price.is_told:
        taken["decode context"] = origin
    mixed, shown = steps.mixed, shown_of(steps)
    taken |= _prefills_told(steps, runs[0].batches.max_num_batched_tokens)
    for kind, key, what in (
        (1, "piecewise", f"up to {parts.priors.max_capture} tokens"),
        (2, "none", f"above {parts.priors.max_capture} tokens"),
    ):
        if kind not in mixed.kinds:
            taken[f"launch {key}"] = f"no step with prefills of {what} was seen: in proportion to the other kind"
        elif mixed.sure[f"{key}_s"] > HARDLY_TOLD or shown.get(f"launch {key}", 0.0) < HIDES:
            taken[f"launch {key}"] = "hidden behind the device: shorter than the steps in parallel"
        elif mixed.sure[f"{key}_s"] > LAUNCH_TOLD:
            taken[f"launch {key}"] = f"too few episodes show it to tell it to {LAUNCH_WITHIN:.0%}"
    if mixed.sure["graph_s"] > HARDLY_TOLD:
        taken["launch graph"] = "hidden behind the device: shorter than a decode's step"
    elif mixed.sure["graph_s"] > LAUNCH_TOLD:
        taken["launch graph"] = f"too few episodes show it to tell it to {LAUNCH_WITHIN:.0%}"
    if mixed.sure["per_seq_s"] > HARDLY_TOLD:
        taken["launch per request"] = _slope_told(steps, nearest)
    if mixed.sure["per_prefill_s"] > HARDLY_TOLD:
        taken["launch per prefill"] = "does not show in these loads"
    if not parts.way_in.num_requests:
        taken["front end, work a request"] = "no request came to a busy engine: usual figures"
    low, high = batch_span(runs)
    if assumed is not None and any(mixed.kinds):
        taken["max_num_seqs"] = assumed
        if 2 * high < parts.priors.max_capture:  # graphs may end anywhere between
            taken.setdefault("launch piecewise", f"graphs of steps above {2 * high:.0f} tokens hang on max_num_seqs")
    taken["decodes outside"] = f"batches below {low:.0f} and above {high:.0f}: along the line of those seen"
    return taken


NUDGE = 0.1


def shown_of(steps: FittedSteps) -> dict[str, float]:
    """Which share of prefills' device time, all and by knot, and of launches by kind, the episodes' times show.

    The rest hides; that a noisy launch is sometimes the longer one does not tell how long it is.
    """
    problem, fitted = steps.problem, steps.mixed
    if not problem.rows.size:
        return {}
    device_s, launch_s = problem.times_s(fitted)
    knots_s = problem.rounds[:, None] * problem.basis * np.interp(problem.knots, fitted.knots, fitted.time_s)
    nothing = np.zeros(len(device_s))
    parts = {"prefill": (device_s * problem.has_prefill, nothing)}
    parts |= {f"tokens_{knot}": (knots_s[:, i] * problem.has_prefill, nothing) for i, knot in enumerate(problem.knots)}
    parts |= {f"launch {key}": (nothing, launch_s * (problem.kind == i)) for i, key in ((1, "piecewise"), (2, "none"))}
    noise = problem.noise
    problem.spread(np.ones(1))
    before = problem.ends_s(device_s, launch_s).sum()
    found = {}
    for name, (device, launch) in parts.items():
        after = problem.ends_s(device_s + NUDGE * device, launch_s + NUDGE * launch).sum()
        all_s = float((device + launch)[problem.rows[problem.is_step]].sum())
        found[name] = float(after - before) / (NUDGE * all_s) if all_s else 0.0
    problem.noise = noise
    return found


def is_told(steps: FittedSteps, tokens: Floats) -> NDArray[np.bool_]:
    """Whether these streams tell how long the device takes for steps with prefills, of so many tokens each."""
    mixed, shown = steps.mixed, shown_of(steps)
    unsure = np.array([mixed.sure[f"tokens_{knot}"] > TOLD for knot in mixed.knots])
    if shown:
        unsure |= np.array([min(shown[f"tokens_{knot}"], shown["prefill"]) < HIDES for knot in mixed.knots])
    told = share_at(tokens, mixed.knots, mixed.time_s, mixed.scatter) <= TOLD
    return np.asarray(told & ~(basis(tokens, mixed.knots) != 0)[:, unsure].any(axis=1))  # nor either of its knots


def _prefills_told(steps: FittedSteps, budget: int) -> dict[str, str]:
    """Of which steps with prefills the device's time is told; nothing if of all."""
    knots = steps.mixed.knots
    knots = knots[1:] if len(knots) > 1 else knots  # the first is held near a decode
    between = np.geomspace(knots[0], max(budget, knots[0]), PLACES).round()
    places = np.unique(np.concatenate([knots.astype(np.float64), between]))
    told = np.concatenate([[False], is_told(steps, places), [False]])
    if told[1:-1].all():
        return {}
    why = f"hide behind launches, or are too few to tell their time to {WITHIN:.0%}"
    begins, ends = (np.flatnonzero(np.diff(told.astype(np.int8)) == sign) for sign in (1, -1))
    spans = [
        " to ".join(f"{place:,.0f}" for place in np.unique(places[[begin, end - 1]]))
        for begin, end in zip(begins, ends, strict=True)
    ]
    if not spans:
        return {"prefill on the device": f"steps with prefills {why}"}
    return {"some prefills on the device": f"told of steps of {' and '.join(spans)} tokens; others {why}"}


def _slope_told(steps: FittedSteps, nearest: Profile | None) -> str:
    """Where the launch's slope with the batch is from, which these runs do not tell."""
    running = steps.problem.running()
    beside = (
        f"{min(running):.0f} to {max(running):.0f} requests decode with prefills" if running else "nobody runs there"
    )
    if steps.problem.priors.per_seq and nearest is not None:
        return f"{nearest.name}'s, scaled: {beside}, which does not tell it from a run's mood"
    return f"{beside}, which does not tell it from a run's mood: with more at once latencies may be far too low"


def range_of(runs: Sequence[StreamRun]) -> dict[str, Any]:
    """What was seen, as every profile says it."""
    seen, _ = joined([run.columns for run in runs])
    nothing = np.zeros(len(seen))
    counts = (seen.num_prefills, seen.tokens, nothing, seen.attention, seen.num_decodes, seen.context, nothing, nothing)
    steps = MeasuredSteps(Steps(*(column.astype(np.int64) for column in counts)), nothing, nothing.astype(np.int64))
    return range_of_steps(steps.select(steps.steps.num_tokens > 0))
