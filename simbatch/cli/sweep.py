"""`simbatch sweep`: a grid of settings, on all cores or a cluster."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from simbatch.cli._options import load_scenario, router_option, scenario_options, version_option
from simbatch.cli._output import Output
from simbatch.sim.errors import Problem, UserError


@click.command()
@scenario_options
@version_option
@router_option
@click.option("--over", multiple=True, metavar="KEY=V1,V2,...", help="Vary a key, beside or instead of the file's.")
@click.option("--replications", type=click.IntRange(min=1), default=1, metavar="N", help="Seeds for every setting.")
@click.option("--jobs", type=int, default=-1, metavar="N", help="Processes; -1: one per core.")
@click.option("--scheduler", metavar="ADDRESS", help="A Dask cluster instead: tcp://host:8786.")
@click.option("--shard", metavar="I/N", help="Only every N-th cell from the I-th on, for array jobs.")
@click.option("--resume", is_flag=True, help="Keep the cells that are there already.")
@click.option("--dry-run", is_flag=True, help="List the cells and estimate the time; write nothing.")
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
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Simulate every combination of the settings in the `sweep` section of FILE (YAML), and of --over.

    Each cell is kept as soon as it is finished: --resume goes on where an earlier run stopped. Tables and a picture
    are written to DIR, by default results/<name of FILE>-sweep.
    """
    from simbatch.cli._sweep_shown import Shown
    from simbatch.sim.search.run import CellStore
    from simbatch.sim.search.sweep import OWN_FILES, planned
    from simbatch.sim.search.sweep_grid import parse_over

    if jobs == 0:
        raise UserError(Problem("--jobs", "must not be 0", 0, "-1 is one process per core"))
    if scheduler is not None and jobs != -1:
        raise UserError(Problem("--jobs", "says nothing to a cluster: its workers do", jobs, "leave it out"))
    part = _part(shard)
    scenario = load_scenario(file, assignments, seed, router=router, vllm_version=vllm_version)
    plan = planned(scenario, parse_over(over), replications=replications, origin="--over")
    output = Output(folder, f"{file.stem}-sweep", OWN_FILES)
    shown = Shown(plan, plan.cells[part], CellStore(output.folder / "cells"), quiet=quiet)
    if dry_run:
        click.echo(shown.dry_run(jobs, as_json=as_json))
        return
    done, written = shown.run(output.folder, jobs=jobs, scheduler=scheduler, resume=resume)
    output.say_replaced(quiet=quiet or shard is not None)  # shards write one result together
    if as_json:
        content = {"scenario": plan.name, "num_cells": len(plan.cells), "missing": done.num_missing, "rows": done.rows}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    elif not quiet:
        click.echo(done.text())
        click.echo(f"{len(written)} files and {len(done.rows):,} cells in {output.folder}")


def _part(shard: str | None) -> slice:
    """`2/8` as every eighth cell from the second on: neighbours, which last alike, go to different shards."""
    if shard is None:
        return slice(None)
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(Problem("--shard", "must be I/N with I from 1 to N", shard, "for example --shard 1/8"))
    return slice(int(found[1]) - 1, None, int(found[2]))
