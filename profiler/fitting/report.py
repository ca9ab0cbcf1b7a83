"""What a fit is worth, for people and for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simbatch.profiler.fitting.choose import REGIMES
from simbatch.sim.cost.provenance import ErrorFigures, FitError

if TYPE_CHECKING:
    from simbatch.profiler.fitting.from_samples import FittedProfile


def report_text(fitted: FittedProfile) -> str:
    """Tables of errors by regime and of the forms, then the notes."""
    error = _error(fitted)
    lines = [
        f"{fitted.profile.name}: {error.design}",
        "",
        _row("steps", "number", "MAPE", "p95", "bias", "noise floor"),
    ]
    lines += [_figures(regime, getattr(error, regime), error.noise_floor.get(regime)) for regime in REGIMES]
    lines += [_figures(f"decode, {band} seqs", figures, None) for band, figures in error.decode_bands.items()]
    lines += ["", _row("form", *REGIMES, "chosen for")]
    for form, shares in error.forms.items():
        parts = [part for part, chosen in fitted.choice.chosen.items() if chosen == form]
        lines.append(_row(form, *(f"{shares[regime]:.1%}" for regime in REGIMES), ", ".join(parts)))
    lines += ["", *(f"- {note}" for note in fitted.profile.notes)]
    return "\n".join(line.rstrip() for line in lines)


def report_dict(fitted: FittedProfile) -> dict[str, Any]:
    """The same for `--json`."""
    profile = fitted.profile
    return {
        "name": profile.name,
        "chosen": fitted.choice.chosen,
        "error": _error(fitted).model_dump(mode="json"),
        "drift": None if fitted.drift is None else round(fitted.drift.last - 1, 5),
        "is_rescaled": fitted.is_rescaled,
        "request_overhead_s": profile.request_overhead_s,
        "notes": list(profile.notes),
    }


def _figures(what: str, error: ErrorFigures, floor: float | None) -> str:
    shares = (f"{error.mape:.1%}", f"{error.p95:.1%}", f"{error.bias:+.1%}", "-" if floor is None else f"{floor:.1%}")
    return _row(what, f"{error.num_steps:,}", *shares)


def _row(first: str, *others: str) -> str:
    return f"{first:<22}" + "".join(f"{other:>13}" for other in others)


def _error(fitted: FittedProfile) -> FitError:
    error = fitted.profile.error
    assert error is not None, "a fit has an error"
    return error
