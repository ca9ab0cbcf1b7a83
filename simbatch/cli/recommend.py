"""`simbatch recommend`: settings for a use case, from the source material's table, checked by simulation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import html_option, jobs_option
from simbatch.cli._output import Output, progress_of
from simbatch.cli._trace_options import reading_of, trace_options
from simbatch.sim.errors import NOTHING, Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.cost.profile import MeasuredProfile
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.tuning.recommend_cases import UseCase

CASES = ("interactive", "batch", "mixed", "longform")
ABOUT_RUNS = 300


@click.command()
@click.option("--use-case", type=click.Choice(CASES), help="What the model is to serve.")
@click.option("--profile", "reference", metavar="P", help="A profile that ships, or a path.")
@click.option("--scenario", "file", type=click.Path(path_type=Path), metavar="FILE", help="Your traffic, SLO, profile.")
@click.option("--preset", metavar="NAME", help="Other traffic for the use case: chat, code, rag, summarize.")
@click.option("--trace", metavar="F", help="Take the lengths of this file; arrivals are the use case's.")
@trace_options
@click.option("--slo", "limits", multiple=True, metavar="KEY=MS", help="--slo ttft_ms=500 --slo tpot_ms=40.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of the traffic.")
@jobs_option
@html_option
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Results go here.")
@click.option("--json", "as_json", is_flag=True, help="Print recommend.json instead of the report.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def recommend(
    use_case: str | None,
    reference: str | None,
    file: Path | None,
    preset: str | None,
    trace: str | None,
    limits: tuple[str, ...],
    seed: int,
    jobs: int,
    html: bool,
    folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Recommend max_num_seqs and max_num_batched_tokens for a use case, as flags and a config file of vLLM.

    The rule of thumb for the use case is checked by simulation on the profile, and corrected where it is wrong. With
    --scenario under FILE's traffic at its rate, its SLO, its profile. Takes about a minute on two cores. Results go to
    DIR, by default results/recommend-<use case>-<profile>.
    """
    from simbatch.sim.report.page.page import page_writer
    from simbatch.sim.search.run import Runner
    from simbatch.sim.tuning.recommend import recommend as search
    from simbatch.sim.tuning.recommend_page import recommend_page
    from simbatch.sim.tuning.recommend_report import OWN_FILES, report, save

    traced = _traced(trace, preset)
    if file is not None:
        if given := preset or trace:
            flag = "--preset" if preset is not None else "--trace"
            raise UserError(Problem(flag, "FILE has its traffic", given, f"leave out {flag} or --scenario"))
        case, scenario, profile = _of_scenario(file, use_case, reference, limits)
        rate = scenario.workload.request_rate
    else:
        case, scenario, profile = _of_case(use_case, reference, preset, traced, limits, seed)
        rate = None
    output = Output(folder, f"recommend-{scenario.name}-{profile.name}", OWN_FILES)
    with progress_of("recommend", ABOUT_RUNS, quiet=quiet) as progress:
        runner = Runner(scenario, jobs=jobs, progress=progress)
        found = search(case, scenario, profile, runner, rate)
    found.num_runs = runner.num_runs
    written = save(found, output.folder, page_writer(partial(recommend_page, found), html=html))
    last = f"{found.num_runs} simulations; {', '.join(path.name for path in written)} in {output.folder}"
    json_file = "recommend.json" if as_json else None
    output.show(written, lambda: f"{report(found)}\n", json_file, quiet=quiet, last=last, unread=runner.unread)


def _traced(trace: str | None, preset: str | None) -> dict[str, Any] | None:
    """The file whose lengths are taken, and how it is read."""
    read = reading_of(trace)
    if trace is not None and preset is not None:
        raise UserError(Problem("--preset", "cannot stand beside --trace", preset, "give one of the two"))
    return None if trace is None else {"path": str(Path(trace).absolute()), **read}


def _of_case(
    use_case: str | None,
    reference: str | None,
    preset: str | None,
    traced: dict[str, Any] | None,
    limits: tuple[str, ...],
    seed: int,
) -> tuple[UseCase, Scenario, MeasuredProfile]:
    """The use case's own traffic, a preset's, or with the lengths of a trace."""
    from simbatch.sim.scenario.presets import SessionPreset, preset_of, slo_of
    from simbatch.sim.tuning.recommend_cases import USE_CASES, scenario_of

    if use_case is None or reference is None:
        missing = "--use-case" if use_case is None else "--profile"
        mend = f"for example {missing} {'interactive' if use_case is None else 'rtx4090-llama-3.1-8b-bf16'}"
        raise UserError(Problem(missing, "is needed without --scenario", NOTHING, mend))
    case, profile = USE_CASES[use_case], _profile(reference)
    traffic = None if preset is None else preset_of(preset)
    if isinstance(traffic, SessionPreset):
        rule = "loads a server with all requests at once, and turns of sessions wait for answers"
        mend = f"simbatch init LINE --gpu G --preset {preset} -o FILE, then simbatch tune FILE"
        raise UserError(Problem(f"--preset {preset}", rule, mend=mend))
    if traffic is not None:
        case = replace(case, words=f"{traffic.name}: {traffic.words} ({traffic.source})", slo=traffic.slo)
    if traced is not None:
        case = replace(case, words=f"the lengths of {traced['path']}; arrivals as of {case.words}")
    slo = slo_of(limits) or dict(case.slo)
    return case, scenario_of(case, profile, reference, slo, seed, traffic, traced), profile


def _of_scenario(
    file: Path, use_case: str | None, reference: str | None, limits: tuple[str, ...]
) -> tuple[UseCase, Scenario, MeasuredProfile]:
    """A scenario's traffic, SLO and profile, under vLLM's own policy; the use case is `mixed` where none is said."""
    from simbatch.sim.cost.profile import MeasuredProfile
    from simbatch.sim.scenario import Scenario, resolve
    from simbatch.sim.scenario.presets import slo_of
    from simbatch.sim.tuning.recommend_cases import USE_CASES, case_of

    scenario = Scenario.load(file).with_policy("vllm")
    if reference is not None:
        scenario = scenario.with_profile(reference)
    if slo := slo_of(limits):
        scenario = scenario.override({"slo": slo}, origin="--slo")
    resolved = resolve(scenario).lead
    profile = resolved.profile
    scenario = scenario.override({"engine.max_model_len": resolved.engine.max_model_len}, origin="--scenario")
    if not isinstance(profile, MeasuredProfile):
        rule = "names no model and no GPU, so there is nothing to recommend flags for"
        raise UserError(Problem("--scenario", rule, str(file), "give one that ships beside it: --profile NAME"))
    return case_of(USE_CASES[use_case or "mixed"], scenario), scenario, profile


def _profile(reference: str) -> MeasuredProfile:
    from simbatch.sim.cost.by_name import load_profile
    from simbatch.sim.cost.profile import MeasuredProfile

    profile = load_profile(reference, folder=Path())
    if not isinstance(profile, MeasuredProfile):
        rule = "names no model and no GPU, so there is nothing to recommend flags for"
        raise UserError(Problem("--profile", rule, reference, "take one that ships: `simbatch profiles list`"))
    return profile
