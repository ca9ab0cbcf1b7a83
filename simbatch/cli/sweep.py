"""Many simulations of scenarios: `simbatch sweep` (a grid of settings) and `simbatch rank` (policies in scenarios)."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import click

from simbatch.cli._options import (
    A_FILE,
    Asked,
    folder_option,
    html_option,
    jobs_option,
    json_option,
    quiet_option,
    router_option,
    scenario_options,
    trace_options,
    version_option,
    with_asked,
)
from simbatch.cli._output import Output, cells_shown, show_either, show_page
from simbatch.sim.errors import Problem, UserError


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
