"""`simbatch compare`: policies or profiles side by side on the same arrivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import (
    Asked,
    bands_option,
    html_option,
    jobs_option,
    json_option,
    quiet_option,
    scenario_options,
    with_asked,
)
from simbatch.cli._output import Output, bands_shown, cells_shown, show_page, simulate_shown
from simbatch.sim.errors import NOTHING, Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.report.compare import Comparison, ReplicatedComparison
    from simbatch.sim.report.figures import Figures
    from simbatch.sim.report.loads import LoadComparison
    from simbatch.sim.report.result import Result
    from simbatch.sim.scenario import Resolved
    from simbatch.sim.search.bands import BandedCandidates
    from simbatch.sim.search.upgrade import Upgrade


@click.command()
@scenario_options
@click.option("--policy", "policies", multiple=True, metavar="P", help="A policy to compare. Can be repeated.")
@click.option("--profile", "profiles", multiple=True, metavar="P", help="A profile to compare. Can be repeated.")
@click.option("--router", "routers", multiple=True, metavar="R", help="A cluster's router to compare. Can be repeated.")
@click.option(
    "--vllm-version",
    "versions",
    multiple=True,
    metavar="V",
    help="A version of vLLM to compare: its rules and defaults. Can be repeated.",
)
@click.option(
    "--rate",
    "rates",
    multiple=True,
    metavar="R1,R2,...",
    help="Compare at each of these request rates (req/s; on a trace: of rate_scale), and draw them.",
)
@click.option(
    "--users",
    "users",
    multiple=True,
    metavar="N1,N2,...",
    help="Instead, at each of these numbers of users at once: sessions, or requests under max_concurrency.",
)
@click.option(
    "--replications",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Run each candidate under N seeds (of a trace: resampled in blocks), and say how sure the differences are.",
)
@click.option("--bonferroni", is_flag=True, help="Make the intervals of all candidates hold together, per metric.")
@bands_option
@jobs_option
@click.option("--metrics", metavar="A,B", help="Of the figure: names of summary.json, as p99_ttft_ms,throughput.")
@click.option("--figure", type=click.Path(path_type=Path), metavar="F", help="Draw them into F: .pdf, .png or .svg.")
@click.option("--width", metavar="W", help="Of the figure: 3.35in (one column of a paper), 85mm. Default: 7.16in.")
@html_option
@click.option("--all", "all_rows", is_flag=True, help="Show every figure, not the headline rows alone.")
@json_option("compare.json instead of the table")
@quiet_option
@with_asked
def compare(
    asked: Asked,
    policies: tuple[str, ...],
    profiles: tuple[str, ...],
    versions: tuple[str, ...],
    routers: tuple[str, ...],
    rates: tuple[str, ...],
    users: tuple[str, ...],
    replications: int,
    bonferroni: bool,
    bands: bool,
    metrics: str | None,
    figure: Path | None,
    width: str | None,
    all_rows: bool,
) -> None:
    """Simulate the scenario in FILE once for each policy, profile, router or vLLM and put the results side by side.

    A policy that the scenario has keeps its parameters there; any other runs with its defaults. With --replications,
    all run under the same seeds, and each is compared with the first by the differences seed by seed. With --rate, at
    each of several loads: the first rate of the scenario is set to it, and all others are changed as many times; with
    --users, so many sessions (or requests) are let in at once; one candidate will do then. With --vllm-version, what
    the upgrade from the first version changes is told: the first step that differs, and what each rule or default does
    alone. The table, its numbers and the pictures are written to DIR, by default results/<name of FILE>-compare, with
    loads results/<name of FILE>-loads. --figure draws the chosen --metrics for a paper, and writes what it shows as a
    CSV of the same name next to it.
    """
    from simbatch.sim.report.compare import OWN_FILES, Comparison
    from simbatch.sim.scenario import ONE_RUN
    from simbatch.sim.search.compared import compared_under, loads_from, under_seeds

    loads = loads_from(rates, users)
    if bands and (loads or replications > 1):
        rule = "are drawn for one load and one seed"
        raise UserError(Problem("--bands", rule, mend="leave out --rate, --users and --replications, or --bands"))
    named = {"--policy": policies, "--profile": profiles, "--router": routers, "--vllm-version": versions}
    candidates, seeds = under_seeds(_candidates(asked, named, 1 if loads else 2), replications, "--replications")
    drawn = _wanted_figure(metrics, figure, width)
    output = Output(asked, f"{asked.file.stem}-{'loads' if loads else 'compare'}", OWN_FILES)
    run, watch = partial(simulate_shown, asked), partial(cells_shown, "replications", quiet=asked.quiet)
    ways: dict[str, Any] = {"by_users": bool(users), "bonferroni": bonferroni, "jobs": asked.jobs}
    compared = compared_under(candidates, seeds, loads, run, watch, asked.say, **ways)
    if isinstance(compared, Comparison):
        compared.upgrades = _upgrades(asked, candidates, compared.results, versions)
        compared.bands = _banded(asked, candidates, compared.results) if bands else None
    _show(asked, compared, output, drawn, all_rows=all_rows or bool(loads))
    if not loads and len(seeds) < replications and not (asked.quiet or asked.as_json):
        show_page(f"NOTE: {ONE_RUN}; there is no interval.")


def _banded(asked: Asked, candidates: Mapping[str, Resolved], results: Mapping[str, Result]) -> BandedCandidates:
    """Draw by draw, what each profile is in doubt about; the bands go into the summaries too."""
    from simbatch.sim.search.bands import BandedCandidates, add_bands

    drawn = {label: bands_shown(asked, resolved) for label, resolved in candidates.items()}
    for label, each in drawn.items():
        add_bands(results[label].summary, each)
    return BandedCandidates({label: result.summary for label, result in results.items()}, drawn)


def _show(
    asked: Asked,
    compared: Comparison | ReplicatedComparison | LoadComparison,
    output: Output,
    drawn: Callable[[Figures], list[Path]] | None,
    *,
    all_rows: bool,
) -> None:
    """Write the files and the figure that was asked for, and print the table."""
    from simbatch.sim.report.compare import Comparison

    figure = [] if drawn is None else drawn(compared)
    written = compared.save(output.folder, html=asked.html)
    is_said = isinstance(compared, Comparison) and not asked.as_json  # among the warnings of its text
    unread = [] if is_said else compared.sides[0].unread
    output.show(written, partial(compared.text, all_rows=all_rows), "compare.json", unread=unread)
    if figure and not (asked.quiet or asked.as_json):
        click.echo(f"figure: {' and '.join(map(str, figure))}")


def _wanted_figure(
    metrics: str | None, figure: Path | None, width: str | None
) -> Callable[[Figures], list[Path]] | None:
    """What draws it, checked before anything runs; None where nobody wants one."""
    if figure is None:
        if given := next(((flag, text) for flag, text in (("--metrics", metrics), ("--width", width)) if text), None):
            rule = "says what a figure shows, and none is asked for"
            raise UserError(Problem(given[0], rule, given[1], "add --figure F.pdf"))
        return None
    from simbatch.sim.files import check_target
    from simbatch.sim.report.figures import BOTH_COLUMNS, check_figure, parse_width

    inches = BOTH_COLUMNS if width is None else parse_width(width)
    check_target(check_figure(figure, "--figure"))
    names = None if metrics is None else [name for name in metrics.split(",") if name.strip()]
    return lambda compared: compared.save_figure(figure, names, width=inches)


def _upgrades(
    asked: Asked, candidates: Mapping[str, Resolved], results: Mapping[str, Result], versions: Sequence[str]
) -> list[Upgrade]:
    """From the first version to each other one, for each policy and profile; the labels are in the versions' order."""
    from simbatch.sim.search.upgrade import upgrade

    run, found, labels = partial(simulate_shown, asked), [], list(candidates)
    for begin in range(0, len(labels), len(versions)) if len(versions) > 1 else ():
        first, *others = labels[begin : begin + len(versions)]
        name = first.rpartition(", vLLM ")[0]
        found += [upgrade(candidates[first].scenario, results[first], results[other], run, name) for other in others]
    return found


def _candidates(asked: Asked, named: Mapping[str, Sequence[str]], least: int) -> dict[str, Resolved]:
    """Everything to be compared, looked up and checked before anything runs; `named`: what each flag names."""
    from simbatch.sim.scenario import resolve

    for flag, names in named.items():
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(Problem(flag, "is named twice", twice, "name each candidate once"))
    each: list[list[str | None]] = [[*names] or [None] for names in named.values()]
    found = {}
    for policy, profile, router, version in product(*each):
        resolved = resolve(asked.load(policy=policy, profile=profile, router=router, vllm_version=version))
        engine = " behind ".join(filter(None, (" on ".join(filter(None, (policy, profile))), router)))
        words = (engine, f"vLLM {version}" if version else "")
        found[", ".join(filter(None, words)) or resolved.policy_name] = resolved
    if len(found) < least:
        mend = "for example: --policy fixed --policy adaptive; or one at several loads: --rate 1,2,4, --users 50,100"
        given = " ".join(name for names in named.values() for name in names)
        rule = "needs at least two policies, profiles, routers or versions of vLLM"
        raise UserError(Problem("compare", rule, given or NOTHING, mend))
    return found
