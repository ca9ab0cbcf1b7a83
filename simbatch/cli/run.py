"""One scenario, or a few as they stand: `simbatch run`, `explain` (one of its requests), `sweep` and `rank`."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simbatch.cli._options import (
    A_FILE,
    Asked,
    bands_option,
    file_argument,
    folder_option,
    host_option,
    html_option,
    jobs_option,
    json_option,
    policy_option,
    quiet_option,
    router_option,
    scenario_options,
    seed_option,
    set_option,
    trace_options,
    version_option,
    with_asked,
)
from simbatch.cli._output import Output, bands_shown, cells_shown, show_either, show_page, simulate_shown
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.engine.explain import Event


@click.command()
@scenario_options
@policy_option
@router_option
@version_option
@bands_option
@jobs_option
@html_option
@click.option("--steps", is_flag=True, help="Write every step to steps.parquet.")
@click.option(
    "--perfetto",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write host, device, requests, queue and KV use over time for ui.perfetto.dev (.json[.gz]); implies --steps.",
)
@click.option("--verbose", is_flag=True, help="Every resolved setting, and why nothing is said of the steady state.")
@json_option("summary.json instead of the report")
@quiet_option
@with_asked
def run(asked: Asked, bands: bool, steps: bool, perfetto: Path | None, verbose: bool) -> None:
    """Simulate the scenario in FILE (YAML) and show what its users feel.

    Results are written to DIR, by default results/<name of FILE>.
    """
    from simbatch.sim.files import check_target
    from simbatch.sim.results.files import OWN_FILES
    from simbatch.sim.scenario import resolve

    resolved = resolve(asked.load())
    if resolved.scenario.sweep is not None:
        asked.say(f"the settings outside `sweep` are run; its cells: simbatch sweep {asked.file}")
    output = Output(asked, asked.file.stem, OWN_FILES)
    if perfetto is not None:
        check_target(perfetto, [asked.file])
    result = simulate_shown(asked, resolved, resolved.scenario.name, steps=steps or perfetto is not None)
    further: list[str] = []
    if bands:
        from simbatch.sim.search.bands import add_bands, band_lines

        drawn = bands_shown(asked, resolved)
        add_bands(result.summary, drawn)
        further = [*band_lines(result.summary, drawn)]
    elif not (asked.quiet or asked.as_json):
        from simbatch.sim.search.loads import load_lines
        from simbatch.sim.text import wrapped

        further = [*wrapped(load_lines(resolved, result.record))]
    written = result.save(output.folder, html=asked.html)
    if perfetto is not None:
        result.write_perfetto(perfetto)
    output.show(written, lambda: "\n".join([result.text(verbose=verbose), *further]), "summary.json")


LEGEND = (
    "S: schedule() begins; after it L: the launch has returned, D: the device is done, U: the tokens are taken in.\n"
    "Of several steps alike these are the first one's."
)


@click.command()
@file_argument
@click.option("--request", "request_id", metavar="ID", help="Its request_id: see requests.parquet. Needed.")
@host_option
@trace_options
@set_option()
@policy_option
@version_option
@router_option
@seed_option
@json_option("the events as JSON lines")
@with_asked
def explain(asked: Asked, request_id: str | None) -> None:
    """Tell the life of one request of the scenario in FILE.

    Why it waited in each step (seats, blocks, budget, watermark, a preemption), who preempted it, what it hit in the
    prefix cache; where the profile has host times, also when each step was scheduled, launched, computed and taken in
    (S, L, D, U: docs/one-step.md). The scenario is simulated step by step, so this takes longer than a run.
    """
    from simbatch.sim.scenario import resolve
    from simbatch.sim.search import explain_request

    if request_id is None:
        mend = "give a request_id of requests.parquet (where the input has none, its row from 0): --request 17"
        raise UserError(Problem("--request", "is missing: the life of one request is told", mend=mend))
    events = explain_request(resolve(asked.load()), request_id)
    if asked.as_json:
        for event in events:
            click.echo(json.dumps(event._asdict()))
        return
    lines = [f"request {request_id}"]
    for event in events:
        steps = "" if event.step is None else f"step {event.step}"
        times = f" (x {event.num_steps})" if event.num_steps > 1 else ""
        lines.append(f"{event.time_s:12.3f} s  {steps:<12} {event.what}{times}")
        if (line := _step_line(event)) is not None:
            lines.append(f"{'':<29}{line}")
    if any(event.schedule_s is not None for event in events):
        lines.append(LEGEND)
    show_page("\n".join(lines))


def _step_line(event: Event) -> str | None:
    """When the first step of an event was scheduled, launched, computed and taken in; None if that is no matter."""
    begin_s, *others = event.schedule_s, event.launched_s, event.end_s, event.updated_s
    if begin_s is None:
        return None
    after = (f"{name} +{1e3 * (time_s - begin_s):.1f}" for name, time_s in zip("LDU", others, strict=True) if time_s)
    return f"S {begin_s:.3f} s, {', '.join(after)} ms"


@click.command()
@scenario_options
@version_option
@router_option
@click.option("--over", multiple=True, metavar="KEY=V1,V2,...", help="Vary a key, too, or in place of the file's.")
@click.option("--replications", type=click.IntRange(min=1), default=1, metavar="N", help="Seeds for every setting.")
@jobs_option
@click.option("--scheduler", metavar="ADDRESS", help="A Dask cluster instead: tcp://host:8786.")
@click.option("--shard", metavar="I/N", help="Only every N-th cell from the I-th on, for array jobs.")
@click.option("--resume", is_flag=True, help="Keep the cells that are there already.")
@click.option("--dry-run", "is_dry", is_flag=True, help="List the cells and estimate the time; write nothing.")
@html_option
@json_option("the rows as JSON instead of the table")
@quiet_option
@with_asked
def sweep(
    asked: Asked,
    over: tuple[str, ...],
    replications: int,
    scheduler: str | None,
    shard: str | None,
    resume: bool,
    is_dry: bool,
) -> None:
    """Simulate every combination of the settings in the `sweep` section of FILE (YAML), and of --over.

    Each cell is kept as soon as it is finished: --resume goes on where an earlier run stopped. Tables and a picture
    are written to DIR, by default results/<name of FILE>-sweep.
    """
    from simbatch.sim.results.runs import unread_in
    from simbatch.sim.search.cells import CellStore
    from simbatch.sim.search.run import run_kept
    from simbatch.sim.search.sweep import OWN_FILES, dry_run, planned, write_summary
    from simbatch.sim.search.sweep_grid import parse_over

    asked.refuse_jobs_beside(scheduler)
    part = _part(shard)
    plan = planned(asked.load(), parse_over(over), replications=replications, origin="--over")
    output = Output(asked, f"{asked.file.stem}-sweep", OWN_FILES)
    mine, store = plan.cells[part], CellStore(output.folder / "cells")
    if is_dry:
        content, text = dry_run(mine, store, asked.jobs)
        show_either(asked.as_json, lambda: content, lambda: text, ascii_only=False)
        return
    watch = partial(cells_shown, plan.name, quiet=asked.quiet)
    try:
        run_kept(mine, store, watch, asked.say, jobs=asked.jobs, scheduler=scheduler, resume=resume)
    except UserError:
        write_summary(plan, store, output.folder, html=asked.html)
        raise
    done, written = write_summary(plan, store, output.folder, html=asked.html)  # cells of other shards are among them
    if shard is None:  # shards write one result together
        output.say_replaced()
    if asked.as_json:
        content = {"scenario": plan.name, "num_cells": len(plan.cells), "missing": done.num_missing, "rows": done.rows}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    elif not asked.quiet:
        lines = [f"NOTE: {line}" for line in unread_in(done.summaries.values())]
        show_page("\n".join([done.text(), *lines]))
        click.echo(f"{len(written)} files and {len(done.rows):,} cells in {output.folder}")


def _part(shard: str | None) -> slice:
    """`2/8` as every eighth cell from the second on: neighbours, which last alike, go to different shards."""
    if shard is None:
        return slice(None)
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(Problem("--shard", "must be I/N with I from 1 to N", shard, "for example --shard 1/8"))
    return slice(int(found[1]) - 1, None, int(found[2]))


@click.command()
@click.argument("files", nargs=-1, type=A_FILE, metavar="FILE...")
@folder_option
@trace_options
@click.option("--policy", "policies", multiple=True, metavar="P", help="Rank these alone. Can be repeated.")
@click.option("--replications", type=click.IntRange(min=2), metavar="N", help="Seeds for every policy (10; a trace 1).")
@jobs_option
@click.option("--resume", is_flag=True, help="Take finished simulations from DIR.")
@json_option("ranking.json instead of the tables")
@quiet_option
@with_asked
def rank(
    asked: Asked, files: tuple[Path, ...], policies: tuple[str, ...], replications: int | None, resume: bool
) -> None:
    """Simulate every policy in the scenarios of FILE... and say which is best, and which are not told apart from it.

    All policies by name take part unless --policy chooses; each has its defaults, except where the scenario names it.
    Tables are written to DIR, by default results/rank: ranking.md is a page to keep.
    """
    from simbatch.sim.results.runs import unread_in
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.search.cells import CellStore
    from simbatch.sim.search.rank import plan_ranking
    from simbatch.sim.search.rank_report import OWN_FILES, Ranking
    from simbatch.sim.search.run import run_kept

    _check_ranked(files, policies)
    scenarios = asked.with_trace_flags([Scenario.load(file) for file in files])
    plan = plan_ranking(scenarios, policies, replications)
    output = Output(asked, "rank", OWN_FILES)
    for name, reason in plan.left_out.items():
        asked.say(f"left out: {name} ({reason})")
    watch, store = partial(cells_shown, "simulations", quiet=asked.quiet), CellStore(output.folder / "cells")
    summaries = run_kept(plan.cells, store, watch, asked.say, jobs=asked.jobs, resume=resume)
    ranking = Ranking(plan, summaries)
    written, unread = ranking.save(output.folder), unread_in(summaries.values())
    output.show(written, ranking.text, "ranking.json", cells=len(summaries), unread=unread)


def _check_ranked(files: tuple[Path, ...], policies: tuple[str, ...]) -> None:
    if not files:
        raise UserError(Problem("rank", "needs at least one scenario", mend="for example: simbatch rank steady bursty"))
    twice = next((name for name in policies if policies.count(name) > 1), None)
    if twice is not None:
        raise UserError(Problem("--policy", "is named twice", twice, "name each policy once"))
    if len(policies) == 1:
        raise UserError(Problem("--policy", "one policy has nobody to be ranked with", policies[0], "name another one"))
