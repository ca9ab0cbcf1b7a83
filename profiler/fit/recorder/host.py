"""What the engine's thread takes: launches by kind, updates, requests that it takes in.

A launch begins when the thread is free, so what passes between an update and schedule() is the launch's, less what
requests cost that were taken in there. Means are kept: slow ones are winsorised for the shape, and count in the sum.

How long requests take from the API server's stamp to the engine's queue is told by bounds: the engine's thread looks
into its queue before every schedule(). So a request came between the look before and the one that took it in; where the
thread waited for requests, it came just then.

What was fitted is judged by the recorded batches played again, by the engine's rule and fitted times: how far each gap
between updates is off (`gaps_of`). A stretch begins where the thread had nothing to do, at the recorded schedule(), and
goes on by itself from there. Launches are drawn from their spread, and a gap's prediction is the mean over the draws:
the longer of two noisy times is longer than the longer of their means. What no model can beat is how far gaps lie from
the mean of those alike: the same kinds of step here and next, decodes and tokens within a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from simbatch.profiler.fit.recorder.moments import GRAPH, NONE, PIECEWISE, Moments
from simbatch.profiler.fit.streams.way_in import WaitBounds, WayIn, fit_bounds
from simbatch.profiler.fit.two_regime import short, solve_robust
from simbatch.profiler.records import Floats, Ints, Steps, concatenate, noise_quantiles, predict_s
from simbatch.profiler.records.lines import RecordedRequest
from simbatch.sim.clock import PS_PER_S
from simbatch.sim.cost.host import RATIO_SHIFT, HostTimes, LaunchTimes
from simbatch.sim.cost.model import CostModel
from simbatch.sim.cost.sections import HostSection

FEW = 10  # launches of a kind, to speak of it; slopes want more
SLOPE_STEPS = 60
SPREAD_STEPS, SPREAD_LEAST = 50, 0.1  # of the mean, as a standard deviation
SHOWS_LEAST = 0.02  # of the decodes: a launch that is seldom longer than its step needs no draws (they are slow)
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
    steps = concatenate([run.steps for run in runs])
    return np.column_stack([np.ones(len(steps)), steps.num_seqs, steps.num_prefills, steps.num_tokens])


def _fitted(columns: Any, took: Floats) -> tuple[Floats, Floats]:
    found = solve_robust(columns, took)
    return found, took / np.maximum(SHORT_S, columns @ found)


def _updates(runs: list[Moments]) -> dict[str, float]:
    """From when a step could be taken in (its tokens there, the thread free) to the end of that."""
    took = np.concatenate([run.updated_s - np.fmax(run.done_s, run.ready_s) for run in runs])
    seqs: Ints = np.concatenate([run.steps.num_seqs for run in runs])
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
    return WaitBounds(sent_s, prompt, run.updated_s, run.steps.num_seqs.astype(np.float64), inside, low, high)


DRAWS = 16
ALIKE = 0.1  # of decodes and tokens, in logarithms
LEAST_ALIKE = 5


class UpdateGaps(NamedTuple):
    """Real and predicted gaps between the updates of one run, s; only those inside a stretch."""

    real_s: Floats
    predicted_s: Floats
    like: Ints  # the same number: steps alike


class GapErrors(NamedTuple):
    """Of gaps, ms, and of their sum, as a share."""

    number: int
    mean_ms: float
    error_ms: float  # mean |error|
    noise_ms: float  # what no model can beat
    total: float


def gaps_of(run: Moments, cost: CostModel, host: HostSection, seed: int = 0) -> UpdateGaps:
    """Predict the gaps of a run along its batches."""
    device_s = predict_s(cost, run.steps)
    launch_s = launches_s(run, host, seed)
    update_s = np.asarray(host.update.base_s + host.update.per_seq_s * run.steps.num_seqs)
    updates = _replayed_s(run, device_s, launch_s, update_s, host.lag_s, host.tail_s)
    inside = ~run.is_idle
    inside[1:] &= np.diff(run.updated_s) > 0
    inside[0] = False
    real = np.diff(run.updated_s, prepend=run.updated_s[0])
    predicted = np.diff(updates, axis=0, prepend=updates[:1]).mean(axis=1)
    return UpdateGaps(real[inside], predicted[inside], _alike(run)[inside])


def errors_of(gaps: list[UpdateGaps]) -> GapErrors:
    """Of all runs together."""
    real, ours = (np.concatenate([getattr(each, name) for each in gaps]) for name in ("real_s", "predicted_s"))
    error, total = np.abs(ours - real).mean(), ours.sum() / real.sum() - 1
    noise = _noise([(each.real_s, each.like) for each in gaps])
    return GapErrors(len(real), 1e3 * float(real.mean()), 1e3 * float(error), 1e3 * noise, float(total))


def launches_s(run: Moments, host: HostSection, seed: int) -> Floats:
    """How long launches take, s: [step, draw]."""
    times, number = host.times() or HostTimes(), len(run)
    mean = np.zeros(number)
    rng, ratios = np.random.default_rng(seed), np.ones((number, DRAWS))
    for name, kind in KINDS.items():
        rows = run.kind == kind
        mean[rows] = _launch_s(getattr(times, name), run.steps)[rows]
        spread = getattr(host.spread, name)
        if spread is not None:
            table = np.array(spread.table()) / 2.0**RATIO_SHIFT
            ratios[rows] = rng.choice(table, (int(rows.sum()), DRAWS))
    return np.asarray(mean[:, None] * ratios)


def _launch_s(launch: LaunchTimes, steps: Steps) -> Floats:
    picoseconds = launch.base_ps + launch.per_seq_ps * steps.num_seqs
    return (
        picoseconds + launch.per_prefill_ps * steps.num_prefills + launch.per_token_ps * steps.num_tokens
    ) / PS_PER_S


def _replayed_s(
    run: Moments, device_s: Floats, launch_s: Floats, update_s: Floats, lag_s: float, tail_s: float
) -> Floats:
    """U of every step, [step, draw]."""
    found = np.empty_like(launch_s)
    follows = np.append(run.in_flight[1:] > 0, False)  # whether the next one is launched first
    nobody = np.full(launch_s.shape[1], -np.inf)
    older = before = launched = done = nobody  # U of the last two steps, L and D of the last one
    for k in range(len(run)):
        if run.is_idle[k]:
            begin, done = np.full(launch_s.shape[1], run.schedule_s[k]), nobody
        else:
            begin = np.maximum(older, launched) if run.in_flight[k] else before
        launched = begin + launch_s[k]
        if k and follows[k - 1]:
            found[k - 1] = np.maximum(done, launched) + update_s[k - 1]
        done = np.maximum(np.maximum(done, begin + lag_s) + device_s[k], launched + tail_s)
        found[k] = np.maximum(done, launched) + update_s[k]  # where nothing follows
        older, before = (found[k - 1] if k else nobody), found[k]
    return found


def _alike(run: Moments) -> Ints:
    """A number for steps of the same kinds, decodes and tokens, here and next, within a tenth."""
    steps = run.steps
    of_step = [run.kind, _band(steps.num_decodes), _band(steps.prefill_tokens)]
    following = [np.append(column[1:], 0) for column in of_step]
    _, like = np.unique(np.stack([*of_step, *following]), axis=1, return_inverse=True)
    return np.asarray(like, dtype=np.int64).ravel()


def _band(counts: Ints) -> Ints:
    return np.round(np.log1p(counts) / ALIKE).astype(np.int64)


def _noise(parts: list[tuple[Floats, Any]]) -> float:
    """Mean |gap - mean of its like|, s, made good for the smallness of groups."""
    deviations = []
    for real, like in parts:
        for number in np.unique(like):
            times = real[like == number]
            if len(times) >= LEAST_ALIKE:
                scale = np.sqrt(len(times) / (len(times) - 1))
                deviations.append(scale * np.abs(times - times.mean()))
    return float(np.concatenate(deviations).mean()) if deviations else float("nan")
