"""What `simbatch validate` prints: real and simulated side by side, each figure with its error; a table of many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from simbatch.profiler.validate import CLIENT, ENGINE, REAL, ComparedFigure
from simbatch.profiler.validate.many import SHOWN, Compared, Many
from simbatch.sim.text import number, percent, table, wrapped

if TYPE_CHECKING:
    from simbatch.profiler.validate import Validation

SECTIONS = {
    CLIENT: "as the client counts",
    ENGINE: "as the engine counts: from taking in",
}


def text_of(found: Validation | Many) -> str:
    """The whole report."""
    return "\n".join(wrapped(_parts_of_many(found) if isinstance(found, Many) else _parts(found)))


def _parts(validation: Validation) -> Iterator[str]:
    yield from (f"{validation.name}: real and simulated", "", *_figure_table(validation))
    if validation.steps:
        yield ""
        yield from _step_table(validation)
    if validation.turns:
        rows = [turn_cells(row) for row in validation.turns]
        yield from ("", "sessions, turn by turn", "", *table(TURN_COLUMNS, rows))
    yield ""
    profile = validation.simulated.result.summary["simbatch"]["profile"]
    if "load" in validation.source:
        yield f"- recorded by {validation.source['kind']}: {validation.source['load']}"
    yield f"- simulated from profile {profile['name']}; its error: {profile['error'] or 'not stated'}"
    yield from (f"- {note}" for note in validation.all_notes)
    if validation.bounds is not None:
        yield verdict(validation)


def _figure_table(validation: Validation) -> list[str]:
    repeats, has_bounds = len(validation.real), validation.bounds is not None
    headers = figure_headers(repeats, has_bounds)
    rows: list[Sequence[str]] = []
    nothing = [""] * len(headers)
    previous: ComparedFigure | None = None
    for figure in validation.figures:
        if previous is not None and _group(previous) != _group(figure):
            rows.append(["", *nothing])
        if previous is not None and previous.clock != figure.clock:
            rows.append([SECTIONS[figure.clock], *nothing])
        rows.append(figure_cells(figure, repeats > 1, has_bounds))
        previous = figure
    return table([SECTIONS[CLIENT], *headers], rows)


def figure_headers(repeats: int, has_bounds: bool) -> list[str]:
    """The columns behind a figure's name."""
    headers = [f"real, median of {repeats}", "spread", "min", "max"] if repeats > 1 else ["real"]
    return [*headers, "simulated", "error", *(["bound", ""] if has_bounds else [])]


def figure_cells(figure: ComparedFigure, has_repeats: bool, has_bounds: bool) -> Sequence[str]:
    """A figure's name, and what stands below `figure_headers`."""
    real = [_value(figure, figure.median)]
    if has_repeats:
        spread = "-" if figure.spread is None else f"±{figure.spread:.1%}"
        real += [spread, _value(figure, min(figure.real)), _value(figure, max(figure.real))]
    error = "-" if figure.error is None else f"{figure.error:+.1%}"
    bound = []
    if has_bounds:
        bound = [_bound_text(figure), {None: "", True: "ok", False: "OUTSIDE"}[figure.is_within]]
    return [figure.metric.label, *real, _value(figure, figure.simulated), error, *bound]


def _bound_text(figure: ComparedFigure) -> str:
    return "" if figure.bound is None else f"±{100 * figure.bound:g} %"


def _value(figure: ComparedFigure, value: float | None) -> str:
    return percent(value) if figure.metric.is_share else number(value, figure.metric.decimals)


def _group(figure: ComparedFigure) -> str:
    key = figure.metric.key.removesuffix("_ms")
    latency = next((name for name in ("ttft", "tpot", "e2el", "itl") if key.endswith(name)), None)
    return f"{figure.clock} {latency or key.startswith('simbatch')}"


def _step_table(validation: Validation) -> list[str]:
    title = "where an error comes from: the real engine's own steps, and what the profile says of them"
    rows = [step_cells(row) for row in validation.steps]
    if validation.admission_ms is not None:
        real, profile = (number(validation.admission_ms[side], 3) for side in ("real", "profile"))
        rows.append(("taking a request in", "", real, profile, ""))
    return [title, "", *table(STEP_COLUMNS, rows)]


STEP_COLUMNS = ("steps", "number", "real, mean (ms)", "profile (ms)", "error")


def step_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a regime's steps have below `STEP_COLUMNS`."""
    times = (number(row["real_ms"], 3), number(row["profile_ms"], 3))
    return (row["regime"], f"{row['num_steps']:,}", *times, f"{row['error']:+.1%}")


TURN_COLUMNS = ("turn", "requests", "mean TTFT, real (ms)", "simulated", "error", "from the cache, real", "simulated")


def turn_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What a turn has below `TURN_COLUMNS`."""
    ttft, hits = row["mean_ttft_ms"], row["cached_tokens_share"]
    error = "-" if not ttft["real"] or ttft["simulated"] is None else f"{ttft['simulated'] / ttft['real'] - 1:+.1%}"
    turn = str(row["turn"]) if row["turn"] == row["last_turn"] else f"{row['turn']}-{row['last_turn']}"
    times = (number(ttft["real"], 1), number(ttft["simulated"], 1))
    return (turn, f"{row['num_requests']:,}", *times, error, percent(hits["real"]), percent(hits["simulated"]))


def verdict(validation: Validation) -> str:
    """Whether every bound is kept, else what does not keep to its own."""
    outside = validation.outside
    has_spread = len(validation.real) > 1
    wider = "; a bound is at least twice the real runs' own spread" if has_spread else ""
    if validation.is_within_bounds:
        return f"within the bounds (every figure that has one{wider})"
    unchecked = [f"{name} (the real run does not tell it)" for name in validation.unchecked]
    names = ", ".join([*(figure.metric.key for figure in outside), *unchecked])
    return f"OUTSIDE the bounds: {names}{wider}"


HEADERS = {"mean_ttft_ms": "TTFT", "mean_tpot_ms": "TPOT", "mean_e2el_ms": "E2EL", "request_throughput": "req/s"}
MAX_NAME = 34  # characters of a run in the table
MAX_OUTSIDE = 5  # runs that are named
MAX_NOTES = 12  # sentences that hold for some of the runs


def _parts_of_many(many: Many) -> Iterator[str]:
    yield from _table(many)
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
        yield _verdict_on_many(many)


def _verdict_on_many(many: Many) -> str:
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


def _table(many: Many) -> list[str]:
    """A figure and its error share a column: they stay together where the table is in parts."""
    title = f"{many.runs[0].validation.name}: {len(many.runs)} real runs and their simulations (means, and errors)"
    figures = [f"{HEADERS[key]} (ms)" if key.endswith("_ms") else HEADERS[key] for key in SHOWN]
    rows = []
    for run, name in zip(many.runs, _short([run.name for run in many.runs]), strict=True):
        load, requests, tokens, *cells = cells_of_many(run)
        pairs = zip(cells[::2], cells[1::2], strict=True)
        rows.append([name, load, requests, tokens, *(f"{figure} {error:>6}" for figure, error in pairs)])
    rows.append([""] * (4 + len(SHOWN)))
    for name, of in (("median |error|", many.median_error), ("median error", many.bias)):
        errors = [of(key) for key in SHOWN]
        texts = ["-" if value is None else f"{value:{'' if '|' in name else '+'}.1%}" for value in errors]
        rows.append([name, "", "", "", *texts])
    return [title, "", *table(("run", "load", "requests", "tokens in, out", *figures), rows, texts=("load",))]


def cells_of_many(run: Compared) -> list[str]:
    """How a run was sent, its requests and tokens, and each figure with its error."""
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
