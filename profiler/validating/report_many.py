"""What `simbatch validate --recorded` prints of many runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from simbatch.profiler.validating.many import SHOWN, Compared, Many
from simbatch.profiler.validating.on_recorded import REAL
from simbatch.sim.text import number

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

HEADERS = {"mean_ttft_ms": "TTFT", "mean_tpot_ms": "TPOT", "mean_e2el_ms": "E2EL", "request_throughput": "req/s"}
MAX_NAME = 34  # characters of a run in the table
MAX_OUTSIDE = 5  # runs that are named
MAX_NOTES = 12  # sentences that hold for some of the runs


def show_many(console: Console, many: Many) -> None:
    """The whole report."""
    for part in _parts(many):
        console.print(part, markup=False)


def _parts(many: Many) -> Iterator[RenderableType]:
    yield _table(many)
    yield ""
    worst = many.worst
    errors = ", ".join(f"{HEADERS[key]} {_percent(worst.error(key))}" for key in SHOWN if worst.error(key) is not None)
    yield f"worst: {worst.name} ({errors})"
    yield from (f"- {reason}" for reason in many.why())
    yield ""
    profile = worst.validation.simulated.result.summary["simbatch"]["profile"]
    yield f"- simulated from profile {profile['name']}; its error: {profile['error'] or 'not stated'}"
    if len(many.models) > 1:
        yield f"- the results name {len(many.models)} models ({', '.join(many.models[:4])}): one server has one"
    yield from _notes(many)
    yield from (f"- not compared: {name}: {reason}" for name, reason in many.not_compared)
    if many.runs[0].validation.bounds is not None:
        yield _verdict(many)


def _verdict(many: Many) -> str:
    if many.is_within_bounds:
        return "within the bounds (every figure of every run)"
    shown = [f"{name} ({', '.join(keys)})" for name, keys in list(many.outside.items())[:MAX_OUTSIDE]]
    more = len(many.outside) - len(shown)
    others = f" and {more} more" if more else ""
    return f"OUTSIDE the bounds: {len(many.outside)} of {len(many.runs)} runs: {', '.join(shown)}{others}"


def _notes(many: Many) -> Iterator[str]:
    """Each sentence once, with the runs that it holds for."""
    holds: dict[str, list[str]] = {}
    for run in many.runs:
        for note in run.validation.all_notes:
            if not note.startswith(REAL):
                holds.setdefault(note, []).append(run.name)
    for note, names in list(holds.items())[:MAX_NOTES]:
        of = "" if len(names) == len(many.runs) else f" ({names[0] if len(names) == 1 else f'{len(names)} runs'})"
        yield f"- {note}{of}"
    told = sum(any(note.startswith(REAL) for note in run.validation.notes) for run in many.runs)
    if told:
        yield f"- what the streams of {told} runs say of their real server (client, engines, hits): validation.json"
    if len(holds) > MAX_NOTES:
        yield f"- and {len(holds) - MAX_NOTES} more, in validation.json"


def _table(many: Many) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{many.runs[0].validation.name}: {len(many.runs)} real runs and their simulations (means)"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("load", no_wrap=True)
    for header in ("requests", "tokens in, out"):
        table.add_column(header, justify="right", no_wrap=True)
    for key in SHOWN:
        unit = " (ms)" if key.endswith("_ms") else ""
        table.add_column(f"{HEADERS[key]}{unit}", justify="right", no_wrap=True)
        table.add_column("error", justify="right", no_wrap=True)
    for run, name in zip(many.runs, _short([run.name for run in many.runs]), strict=True):
        table.add_row(name, *_cells(run))
    table.add_section()
    for name, of in (("median |error|", many.median_error), ("median error", many.bias)):
        row = [name, "", "", ""]
        for key in SHOWN:
            value = of(key)
            row += ["", "-" if value is None else f"{value:.1%}" if "|" in name else f"{value:+.1%}"]
        table.add_row(*row, style="bold")
    return table


def _cells(run: Compared) -> list[str]:
    traffic = run.traffic
    cells = [run.load, f"{len(run.validation.simulated.record.requests):,}"]
    cells.append(f"{traffic['prompts']:,.0f}, {traffic['outputs']:,.0f}")
    for key in SHOWN:
        figure = run.figure(key)
        cells += ["-", "-"] if figure is None else [_number(figure.median), _percent(figure.error)]
    return cells


def _short(names: Sequence[str]) -> list[str]:
    """Without what all begin with, where they are long."""
    if max(map(len, names)) <= MAX_NAME:
        return list(names)
    first, last = min(names), max(names)
    alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    same = max(first[:alike].rfind(mark) for mark in "_-/ ") + 1
    return [name[same:] if len(name) - same <= MAX_NAME else f"...{name[3 - MAX_NAME :]}" for name in names]


def _number(value: float) -> str:
    return number(value, 0 if value >= 1000 else 1 if value >= 100 else 2)


def _percent(error: float | None) -> str:
    return "-" if error is None else f"{error:+.{0 if abs(error) >= 1 else 1}%}"
