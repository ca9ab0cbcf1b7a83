"""`simbatch sweep` and `simbatch rank`: a grid of settings, and every policy in every scenario."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import click

from simbatch.cli._options import (
    html_option,
    jobs_option,
    load_scenario,
    router_option,
    scenario_options,
    version_option,
    with_trace_flags,
)
from simbatch.cli._output import Output, cells_shown, say_to, show_page
from simbatch.cli._trace_options import trace_options
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
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON instead of the table.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def sweep(
    file: Path,
    folder: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    vllm_version: str | None,
    router: str | None,
    over: tuple[str, ...],
    replications: int,
    jobs: int,
    scheduler: str | None,
    shard: str | None,
    resume: bool,
    is_dry: bool,
    html: bool,
    as_json: bool,
    quiet: bool,
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

    if scheduler is not None and jobs != -1:
        raise UserError(Problem("--jobs", "says nothing to a cluster: its workers do", jobs, "leave it out"))
    part = _part(shard)
    scenario = load_scenario(file, assignments, seed, router=router, vllm_version=vllm_version)
    plan = planned(scenario, parse_over(over), replications=replications, origin="--over")
    output = Output(folder, f"{file.stem}-sweep", OWN_FILES)
    mine, store = plan.cells[part], CellStore(output.folder / "cells")
    if is_dry:
        content, text = dry_run(mine, store, jobs)
        if as_json:
            click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        else:
            show_page(text)
        return
    watch = partial(cells_shown, plan.name, quiet=quiet)
    try:
        run_kept(mine, store, watch, say_to(quiet=quiet), jobs=jobs, scheduler=scheduler, resume=resume)
    except UserError:
        write_summary(plan, store, output.folder, html=html)
        raise
    done, written = write_summary(plan, store, output.folder, html=html)  # cells of other shards are among them
    output.say_replaced(quiet=quiet or shard is not None)  # shards write one result together
    if as_json:
        content = {"scenario": plan.name, "num_cells": len(plan.cells), "missing": done.num_missing, "rows": done.rows}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    elif not quiet:
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
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Results go here.")
@trace_options
@click.option("--policy", "policies", multiple=True, metavar="P", help="Rank these alone. Can be repeated.")
@click.option("--replications", type=click.IntRange(min=2), metavar="N", help="Seeds for every policy (10; a trace 1).")
@jobs_option
@click.option("--resume", is_flag=True, help="Take finished simulations from DIR.")
@click.option("--json", "as_json", is_flag=True, help="Print ranking.json instead of the tables.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def rank(
    files: tuple[Path, ...],
    folder: Path | None,
    policies: tuple[str, ...],
    replications: int | None,
    jobs: int,
    resume: bool,
    as_json: bool,
    quiet: bool,
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

    _check(files, policies)
    plan = plan_ranking(with_trace_flags([Scenario.load(file) for file in files]), policies, replications)
    output = Output(folder, "rank", OWN_FILES)
    for name, reason in plan.left_out.items():
        if not quiet:
            click.echo(f"left out: {name} ({reason})", err=True)
    watch, store = partial(cells_shown, "simulations", quiet=quiet), CellStore(output.folder / "cells")
    summaries = run_kept(plan.cells, store, watch, say_to(quiet=quiet), jobs=jobs, resume=resume)
    ranking = Ranking(plan, summaries)
    written = ranking.save(output.folder)
    json_file, unread = "ranking.json" if as_json else None, unread_in(summaries.values())
    output.show(written, ranking.text, json_file, quiet=quiet, cells=len(summaries), unread=unread)


def _check(files: tuple[Path, ...], policies: tuple[str, ...]) -> None:
    if not files:
        raise UserError(Problem("rank", "needs at least one scenario", mend="for example: simbatch rank steady bursty"))
    twice = next((name for name in policies if policies.count(name) > 1), None)
    if twice is not None:
        raise UserError(Problem("--policy", "is named twice", twice, "name each policy once"))
    if len(policies) == 1:
        raise UserError(Problem("--policy", "one policy has nobody to be ranked with", policies[0], "name another one"))
