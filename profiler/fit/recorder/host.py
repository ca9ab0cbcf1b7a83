"""What the engine's thread takes: launches by kind, updates, requests that it takes in.

A launch begins when the thread is free, so what passes between an update and schedule() is the launch's, less what
requests cost that were taken in there. Means are kept: slow ones are winsorised for the shape, and count in the sum.

How long requests take from the API server's stamp to the engine's queue is told by bounds: the engine's thread looks
into its queue before every schedule(). So a request came between the look before and the one that took it in; where the
thread waited for requests, it came just then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from simbatch.profiler.fit.recorder.moments import GRAPH, NONE, PIECEWISE, Moments
from simbatch.profiler.fit.streams.way_in import WaitBounds, WayIn, fit_bounds
from simbatch.profiler.fit.two_regime import short, solve_robust
from simbatch.profiler.records import Floats, Ints, noise_quantiles
from simbatch.profiler.records.lines import RecordedRequest

FEW = 10  # launches of a kind, to speak of it; slopes want more
SLOPE_STEPS = 60
SPREAD_STEPS, SPREAD_LEAST = 50, 0.1  # of the mean, as a standard deviation
SHOWS_LEAST = (
    0.02  # of the decodes: a launch that is seldom longer than its step needs no draws, which make runs slower
)
KINDS = {"graph": GRAPH, "piecewise": PIECEWISE, "none": NONE}
FORMS = {"graph": ("base_s", "per_seq_s"), "piecewise": ("base_s", "per_seq_s", "per_prefill_s", "per_token_s")}
FORMS["none"] = FORMS["piecewise"]
SHORT_S = 1e-6


@dataclass(frozen=True)
class FittedHost:
    """The section's figures, the steps of each kind of launch, and what did not show."""

    section: dict[str, Any]
    num_launches: dict[str, int]
    taken: dict[str, str]


def fit_host(runs: list[Moments], device_s: Floats, lag_s: float, tail_s: float) -> FittedHost:
    """Fit launches, updates and admissions; `device_s` is what the device takes for each step."""
    loop_s, admit = _between(runs)
    launch, spread, numbers, taken = {}, {}, {}, {}
    launches = [_launches(run, loop_s) for run in runs]
    took = np.concatenate(launches)
    kind = np.concatenate([run.kind for run in runs])
    columns = _columns(runs)
    for name, number in KINDS.items():
        rows = (kind == number) & np.isfinite(took)
        numbers[name] = int((kind == number).sum())
        if rows.sum() < FEW:
            continue
        wanted = FORMS[name] if rows.sum() >= SLOPE_STEPS else FORMS[name][:1]
        found, ratios = _fitted(columns[rows][:, : len(wanted)], took[rows])
        launch[name] = dict(zip(wanted, map(short, found), strict=True))
        shows = name != "graph" or np.mean(took[rows] > device_s[rows]) > SHOWS_LEAST
        if shows and len(ratios) >= SPREAD_STEPS and ratios.std() > SPREAD_LEAST * ratios.mean():
            spread[name] = noise_quantiles(ratios)
    for name, other in (("piecewise", "none"), ("none", "piecewise")):
        if name not in launch and other in launch:
            launch[name] = launch[other]
            taken[f"launch {name}"] = f"{numbers[name]} such steps: as the {other} kind"
    if "graph" not in launch:
        taken["launch graph"] = f"{numbers['graph']} such steps: 0"
    section: dict[str, Any] = {"launch": launch, "update": _updates(runs), "admit": admit}
    section |= {"lag_s": short(lag_s), "tail_s": short(tail_s)}
    return FittedHost(section | ({"spread": spread} if spread else {}), numbers, taken)


def _between(runs: list[Moments]) -> tuple[float, dict[str, float]]:
    """What the thread takes between an update and schedule(): of itself, and for requests that it takes in there.

    With a step in flight it waits for nobody, so that its standstills count; without, the slowest may be waits.
    """
    loop_s = np.concatenate([run.loop_s for run in runs])
    number, tokens = (np.concatenate([getattr(run, name) for run in runs]) for name in ("num_added", "added_tokens"))
    of_itself = np.isfinite(loop_s) & (number == 0)
    in_flight = of_itself & (np.concatenate([run.in_flight for run in runs]) > 0)
    values = loop_s[in_flight] if in_flight.any() else _kept(loop_s[of_itself])
    alone_s = float(values.mean()) if len(values) else 0.0
    rows = np.isfinite(loop_s) & (number > 0)
    if rows.sum() < FEW:
        return alone_s, {}
    columns = np.column_stack([number, tokens])[rows].astype(np.float64)
    found = solve_robust(columns, np.maximum(SHORT_S, loop_s[rows] - alone_s))
    return alone_s, {"base_s": short(found[0]), "per_prompt_token_s": short(found[1])}


def _kept(values: Floats) -> Floats:
    """Without the slowest hundredth."""
    return values[values <= np.quantile(values, 0.99)] if len(values) else values


def _launches(run: Moments, loop_s: float) -> Floats:
    """How long each took; NaN where it is inside the device's time, as without two batches in flight."""
    took = run.launched_s - run.schedule_s + loop_s
    return np.where(took > 0, took, np.nan) if run.is_async or run.has_device else np.full(len(run), np.nan)


def _columns(runs: list[Moments]) -> Any:
    steps = [run.steps for run in runs]
    seqs = np.concatenate([each.num_decodes + each.num_prefills for each in steps])
    prefills = np.concatenate([each.num_prefills for each in steps])
    tokens = np.concatenate([each.num_tokens for each in steps])
    return np.column_stack([np.ones(len(seqs)), seqs, prefills, tokens])


def _fitted(columns: Any, took: Floats) -> tuple[Floats, Floats]:
    found = solve_robust(columns, took)
    return found, took / np.maximum(SHORT_S, columns @ found)


def _updates(runs: list[Moments]) -> dict[str, float]:
    """From when a step could be taken in (its tokens there, the thread free) to the end of that."""
    took = np.concatenate([run.updated_s - np.fmax(run.done_s, run.ready_s) for run in runs])
    seqs: Ints = np.concatenate([run.steps.num_decodes + run.steps.num_prefills for run in runs])
    rows = np.isfinite(took) & (took > 0)
    if rows.sum() < FEW:
        return {}
    took, seqs = took[rows], seqs[rows]
    inside = took <= np.quantile(took, 0.999)
    base, slope = solve_robust(np.column_stack([np.ones(inside.sum()), seqs[inside]]), took[inside])
    return {"base_s": short(float(base)), "per_seq_s": short(float(slope))}


MOST_S = 60.0  # of a stamp before the engine: else the clocks were set, or a client sent its own


def fit_recorded_way_in(runs: list[tuple[Moments, list[RecordedRequest]]]) -> WayIn | None:
    """The front end's figures before the engine; None where no stamp is there."""
    bounds = [found for moments, requests in runs if (found := _bounds(moments, requests)) is not None]
    if not bounds:
        return None
    return fit_bounds(bounds, 0.0, 0.0)


def _bounds(run: Moments, requests: list[RecordedRequest]) -> WaitBounds | None:
    stamped = [each for each in requests if 0 <= each.begin_s - each.arrival_s <= MOST_S]  # NaN is neither
    stamped.sort(key=lambda each: each.arrival_s)
    if not stamped:
        return None
    sent_s = np.array([each.arrival_s for each in stamped])
    begin_s = np.array([each.begin_s for each in stamped])
    prompt = np.array([each.num_prompt_tokens for each in stamped], dtype=np.float64)
    step = np.searchsorted(run.schedule_s, begin_s)  # that was scheduled next
    inside = np.flatnonzero((step > 0) & (step < len(run)))
    k = step[inside]
    high = begin_s[inside] - sent_s[inside]
    looked = run.schedule_s[k - 1] - sent_s[inside]
    low = np.where(run.is_idle[k], high, np.minimum(looked, high))
    num_chunks = run.steps.num_decodes + run.steps.num_prefills
    return WaitBounds(sent_s, prompt, run.updated_s, num_chunks.astype(np.float64), inside, low, high)
