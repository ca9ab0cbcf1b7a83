"""`simbatch rank`: which policy is best in which scenario."""

from __future__ import annotations

from pathlib import Path

import click

from simbatch.cli._output import Output
from simbatch.sim.errors import Problem, UserError


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Results go here.")
@click.option("--policy", "policies", multiple=True, metavar="P", help="Rank these alone. Can be repeated.")
@click.option("--replications", type=click.IntRange(min=2), metavar="N", help="Seeds for every policy (10; a trace 1).")
@click.option("--jobs", type=int, default=-1, metavar="N", help="Processes; -1: one per core.")
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
    from simbatch.cli._sweep_shown import run_shown
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.search.rank import plan_ranking
    from simbatch.sim.search.rank_report import OWN_FILES, Ranking
    from simbatch.sim.search.run import CellStore

    _check(files, policies, jobs)
    plan = plan_ranking([Scenario.load(file) for file in files], policies, replications)
    output = Output(folder, "rank", OWN_FILES)
    for name, reason in plan.left_out.items():
        if not quiet:
            click.echo(f"left out: {name} ({reason})", err=True)
    summaries = run_shown(plan.cells, CellStore(output.folder / "cells"), jobs=jobs, resume=resume, quiet=quiet)
    ranking = Ranking(plan, summaries)
    written = ranking.save(output.folder)
    output.say_replaced(quiet=quiet)
    if as_json:
        click.echo((output.folder / "ranking.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        click.echo(ranking.text())
        click.echo(f"{len(written)} files and {len(summaries):,} cells in {output.folder}")


def _check(files: tuple[Path, ...], policies: tuple[str, ...], jobs: int) -> None:
    if not files:
        raise UserError(Problem("rank", "needs at least one scenario", mend="for example: simbatch rank steady bursty"))
    if jobs == 0:
        raise UserError(Problem("--jobs", "must not be 0", 0, "-1 is one process per core"))
    twice = next((name for name in policies if policies.count(name) > 1), None)
    if twice is not None:
        raise UserError(Problem("--policy", "is named twice", twice, "name each policy once"))
    if len(policies) == 1:
        raise UserError(Problem("--policy", "one policy has nobody to be ranked with", policies[0], "name another one"))
