"""What `simbatch validate` prints: real and simulated side by side, with the error of each figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from simbatch.profiler.validating.figures import CLIENT, ENGINE, Figure
from simbatch.sim.text import number, percent

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from simbatch.profiler.validating.validation import Validation

SECTIONS = {
    CLIENT: "as the client counts",
    ENGINE: "as the engine counts: from taking in",
}


def show(console: Console, validation: Validation) -> None:
    """The whole report."""
    for part in _parts(validation):
        console.print(part, markup=False)


def _parts(validation: Validation) -> Iterator[RenderableType]:
    yield _figure_table(validation)
    if validation.steps:
        yield ""
        yield _step_table(validation)
    yield ""
    profile = validation.simulated.result.summary["simbatch"]["profile"]
    if "load" in validation.source:
        yield f"- recorded by {validation.source['kind']}: {validation.source['load']}"
    yield f"- simulated from profile {profile['name']}; its error: {profile['error'] or 'not stated'}"
    yield from (f"- {note}" for note in validation.all_notes)
    if validation.bounds is not None:
        yield _verdict(validation)


def _figure_table(validation: Validation) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    repeats, has_bounds = len(validation.real), validation.bounds is not None
    table = Table(box=SIMPLE_HEAD, title=f"{validation.name}: real and simulated", title_justify="left", pad_edge=False)
    table.add_column(SECTIONS[CLIENT])
    headers = [f"real, median of {repeats}", "spread", "min", "max"] if repeats > 1 else ["real"]
    for header in [*headers, "simulated", "error", *(["bound", ""] if has_bounds else [])]:
        table.add_column(header, justify="right")
    previous: Figure | None = None
    for figure in validation.figures:
        if previous is not None and _group(previous) != _group(figure):
            table.add_section()
        if previous is not None and previous.clock != figure.clock:
            table.add_row(SECTIONS[figure.clock], style="bold")
        table.add_row(*_cells(figure, repeats > 1, has_bounds))
        previous = figure
    return table


def _cells(figure: Figure, has_repeats: bool, has_bounds: bool) -> Sequence[str]:
    real = [_value(figure, figure.median)]
    if has_repeats:
        spread = "-" if figure.spread is None else f"±{figure.spread:.1%}"
        real += [spread, _value(figure, min(figure.real)), _value(figure, max(figure.real))]
    error = "-" if figure.error is None else f"{figure.error:+.1%}"
    bound = []
    if has_bounds:
        bound = [_bound_text(figure), {None: "", True: "ok", False: "OUTSIDE"}[figure.is_within]]
    return [figure.metric.label, *real, _value(figure, figure.simulated), error, *bound]


def _bound_text(figure: Figure) -> str:
    return "" if figure.bound is None else f"±{100 * figure.bound:g} %"


def _value(figure: Figure, value: float | None) -> str:
    return percent(value) if figure.metric.is_share else number(value, figure.metric.decimals)


def _group(figure: Figure) -> str:
    key = figure.metric.key.removesuffix("_ms")
    latency = next((name for name in ("ttft", "tpot", "e2el", "itl") if key.endswith(name)), None)
    return f"{figure.clock} {latency or key.startswith('simbatch')}"


def _step_table(validation: Validation) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "where an error comes from: the real engine's own steps, and what the profile says of them"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for header in ("steps", "number", "real, mean (ms)", "profile (ms)", "error"):
        table.add_column(header, justify="left" if header == "steps" else "right")
    for row in validation.steps:
        error = "" if row["error"] is None else f"{row['error']:+.1%}"
        figures = (number(row["real_ms"], 3), number(row["profile_ms"], 3), error)
        table.add_row(row["regime"], f"{row['num_steps']:,}", *figures)
    if validation.admission_ms is not None:
        real, profile = (number(validation.admission_ms[side], 3) for side in ("real", "profile"))
        table.add_row("taking a request in", "", real, profile, "")
    return table


def _verdict(validation: Validation) -> str:
    outside = validation.outside
    rule = "each within its bound"
    if len(validation.real) > 1:
        rule += ", or within twice the real runs' own spread where that is larger"
    if validation.is_within_bounds:
        return f"within the bounds ({rule})"
    unchecked = [f"{name} (the real run does not tell it)" for name in validation.unchecked]
    names = ", ".join([*(figure.metric.key for figure in outside), *unchecked])
    return f"OUTSIDE the bounds: {names} ({rule})"
