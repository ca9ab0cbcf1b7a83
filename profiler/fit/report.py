"""What a fit is worth, for people and for scripts, and a picture of predicted against measured step times."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simbatch.profiler.fit import FittedProfile
from simbatch.profiler.fit.choose import REGIMES, errors_by_regime
from simbatch.sim.cost.provenance import ErrorFigures, FitError
from simbatch.sim.report.style import INK, colours, duration_text, figure, headline
from simbatch.sim.text import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from simbatch.profiler.records import Floats


def report_text(fitted: FittedProfile) -> str:
    """Tables of errors by regime and of the forms, then the notes."""
    error = _error(fitted)
    lines = [
        f"{fitted.profile.name}: {error.design}",
        "",
    ]
    rows = [_figures(regime, getattr(error, regime), error.noise_floor.get(regime)) for regime in REGIMES]
    rows += [_figures(f"decode, {band} seqs", figures, None) for band, figures in error.decode_bands.items()]
    lines += [*table(("steps", "number", "MAPE", "p95", "bias", "noise floor"), rows), ""]
    forms = []
    for form, shares in error.forms.items():
        parts = [part for part, chosen in fitted.choice.chosen.items() if chosen == form]
        forms.append((form, *(f"{shares[regime]:.1%}" for regime in REGIMES), ", ".join(parts)))
    lines += table(("form", *REGIMES, "chosen for"), forms, texts=("chosen for",))
    lines += ["", *(f"- {note}" for note in fitted.profile.notes)]
    return "\n".join(line.rstrip() for line in lines)


def report_dict(fitted: FittedProfile) -> dict[str, Any]:
    """The report for scripts (`--json`)."""
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


def _figures(what: str, error: ErrorFigures, floor: float | None) -> tuple[str, ...]:
    shares = (f"{error.mape:.1%}", f"{error.p95:.1%}", f"{error.bias:+.1%}", "-" if floor is None else f"{floor:.1%}")
    return what, f"{error.num_steps:,}", *shares


def _error(fitted: FittedProfile) -> FitError:
    error = fitted.profile.error
    assert error is not None, "a fit has an error"
    return error


BAND = 0.10
MANY = 8  # highest over lowest time: fewer labels above that


def plot_fit(fitted: FittedProfile, path: Path) -> None:
    """A picture with one part per regime: held-out predictions, the diagonal, a band of +-10 %."""
    errors = errors_by_regime(fitted.data, fitted.choice.held_out_s)
    with figure(path, 11.5, 4.6) as drawing:
        headline(drawing, f"Held-out step times: {fitted.profile.name}")
        for axes, regime in zip(drawing.subplots(1, len(REGIMES)), REGIMES, strict=True):
            rows = fitted.data.regime(regime)
            error = errors[regime]
            axes.set_title(f"{regime}, {error.num_steps:,} steps\nmean error {error.mape:.1%}, sum {error.bias:+.1%}")
            measured_ms, predicted_ms = (1e3 * times[rows] for times in (fitted.data.time_s, fitted.choice.held_out_s))
            _regime(axes, measured_ms, predicted_ms, colours(REGIMES)[regime])


def _regime(axes: Axes, measured_ms: Floats, predicted_ms: Floats, colour: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low = 0.8 * min(measured_ms.min(), predicted_ms.min())
    high = 1.25 * max(measured_ms.max(), predicted_ms.max())
    ends = np.array([low, high])
    axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color=INK, alpha=0.1, lw=0, label="±10 %")
    axes.plot(ends, ends, color=INK, lw=0.8)
    axes.scatter(measured_ms, predicted_ms, s=9, color=colour, alpha=0.5, lw=0)
    axes.set_xlabel("measured")
    axes.set_ylabel("predicted, fitted on other episodes")
    axes.legend(loc="upper left")
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high / low > MANY else (1.0, 2.0, 4.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: duration_text(value)))
        axis.set_minor_formatter(NullFormatter())
