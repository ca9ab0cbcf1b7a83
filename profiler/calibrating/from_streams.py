"""From results to a profile: read, judge, fit, say what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simbatch.profiler.calibrating.fit import MAX_CAPTURE, Steps, fit_parts
from simbatch.profiler.calibrating.parts import Parts
from simbatch.profiler.calibrating.priors import Shape, of_name, of_profile
from simbatch.profiler.calibrating.reading import Run, Seen, budget_of, read_results, runs_of
from simbatch.profiler.calibrating.refine import content_of
from simbatch.profiler.calibrating.replay import Means
from simbatch.profiler.calibrating.worth import (
    batch_span,
    bounds,
    different_servers,
    errors_of,
    halves,
    limit_of,
    next_run,
    predicted,
    total_error,
    warnings_of,
)
from simbatch.sim.cost.profile import InlineProfile, MeasuredProfile, Profile, load_profile
from simbatch.sim.cost.stream_fit import StreamFit
from simbatch.sim.errors import Problem, UserError

NO_END = 2**30  # KV blocks where the cache was never full
MAX_MODEL_LEN = 131_072
DIGITS = 4
SEATS = 1024  # while fitting, where no limit is known: more than any result had at once


@dataclass(frozen=True)
class StreamProfile:
    """A profile, the parts that it was made of, and what to run next."""

    profile: Profile
    parts: Parts
    steps: Steps
    runs: tuple[Run, ...]
    next_run: str

    def text(self) -> str:
        """The report for people."""
        from simbatch.profiler.calibrating.report import report_text

        return report_text(self)


def fit_streams(
    paths: Sequence[Path],
    *,
    nearest: str | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    name: str | None = None,
) -> StreamProfile:
    """Fit a profile to detailed results of one server; raises UserError with the reasons where they cannot tell."""
    return fit_seen(
        read_results(paths),
        nearest=None if nearest is None else load_profile(nearest, folder=Path()),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        name=name,
    )


def fit_seen(
    seen: Sequence[Seen],
    *,
    nearest: Profile | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    name: str | None = None,
    is_judged: bool = True,
) -> StreamProfile:
    """The same of results that have been read; without `is_judged` no run is predicted from the others."""
    shape = of_name(next((each.model for each in seen if each.model), None)) if nearest is None else of_profile(nearest)
    default = None if nearest is None else nearest.default_max_num_batched_tokens
    budget, unsure = budget_of(seen, max_num_batched_tokens, default)
    runs = runs_of(seen, budget)
    if (why := different_servers(runs)) is not None:
        raise UserError(Problem("FILES", f"are of different servers: {why}", mend="fit them apart"))
    seats = max_num_seqs or max((limit for run in runs if (limit := limit_of(run)[0])), default=None)
    settings = {
        "max_num_batched_tokens": budget,
        "max_num_seqs": min(seats or SEATS, budget),
        "enable_prefix_caching": False,
    }
    parts, steps = fit_parts(runs, shape, settings)
    settings["async_scheduling"] = steps.mixed.is_async
    fitted = [errors_of(content_of(parts), settings, run) for run in runs]
    others = predicted(runs, shape, settings) if is_judged else [None] * len(runs)
    taken = _taken(parts, steps, runs, nearest)
    if unsure is not None:
        taken["max_num_batched_tokens"] = f"{unsure}; {budget:,} is {'the nearest profile' if nearest else 'vLLM'}'s"
    fit = StreamFit(
        runs=tuple(_seen_run(run, ours, theirs) for run, ours, theirs in zip(runs, fitted, others, strict=True)),
        halves=_rounded(halves(runs, shape)),
        sure={key: round(min(value, 99.0), 3) for key, value in _sure(steps).items()},
        taken=taken,
        warnings=tuple(warnings_of(runs, steps)),
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        async_scheduling=steps.mixed.is_async,
        kv_tokens=max(int((run.columns.context + run.columns.num_decodes).max()) for run in runs),
        range=_range(runs),
    )
    profile = _profile(parts, fit, seen, nearest, name)
    return StreamProfile(profile, parts, steps, tuple(runs), next_run(runs, steps))


def _profile(parts: Parts, fit: StreamFit, seen: Sequence[Seen], nearest: Profile | None, name: str | None) -> Profile:
    models = {each.model for each in seen if each.model}
    source = f"fitted from the streams of {', '.join(each.name for each in seen)}"
    sections = parts.sections()
    own: dict[str, Any] = {
        "name": name or "-".join(["streams", *(model.rsplit("/", 1)[-1].lower() for model in models)]),
        **sections,
        "host": {"source": source, **sections["host"]},
        "front_end": {"source": source, **sections["front_end"]},
        "streams": fit,
    }
    if not isinstance(nearest, MeasuredProfile):
        length = MAX_MODEL_LEN if nearest is None else nearest.max_model_len
        blocks = NO_END if nearest is None else nearest.num_gpu_blocks_for()
        return InlineProfile.model_validate({"num_gpu_blocks": blocks, "max_model_len": length, **own})
    kept = nearest.model_dump(exclude={"noise", "real_runs", "request_overhead_s", "client_overhead_s"})
    return MeasuredProfile.model_validate(
        {
            **kept,
            **own,
            "source": source,
            "command": "simbatch fit",
            "estimate": False,
            "error": None,
            "range": None,
            "notes": (
                f"device, host and front end: fitted from streams; model, weights, memory and KV blocks: of {nearest.name}",
            ),
        }
    )


def _seen_run(run: Run, ours: Means, theirs: Means | None) -> dict[str, Any]:
    columns = run.columns
    return {
        "file": run.seen.name,
        "requests": len(run.seen.streams),
        "steps": len(run.seen.steps),
        "max_concurrency": run.seen.streams.max_concurrency,
        "batch": bounds(columns.num_decodes[columns.num_decodes > 0]),
        "prompt_tokens": bounds(run.seen.streams.num_prompt_tokens),
        "prefill_steps": int((columns.tokens > 0).sum()),
        "fitted": {key: round(value, DIGITS) for key, value in ours._asdict().items()},
        "predicted": None if theirs is None else {key: round(value, DIGITS) for key, value in theirs._asdict().items()},
    }


def _sure(steps: Steps) -> dict[str, float]:
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


HARDLY = 0.5


def _taken(parts: Parts, steps: Steps, runs: Sequence[Run], nearest: Profile | None) -> dict[str, str]:
    """What the streams do not tell, and what stands there instead."""
    origin = "of no profile: what transformers usually have" if nearest is None else f"{nearest.name}'s, scaled"
    taken = {"KV capacity": "never reached: simulations have no end of it" if nearest is None else f"{nearest.name}'s"}
    taken["attention"] = origin
    taken["context beside prefills"] = origin
    if not steps.price.is_told:
        taken["decode context"] = origin
    mixed = steps.mixed
    for kind, key, what in (
        (1, "piecewise", f"up to {MAX_CAPTURE} tokens"),
        (2, "none", f"above {MAX_CAPTURE} tokens"),
    ):
        if kind not in mixed.kinds:
            taken[f"launch {key}"] = f"no step with prefills of {what} was seen: in proportion to the other kind"
        elif mixed.sure[f"{key}_s"] > HARDLY:
            taken[f"launch {key}"] = "hidden behind the device: shorter than the steps beside it"
    if mixed.sure["graph_s"] > HARDLY:
        taken["launch graph"] = "hidden behind the device: shorter than a decode's step"
    for key, what in (("per_seq_s", "launch per request"), ("per_prefill_s", "launch per prefill")):
        if mixed.sure[key] > HARDLY:
            taken[what] = "does not show in these loads"
    if not parts.way_in.num_requests:
        taken["front end, work a request"] = "no request came to a busy engine: usual figures"
    low, high = batch_span(runs)
    taken["decodes outside"] = f"batches below {low:.0f} and above {high:.0f}: along the line of those seen"
    return taken


def _range(runs: Sequence[Run]) -> dict[str, Any]:
    """What was seen, as every profile says it."""
    rows = [run.columns for run in runs]
    is_mixed = [columns.tokens > 0 for columns in rows]

    def of(values: Sequence[Any], chosen: Sequence[Any]) -> tuple[int, int]:
        joined = np.concatenate([v[c] for v, c in zip(values, chosen, strict=True)])
        return (int(joined.min()), int(np.ceil(joined.max()))) if len(joined) else (0, 0)

    decodes = [~mixed & (columns.num_decodes > 0) for mixed, columns in zip(is_mixed, rows, strict=True)]
    beside = [mixed & (columns.num_decodes > 0) for mixed, columns in zip(is_mixed, rows, strict=True)]
    mean = [columns.context / np.maximum(1, columns.num_decodes) for columns in rows]
    n, context, tokens = ([getattr(columns, key) for columns in rows] for key in ("num_decodes", "context", "tokens"))
    history = [
        np.maximum(0, columns.attention - columns.tokens**2 / np.maximum(1, columns.num_prefills))
        / np.maximum(1, 2 * columns.tokens)
        for columns in rows
    ]
    total = [a + b for a, b in zip(n, tokens, strict=True)]
    return {
        "decode": {
            "num_decodes": of(n, decodes),
            "mean_context": of(mean, decodes),
            "decode_context": of(context, decodes),
        },
        "mixed": {
            "num_tokens": of(total, is_mixed),
            "prefill_tokens": of(tokens, is_mixed),
            "mean_history": of(history, is_mixed),
            "num_decodes": of(n, is_mixed),
            "mean_context": of(mean, beside),
            "decode_context": of(context, beside),
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


__all__ = ["StreamProfile", "fit_seen", "fit_streams", "total_error"]
