"""Profiles from streams, the detailed results of a server that nobody touches: read, judge, fit, report what it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from simbatch.profiler.fit.facts import MAX_MODEL_LEN, NO_END, Priors, beside, of_name, of_profile
from simbatch.profiler.fit.streams.covered import growth_of, range_of, seen_run, sure_of, taken_of
from simbatch.profiler.fit.streams.fit import FittedSteps, Parts, content_of, fit_parts
from simbatch.profiler.fit.streams.runs import Seen, StreamRun, budget_of, read_results, runs_of
from simbatch.profiler.fit.streams.worth import (
    different_servers,
    errors_of,
    halves,
    limit_of,
    met_by_none,
    next_run,
    predicted,
    warnings_of,
)
from simbatch.sim.cost.by_name import load_profile
from simbatch.sim.cost.gpus import capture_size_of_model
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile
from simbatch.sim.cost.provenance import MeanErrors, MeasuredRange, SeenRun, StreamFit
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.scenario.engine import EngineSettings
from simbatch.sim.scenario.rules import capture_sizes
from simbatch.sim.text import table

SEATS = 1024  # while fitting, where no limit is known: more than any result had at once


T = TypeVar("T")


@dataclass(frozen=True)
class StreamProfile:
    """A profile, the parts that it was made of, and what to run next."""

    profile: Profile
    parts: Parts
    steps: FittedSteps
    runs: tuple[StreamRun, ...]
    next_run: str

    @property
    def fit(self) -> StreamFit:
        """What the profile says of its fit."""
        assert self.profile.streams is not None, "a fit from streams says so"
        return self.profile.streams

    def text(self) -> str:
        """The report for people."""
        return report_text(self)


def fit_streams(
    paths: Sequence[Path],
    *,
    nearest: str | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> StreamProfile:
    """Fit a profile to detailed results of one server; raises UserError with the reasons where they cannot tell.

    `progress` is told the number of its parts that are done, of `num_parts`.
    """
    return fit_seen(
        read_results(paths),
        nearest=None if nearest is None else load_profile(nearest, folder=Path()),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        name=name,
        progress=progress,
    )


def num_parts(num_results: int) -> int:
    """Of a fit: reading, fitting, and of each result what is simulated, from all and from the others."""
    return 2 + 2 * num_results


def fit_seen(
    seen: Sequence[Seen],
    *,
    nearest: Profile | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    name: str | None = None,
    is_judged: bool = True,
    progress: Callable[[int], None] | None = None,
) -> StreamProfile:
    """Fit a profile to results that have been read; without `is_judged` no run is predicted from the others."""
    done = count(1)

    def tell(part: T) -> T:
        if progress is not None:
            progress(next(done))
        return part

    default = None if nearest is None else nearest.default_max_num_batched_tokens
    budget, unsure = budget_of(seen, max_num_batched_tokens, default)
    shape, assumed = _shape(seen, nearest, max_num_seqs, budget)
    runs = tell(runs_of(seen, budget))
    if (why := different_servers(runs)) is not None:
        raise UserError(Problem("FILES", f"are of different servers: {why}", mend="fit them apart"))
    seats = max_num_seqs or max((limit for run in runs if (limit := limit_of(run)[0])), default=None)
    settings = {
        "max_num_batched_tokens": budget,
        "max_num_seqs": min(seats or SEATS, budget),
        "enable_prefix_caching": False,
    }
    parts, steps = tell(fit_parts(runs, shape, settings))
    settings["async_scheduling"] = steps.mixed.is_async
    fitted = [tell(errors_of(content_of(parts), settings, run)) for run in runs]
    if (why := met_by_none(runs, fitted)) is not None:
        raise UserError(Problem("FILES", why, mend="fit results of one server and one way to start it"))
    others = [tell(predicted(run, runs, shape, settings)) if is_judged else None for run in runs]
    taken = taken_of(parts, steps, runs, nearest, assumed)
    if unsure is not None:
        taken["max_num_batched_tokens"] = f"{unsure}; {budget:,} is {'the nearest profile' if nearest else 'vLLM'}'s"
    fit = StreamFit(
        runs=tuple(
            SeenRun.model_validate(seen_run(run, ours, theirs))
            for run, ours, theirs in zip(runs, fitted, others, strict=True)
        ),
        halves=halves(runs, shape),
        sure={key: round(min(value, 99.0), 3) for key, value in sure_of(steps).items()},
        taken=taken,
        warnings=tuple(warnings_of(runs, steps)),
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        async_scheduling=steps.mixed.is_async,
        kv_tokens=max(int((run.columns.context + run.columns.num_decodes).max()) for run in runs),
        range=MeasuredRange.model_validate(range_of(runs)),
    )
    profile = _profile(parts, fit, growth_of(steps), seen, nearest, name)
    return StreamProfile(profile, parts, steps, tuple(runs), next_run(runs, steps))


def _shape(
    seen: Sequence[Seen], nearest: Profile | None, max_num_seqs: int | None, budget: int
) -> tuple[Priors, str | None]:
    """What the nearest profile or the model's name says, and what is assumed of the seats, by which graphs end.

    Seats that were reached do not say how many there are: memory may have ended there.
    """
    model = next((each.model for each in seen if each.model), None)
    shape = of_name(model) if nearest is None else of_profile(nearest)
    of_model = capture_size_of_model(model or "") if nearest is None else nearest.capture_size_of_model
    sizes = capture_sizes(EngineSettings(), max_num_seqs or SEATS, budget, shape.max_capture, of_model=of_model)
    shape = shape._replace(max_capture=max(sizes, default=0))
    if max_num_seqs is not None or of_model is not None or not sizes:
        return shape, None
    graphs = f"CUDA graphs end at {shape.max_capture:,} tokens, as with {-(-shape.max_capture // 2):,} seats or more"
    return shape, f"not said by --max-num-seqs: {graphs}; which kind a launch is hangs on it"


def _profile(
    parts: Parts,
    fit: StreamFit,
    growth: dict[str, float] | None,
    seen: Sequence[Seen],
    nearest: Profile | None,
    name: str | None,
) -> Profile:
    models = {each.model for each in seen if each.model}
    source = f"fitted from the streams of {', '.join(each.name for each in seen)}"
    sections = parts.sections()
    own: dict[str, Any] = {
        "name": name or "-".join(["streams", *(model.rsplit("/", 1)[-1].lower() for model in models)]),
        **sections,
        "host": {"source": source, **sections["host"], "growth": growth},
        "front_end": {"source": source, **sections["front_end"]},
        "streams": fit,
    }
    if not isinstance(nearest, MeasuredProfile):
        length = MAX_MODEL_LEN if nearest is None else nearest.max_model_len
        blocks = NO_END if nearest is None else nearest.num_gpu_blocks_for()
        return InlineProfile.model_validate({"num_gpu_blocks": blocks, "max_model_len": length, **own})
    content = beside(nearest, source, "streams") | own
    return MeasuredProfile.model_validate(content)


def report_text(fitted: StreamProfile) -> str:
    """What was covered, how well the results are met and predicted, what is not told, and what to run next."""
    fit = fitted.fit
    limit = "" if fit.max_num_seqs is None else f", max_num_seqs {fit.max_num_seqs}"
    lines = [
        f"{fitted.profile.name}: {fit.summary().split(';')[0]}",
        f"the server: max_num_batched_tokens {fit.max_num_batched_tokens:,}{limit}, "
        f"{'asynchronous' if fit.async_scheduling else 'synchronous'} scheduling",
        "",
    ]
    rows: list[Sequence[str]] = []
    for run in fit.runs:
        seen = f"{run.requests:,}", f"{run.steps:,}", _span(run.batch), _span(run.prompt_tokens)
        rows.append((run.file, *seen, *_errors(run.fitted)))
        if run.predicted is not None:
            rows.append(("  from the others alone", "", "", "", "", *_errors(run.predicted)))
    lines += table(("result", "requests", "steps", "batch", "prompts", "TTFT", "TPOT", "E2EL"), rows)
    if fit.halves is not None:
        lines.append(f"first halves predict the time of the second ones' steps {fit.halves:+.1%} off")
    lines += ["", "how sure (standard error over value):"]
    lines += [f"  {key:<28}{value:.0%}" if value < 1 else f"  {key:<28}not told" for key, value in fit.sure.items()]
    lines += ["not told by these streams:", *(f"  {key}: {what}" for key, what in fit.taken.items())]
    lines += [f"warning: {text}" for text in fit.warnings]
    lines.append(f"to know more: {fitted.next_run}")
    return "\n".join(line.rstrip() for line in lines)


def report_dict(fitted: StreamProfile) -> dict[str, Any]:
    """The report for scripts (`--json`)."""
    return {
        "name": fitted.profile.name,
        "streams": fitted.fit.model_dump(mode="json"),
        "next_run": fitted.next_run,
    }


def _errors(errors: MeanErrors) -> tuple[str, str, str]:
    return f"{errors.ttft:+.1%}", f"{errors.tpot:+.1%}", f"{errors.e2el:+.1%}"


def _span(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,}-{pair[1]:,}"
