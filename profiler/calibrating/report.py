"""What a fit from streams says to people, and to scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simbatch.sim.cost.provenance import MeanErrors, StreamFit

if TYPE_CHECKING:
    from simbatch.profiler.calibrating.from_streams import StreamProfile


def report_text(fitted: StreamProfile) -> str:
    """What was covered, how well the results are met and predicted, what is not told, and what to run next."""
    fit = _fit(fitted)
    limit = "" if fit.max_num_seqs is None else f", max_num_seqs {fit.max_num_seqs}"
    lines = [
        f"{fitted.profile.name}: {fit.summary().split(';')[0]}",
        f"the server: max_num_batched_tokens {fit.max_num_batched_tokens:,}{limit}, "
        f"{'asynchronous' if fit.async_scheduling else 'synchronous'} scheduling",
        "",
        _row("result", "requests", "steps", "batch", "prompts", "TTFT", "TPOT", "E2EL"),
    ]
    for run in fit.runs:
        lines.append(
            _row(
                run.file,
                f"{run.requests:,}",
                f"{run.steps:,}",
                _span(run.batch),
                _span(run.prompt_tokens),
                *_errors(run.fitted),
            )
        )
        if run.predicted is not None:
            lines.append(_row("  from the others alone", "", "", "", "", *_errors(run.predicted)))
    if fit.halves is not None:
        lines.append(f"first halves predict the time of the second ones' steps {fit.halves:+.1%} off")
    lines += ["", "how sure (standard error over value):"]
    lines += [f"  {key:<28}{value:.0%}" if value < 1 else f"  {key:<28}not told" for key, value in fit.sure.items()]
    lines += ["not told by these streams:", *(f"  {key}: {what}" for key, what in fit.taken.items())]
    lines += [f"warning: {text}" for text in fit.warnings]
    lines.append(f"to know more: {fitted.next_run}")
    return "\n".join(line.rstrip() for line in lines)


def report_dict(fitted: StreamProfile) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "name": fitted.profile.name,
        "streams": _fit(fitted).model_dump(mode="json"),
        "next_run": fitted.next_run,
    }


def _fit(fitted: StreamProfile) -> StreamFit:
    fit = fitted.profile.streams
    assert fit is not None, "a fit from streams says so"
    return fit


def _errors(errors: MeanErrors) -> tuple[str, str, str]:
    return f"{errors.ttft:+.1%}", f"{errors.tpot:+.1%}", f"{errors.e2el:+.1%}"


def _span(pair: tuple[int, int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,}-{pair[1]:,}"


def _row(first: str, *others: str) -> str:
    shown = first if len(first) <= 34 else f"...{first[-31:]}"
    return f"{shown:<36}" + "".join(f"{other:>12}" for other in others)
