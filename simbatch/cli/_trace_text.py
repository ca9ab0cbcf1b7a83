"""What `simbatch trace describe` says: the facts of every run in a file as lines, and its picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.text import table

if TYPE_CHECKING:
    from simbatch.sim.streams.described import Described
    from simbatch.sim.workload.traces import TraceSource
    from simbatch.sim.workload.traces.statistics import TraceStatistics

_WIDTH = 32
_COLUMNS = ("mean", "cv", "min", "p5", "p50", "p90", "p99", "max")


def description(facts: dict[str, Any]) -> str:
    """The facts of a trace as lines for a person."""
    recorded = [line("Recorded by", f"{facts['tool']}: {facts['load']}")] if "tool" in facts else []
    lines = [
        line("Trace", facts["path"] + (f" (run {facts['run']})" if "run" in facts else "")),
        line("Format", facts["format"]),
        *recorded,
        line("Requests", f"{facts['num_requests']:,}"),
        *_sessions(facts),
        line("First arrival (s)", number(facts["first_arrival_s"])),
        line("Duration (s)", number(facts["duration_s"])),
        *([] if "sessions" in facts else [line("Mean request rate (req/s)", number(facts["mean_request_rate"]))]),
        line("Gaps: cv (Poisson: 1)", number(facts["gap_cv"])),
        line("Burstiness (1 / cv^2)", number(facts["burstiness"])),
    ]
    lines += [line("Read", note) for note in facts["sending"]]
    lines += [line(f"Peak / mean rate, {w} windows", number(x)) for w, x in facts["peak_to_mean_rate"].items()]
    if "prefix_blocks" in facts:
        blocks = facts["prefix_blocks"]
        lines.append(line("Prefix blocks", f"{blocks['total']:,}, {blocks['share']:.1%} seen before"))
    for name, key in (("Priorities", "priorities"), ("Tenants", "num_tenants")):
        if key in facts:
            lines.append(line(name, _classes(facts[key])))
    if facts["skipped"]:
        lines.append(line("Skipped (no output tokens)", f"{facts['skipped']:,}"))
    if facts["ignored_columns"]:
        lines.append(line("Columns not used", ", ".join(facts["ignored_columns"])))
    rows = [_lengths(name, facts[f"num_{name}_tokens"]) for name in ("prompt", "output")]
    lines += ["", *table(("Tokens", *_COLUMNS, "total"), rows)]
    return "\n".join(lines)


def _sessions(facts: dict[str, Any]) -> Iterator[str]:
    """What is said of sessions; the arrivals below are theirs."""
    found = facts.get("sessions")
    if found is None:
        return
    turns, delay = found["num_turns"], found["delay_s"]
    yield line("Sessions", f"{found['num_sessions']:,}; the arrivals below are their first turns")
    yield line("Turns of a session", ", ".join(f"{key} {number(turns[key])}" for key in ("mean", "p50", "p99", "max")))
    if found["num_forks"] or found["num_joins"]:
        yield line("Parallel turns", f"{found['num_forks']:,} forks, {found['num_joins']:,} joins")
    yield line("Delay before a turn (s)", ", ".join(f"{key} {number(value)}" for key, value in delay.items()))
    yield line("Mean session rate (1/s)", number(found["mean_session_rate"]))


def line(name: str, value: object) -> str:
    """One fact."""
    return f"{name + ':':<{_WIDTH}}{value}"


def number(value: float | None) -> str:
    """In three digits or so."""
    return "-" if value is None else f"{value:,.2f}" if abs(value) >= 100 else f"{value:.3g}"


def _classes(value: dict[str, int] | int) -> str:
    return ", ".join(f"{level}: {n:,}" for level, n in value.items()) if isinstance(value, dict) else f"{value:,}"


def _lengths(name: str, summary: dict[str, float]) -> tuple[str, ...]:
    cells = [f"{summary[key]:.2f}" if key == "cv" else f"{summary[key]:,.0f}" for key in _COLUMNS]
    return name, *cells, f"{summary['total']:,}"


GAPS = (
    ("Step of decodes alone (ms)", "decodes_only"),
    ("  before one with prefills", "before_prefills"),
    ("Step with prefills (ms)", "with_prefills"),
)
MIN_SHARE = 0.05  # of prompt tokens, below which chance says as much


def stream_lines(said: dict[str, Any]) -> list[str]:
    """The figures of the steps as lines for a person, or why there are none."""
    if said["refusals"]:
        return ["", *(f"Steps cannot be told from the streams: {reason}" for reason in said["refusals"])]
    return [
        "",
        "What its streams say of the engine's steps",
        *_lines(said),
        *(f"- {text}" for text in said["warnings"]),
    ]


def _lines(said: dict[str, Any]) -> Iterator[str]:
    batch, time, client = said["batch"], said["share_of_time"], said["client"]
    yield line("Steps", f"{said['num_steps']:,}")
    yield line(
        "Batch, over time",
        f"mean {_figure(batch['mean'])}, median {batch['p50']:,.0f}, "
        f"5 to 95 % {batch['p5']:,.0f} to {batch['p95']:,.0f}, most {batch['max']:,.0f}",
    )
    for name, key in GAPS:
        gaps, text = said["gap_ms"][key], "too few with decodes to tell"
        if gaps is not None:
            text = f"median {_figure(gaps['p50'])}, 5 to 95 % {_figure(gaps['p5'])} to {_figure(gaps['p95'])}"
        yield line(name, text)
    before = f", {time['before_prefills']:.1%} in steps that wait for their launch, idle {time['idle']:.1%}"
    yield line("Time in steps with prefills", f"{time['with_prefills']:.1%}{before}")
    budget = said["token_budget"]
    full = "seen full" if budget["was_full"] else "at least; no step was seen full"
    yield line("Token budget", f"{budget['at_least']:,} ({full})")
    kept = "kept up" if client["kept_up"] else "did not keep up"
    chunks = (
        f"a step's chunks take {client['share_of_gap']:.0%} of a step to read ({client['us_per_chunk']:.0f} µs each)"
    )
    yield line("Client", f"{kept}: {chunks}")
    yield line("Prefix hits", _prefix_hits(said["prefix_hits"]))
    yield line("Stationarity", _stationarity(said["stationarity"]))


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _prefix_hits(hits: dict[str, Any]) -> str:
    if hits["share"] is None:
        return f"cannot be told: {hits['why']}"
    cost = f"a prompt token takes {hits['prefill_us_per_token']:.3g} µs"
    if hits["share"] < MIN_SHARE:
        return f"none that shows ({cost})"
    return f"{hits['share']:.0%} of the prompt tokens take no time: cached, or computed elsewhere ({cost})"


def _stationarity(found: dict[str, Any]) -> str:
    if found["batch"] is None:
        return f"cannot be told: {found['why']}"
    thirds = ", ".join(_figure(value) for value in found["batch"])
    text = f"{found['verdict']} (batch in the thirds of its time: {thirds})"
    if found["drifts"]:
        text += f"; like steps {abs(found['drift']):.0%} {'slower' if found['drift'] > 0 else 'faster'} at its end"
    return text


ARRIVALS = ("first_arrival_s", "duration_s", "mean_request_rate", "gap_cv", "burstiness")


def describe_all(
    file: Path, source_of: Callable[[int | None], TraceSource], picture: Path | None
) -> list[dict[str, Any]]:
    """One set of facts for a trace, one a run for a benchmark's file; draws the picture where one is asked for.

    `source_of` opens the file, or one run of it by its number. UserError where a picture is asked of several runs.
    """
    from simbatch.sim.streams.described import described_result
    from simbatch.sim.workload.bench import BenchRun, read_results
    from simbatch.sim.workload.files import check_file

    check_file(file, str(file))  # a pipe keeps whoever opens it waiting
    if not _is_result(file):
        facts, statistics = _facts(file, source_of(None))
        if picture is not None:
            _draw(statistics, facts, picture)
        return [facts]
    runs = read_results(file)
    told = []
    if picture is not None and len(runs) > 1:
        raise UserError(Problem(f"-o {picture}", f"{file} has {len(runs)} runs, and a picture shows one"))
    for number, run in enumerate(runs):
        facts, statistics = _facts(file, source_of(number if len(runs) > 1 else None))
        facts |= {"tool": run.tool, "load": str(run.load)} | ({"run": number + 1} if len(runs) > 1 else {})
        described = described_result(run) if isinstance(run, BenchRun) else "the file has a run's totals alone"
        if isinstance(described, str):
            facts["stream"] = {"refusals": [described], "warnings": []}
        else:
            facts["stream"] = described.summary()
        told.append(facts)
        if picture is not None:
            _draw_run(described, statistics, facts, picture)
    return told


def _is_result(file: Path) -> bool:
    """Whether it is a benchmark's result, in detail enough for its streams."""
    from simbatch.sim.json_values import json_values
    from simbatch.sim.workload.bench import is_detailed
    from simbatch.sim.workload.bench.run import read_text
    from simbatch.sim.workload.formats import RESULTS
    from simbatch.sim.workload.traces.detect import detect

    try:  # whatever is wrong is said when it is opened
        return detect(file)[0].name in RESULTS and is_detailed(next(json_values(file, read_text(file))))
    except (StopIteration, UserError, OSError):
        return False


def _facts(file: Path, source: TraceSource) -> tuple[dict[str, Any], TraceStatistics]:
    from simbatch.cli._output import progress_of
    from simbatch.sim.workload.traces.statistics import describe

    with progress_of(f"reading {file.name}", None, quiet=False) as progress:
        statistics = describe(source, progress)
    facts = {"path": str(file), "format": source.format, **statistics.summary(), "skipped": source.skipped}
    facts |= {"ignored_columns": sorted(source.ignored), "sending": list(source.notes)}
    if not source.has_times:
        facts |= dict.fromkeys(ARRIVALS) | {"peak_to_mean_rate": {}}
    return facts, statistics


def _draw_run(described: Described | str, statistics: TraceStatistics, facts: dict[str, Any], picture: Path) -> None:
    if isinstance(described, str) or described.judgement.refusals:
        _draw(statistics, facts, picture)
        return
    from simbatch.sim.report.step_times import plot_run_steps

    name = Path(facts["path"]).name
    plot_run_steps(
        picture, f"{name}: {len(described.steps):,} steps rebuilt from the streams ({facts['load']})", described
    )
    click.echo(f"picture: {picture} (its steps)", err=True)


def _draw(statistics: TraceStatistics, facts: dict[str, Any], picture: Path) -> None:
    from simbatch.sim.report.step_times import write

    name = Path(facts["path"]).name
    write(picture, statistics, f"{name} ({facts['format']}, {statistics.num_requests:,} requests)")
    click.echo(f"picture: {picture}", err=True)
