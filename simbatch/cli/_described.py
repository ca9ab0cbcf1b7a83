"""`simbatch trace describe`: the facts of every run in a file, and its picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.streams.described import Described
    from simbatch.sim.workload.traces import TraceSource
    from simbatch.sim.workload.traces.statistics import TraceStatistics

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
    from simbatch.sim.workload.bench.document import documents, read_text
    from simbatch.sim.workload.bench.read import is_detailed
    from simbatch.sim.workload.formats import RESULTS
    from simbatch.sim.workload.traces.detect import detect

    try:  # whatever is wrong is said when it is opened
        return detect(file)[0].name in RESULTS and is_detailed(next(documents(file, read_text(file))))
    except (StopIteration, UserError, OSError):
        return False


def _facts(file: Path, source: TraceSource) -> tuple[dict[str, Any], TraceStatistics]:
    from simbatch.cli._progress import progress_of
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
    from simbatch.sim.streams.picture import write_steps

    name = Path(facts["path"]).name
    write_steps(
        picture, f"{name}: {len(described.steps):,} steps rebuilt from the streams ({facts['load']})", described
    )
    click.echo(f"picture: {picture} (its steps)", err=True)


def _draw(statistics: TraceStatistics, facts: dict[str, Any], picture: Path) -> None:
    from simbatch.sim.workload.traces.statistics import draw

    name = Path(facts["path"]).name
    draw(statistics, f"{name} ({facts['format']}, {statistics.num_requests:,} requests)", picture)
    click.echo(f"picture: {picture}", err=True)
