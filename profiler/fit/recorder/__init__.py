"""Profiles from a recorder's files: read, fit device and host and way in, hold parts out, say what is not told.

A recorder writes every step of a real server, as its engine's process saw it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.profiler.fit.choose import REGIMES
from simbatch.profiler.fit.facts import profile_of
from simbatch.profiler.fit.recorder.device import EPISODE_STEPS, FittedDevice, fit_device
from simbatch.profiler.fit.recorder.host import (
    FittedHost,
    UpdateGaps,
    errors_of,
    fit_host,
    fit_recorded_way_in,
    gaps_of,
)
from simbatch.profiler.fit.recorder.moments import Moments, RecordedSteps, moments_of, read_steps
from simbatch.profiler.records import MeasuredSteps, concatenate, range_of
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.profile import Profile
from simbatch.sim.cost.provenance import GapFigures, MeasuredRange, RecorderFit
from simbatch.sim.cost.sections import HostSection
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.text import table

SAME = ("model", "tensor_parallel_size", "async_scheduling", "kv_cache_dtype", "vllm_version")
FOLDS = 4
LEAST_STEPS = 40 * EPISODE_STEPS  # to leave a part out
DIGITS = 4


@dataclass(frozen=True)
class Sections:
    """Sections of a profile, and what the fit says of itself."""

    step_time: dict[str, Any]
    host: dict[str, Any]
    front_end: dict[str, Any]
    fit: RecorderFit

    def content(self) -> dict[str, Any]:
        """As keys of a profile."""
        return {"step_time": self.step_time, "host": self.host, "front_end": self.front_end, "recorder": self.fit}


@dataclass(frozen=True)
class RecorderProfile:
    """A profile that was fitted from a recorder's files."""

    profile: Profile
    sections: Sections

    def text(self) -> str:
        """The report for people."""
        return report_text(self)


def fit_recorder(paths: Sequence[Path], *, nearest: str | None = None, name: str | None = None) -> RecorderProfile:
    """Fit a profile to recorder files of one server; raises UserError with the reason where they cannot tell."""
    runs = [read_steps(path) for path in paths]
    _check_same(runs, paths)
    beside = None if nearest is None else load_profile(nearest, folder=Path())
    sections = sections_of(runs, [path.name for path in paths], beside)
    return RecorderProfile(profile_of(sections.content(), runs[0].facts, beside, name), sections)


def sections_of(runs: Sequence[RecordedSteps], names: Sequence[str], nearest: Profile | None = None) -> Sections:
    """Fit all parts; what the files do not tell is NEAREST's, or 0."""
    moments = [moments_of(run) for run in runs]
    device, host = _fit(moments)
    front_end, not_told = _front_end(moments, runs, nearest)
    source = f"fitted from a recorder's files: {', '.join(names)}"
    regimes = {"decode": False, "mixed": True}
    has_prefill = np.concatenate([run.steps.num_prefills for run in moments]) > 0
    shows = {key: round(float(device.is_exact[has_prefill == mixed].mean()), DIGITS) for key, mixed in regimes.items()}
    fit = RecorderFit(
        files=tuple(names),
        steps=sum(len(run) for run in runs),
        requests=sum(len(run.requests) for run in runs),
        recorded_s=round(sum(float(run.updated_s[-1] - run.schedule_s[0]) for run in moments), 3),
        has_device_times=all(run.has_device for run in moments),
        device_shows=shows,
        launches=host.num_launches,
        error=device.error,
        gaps=_held_out(moments),
        taken={**_hidden(moments, shows), **host.taken, **not_told},
        max_num_seqs=runs[0].facts.get("max_num_seqs"),
        max_num_batched_tokens=runs[0].facts.get("max_num_batched_tokens"),
        async_scheduling=moments[0].is_async,
        range=_range(moments, device),
    )
    step_time = device.step_time.model_dump(mode="json", exclude_defaults=True) | {"form": "two_regime"}
    return Sections(step_time, {"source": source, **host.section}, {"source": source, **front_end}, fit)


def _fit(moments: list[Moments]) -> tuple[FittedDevice, FittedHost]:
    device = fit_device(moments)
    return device, fit_host(moments, device.took_s, device.lag_s, device.tail_s)


def _check_same(runs: Sequence[RecordedSteps], paths: Sequence[Path]) -> None:
    """Files of different servers are no one profile's."""
    first = runs[0].facts
    for run, path in zip(runs[1:], paths[1:], strict=True):
        for key in SAME:
            if run.facts.get(key) != first.get(key):
                rule = f"is of another server than {paths[0].name}: {key} is {run.facts.get(key)!r}"
                raise UserError(Problem(str(path), rule, first.get(key), "fit them apart"))


def _front_end(
    moments: list[Moments], runs: Sequence[RecordedSteps], nearest: Profile | None
) -> tuple[dict[str, float], dict[str, str]]:
    """Before the engine from the stamps; behind it there is nothing in the file."""
    other = None if nearest is None else nearest.front_end
    of_nearest = {} if other is None else other.model_dump(exclude_defaults=True, exclude={"source"})
    origin = "0" if nearest is None or other is None else f"{nearest.name}'s"
    taken = {"front end, chunks and the way to the client": f"not in the files: {origin}"}
    way_in = fit_recorded_way_in([(each, run.requests) for each, run in zip(moments, runs, strict=True)])
    if way_in is None:
        taken["front end, way in"] = f"no stamps of the API server: {origin}"
        return of_nearest, taken
    told = {
        "per_request_s": way_in.per_request_s,
        "per_prompt_token_s": way_in.per_prompt_token_s,
        "network_s": way_in.delay_s + of_nearest.get("network_s", 0.0),
    }
    return of_nearest | {key: float(f"{value:.{DIGITS}g}") for key, value in told.items()}, taken


def _hidden(moments: list[Moments], shows: Mapping[str, float]) -> dict[str, str]:
    taken = {}
    for key, what in (("decode", "decodes on the device"), ("mixed", "prefills on the device")):
        if shows[key] < 0.1:
            taken[what] = (
                f"{shows[key]:.0%} of them show, the rest hides behind launches: the most that they can have taken"
            )
    if not moments[0].is_async and not moments[0].has_device:
        taken["launches"] = "synchronous steps have them inside the device's time: 0"
    return taken


def _held_out(moments: list[Moments]) -> GapFigures | None:
    """Each part in turn left out of the fit and replayed; None where there is too little, or a part lacks a regime."""
    if sum(len(run) for run in moments) < LEAST_STEPS:
        return None
    gaps: list[UpdateGaps] = []
    for fold in range(FOLDS):
        inside = [part for run in moments for i, part in enumerate(_parts(run)) if i % FOLDS != fold]
        outside = [part for run in moments for i, part in enumerate(_parts(run)) if i % FOLDS == fold]
        try:
            device, host = _fit(inside)
        except (UserError, ValueError):
            return None
        section, cost = HostSection.model_validate(host.section), device.step_time.cost_model()
        gaps += [gaps_of(part, cost, section) for part in outside if len(part) > 1]
    errors = errors_of(gaps)
    return GapFigures(
        number=errors.number,
        noise_ms=None if np.isnan(errors.noise_ms) else round(errors.noise_ms, DIGITS),
        **{key: round(getattr(errors, key), DIGITS) for key in ("mean_ms", "error_ms", "total")},
    )


def _parts(run: Moments) -> list[Moments]:
    """Four or more of equal length, so that each has whole stretches."""
    number = min(5 * FOLDS, max(FOLDS, len(run) // EPISODE_STEPS))
    edges = np.linspace(0, len(run), number + 1).round().astype(int)
    return [run.part(int(begin), int(end)) for begin, end in pairwise(edges)]


def _range(moments: list[Moments], device: FittedDevice) -> MeasuredRange:
    steps = concatenate([run.steps for run in moments])
    return MeasuredRange.model_validate(
        range_of(MeasuredSteps(steps, device.took_s, np.zeros(len(steps), dtype=np.int64)))
    )


def report_text(fitted: RecorderProfile) -> str:
    """What was covered, the held-out errors, what host and front end take, and what is not told."""
    fit, host = fitted.sections.fit, fitted.sections.host
    clock = "the device's own clock" if fit.has_device_times else "when waits for the device ended"
    lines = [
        f"{fitted.profile.name}: {fit.steps:,} steps and {fit.requests:,} requests of {fit.recorded_s:,.0f} s, "
        f"{'asynchronous' if fit.async_scheduling else 'synchronous'} scheduling, device times by {clock}",
        "",
    ]
    rows = []
    for regime in REGIMES:
        error = getattr(fit.error, regime)
        rows.append((regime, f"{error.num_steps:,}", f"{error.mape:.1%}", f"{error.p95:.1%}", f"{error.bias:+.1%}"))
    lines += table(("device, held out", "steps", "MAPE", "p95", "bias"), rows)
    shares = ", ".join(f"{share:.0%} of {name} steps" for name, share in fit.device_shows.items())
    lines += [f"(shows in {shares}; the rest hides behind launches)", ""]
    if fit.gaps is not None:
        floor = "" if fit.gaps.noise_ms is None else f"; {fit.gaps.noise_ms:.3f} ms of it no model can tell"
        off = f"{fit.gaps.error_ms:.3f} ms off of {fit.gaps.mean_ms:.3f} on average{floor}"
        lines.append(f"gaps between updates, held out: {off}; their sum {fit.gaps.total:+.1%}")
    lines += ["host, ms:", *_host(host, fit.launches)]
    shown = {key: value for key, value in fitted.sections.front_end.items() if key != "source"}
    lines.append(
        "front end, ms: " + ", ".join(f"{key.removesuffix('_s')} {1e3 * value:.4g}" for key, value in shown.items())
    )
    lines += [f"not told: {key}: {what}" for key, what in fit.taken.items()]
    return "\n".join(line.rstrip() for line in lines)


def report_dict(fitted: RecorderProfile) -> dict[str, Any]:
    """The report for scripts (`--json`)."""
    return {
        "name": fitted.profile.name,
        "recorder": fitted.sections.fit.model_dump(mode="json"),
        "host": fitted.sections.host,
        "front_end": fitted.sections.front_end,
    }


def _host(host: dict[str, Any], numbers: dict[str, int]) -> list[str]:
    parts = {f"launch {kind} ({numbers[kind]:,})": figures for kind, figures in host["launch"].items()}
    parts |= {"update": host["update"], "admit": host["admit"], "": {"lag_s": host["lag_s"], "tail_s": host["tail_s"]}}
    lines = []
    for name, figures in parts.items():
        told = ", ".join(f"{key.removesuffix('_s')} {1e3 * value:.4g}" for key, value in figures.items() if value)
        if told:
            lines.append(f"  {name:<26}{told}")
    return lines
