"""`simbatch plan`: how many GPUs of which type keep the limits for a traffic, in which shape, at what cost.

`simbatch recommend`: settings for a use case, from the source material's table, checked by simulation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import (
    A_FILE,
    Asked,
    Count,
    folder_option,
    html_option,
    jobs_option,
    json_option,
    quiet_option,
    seed_option,
    set_option,
    trace_changes,
    trace_options,
    version_option,
    with_asked,
)
from simbatch.cli._output import Output, progress_of
from simbatch.sim.errors import NOTHING, Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.cost.profile import MeasuredProfile, Profile
    from simbatch.sim.plan.ask import FleetQuestion
    from simbatch.sim.plan.kinds import Wanted
    from simbatch.sim.scenario import Scenario
    from simbatch.sim.tuning.recommend_cases import UseCase


TokenCount = click.IntRange(min=1, max=2**20)


@click.command()
@click.argument("file", type=A_FILE, required=False)
@version_option
@trace_options
@folder_option
@click.option("--model", metavar="M", help="Without FILE: the model, as Qwen/Qwen3-32B.")
@click.option(
    "--preset",
    metavar="NAME",
    help="Without FILE: traffic by name: chat, code, rag, summarize, chat_sessions, coding_agent.",
)
@click.option("--prompt-len", type=TokenCount, metavar="N", help="Without FILE: mean tokens of a prompt.")
@click.option("--output-len", type=TokenCount, metavar="N", help="Without FILE: mean tokens of an output.")
@click.option("--prefix-len", type=TokenCount, metavar="N", help="Tokens that all prompts begin with, in front.")
@click.option("--trace", type=A_FILE, metavar="F", help="The traffic of a trace's file.")
@click.option("--rate", type=float, metavar="R", help="Requests per second in all; without it FILE's own.")
@click.option("--growth", type=float, default=1.0, metavar="G", help="Plan for G times that traffic.")
@click.option("--limit", "limits", multiple=True, metavar="METRIC=N", help="--limit p99_ttft_ms=1000. Can be repeated.")
@click.option("--gpus", metavar="G1,G2", help="GPU types to choose from: h100,l40s. Default: all with a profile.")
@click.option("--tp", "sizes", metavar="N1,N2", help="Tensor parallelism to choose from: 1,2,4.")
@click.option("--weights", metavar="W", help="bf16, fp8, ... or any. Default: as FILE's profile.")
@click.option("--router", "routers", multiple=True, metavar="R", help="A router to choose from. Can be repeated.")
@click.option("--price", "prices", multiple=True, metavar="GPU=N", help="US dollars for one GPU an hour: h100=2.5.")
@click.option("--spare", type=click.IntRange(min=0), default=0, metavar="N", help="Keep the limits with N down.")
@click.option("--gpus-per-node", type=Count, metavar="N", help="GPUs are rented in nodes of N.")
@click.option("--max-gpus", type=Count, default=512, metavar="N", help="Look no further than N GPUs (512).")
@click.option("--seconds", type=float, metavar="S", help="Seconds of traffic in one simulation (120 to 300).")
@click.option("--replications", type=Count, default=1, metavar="N", help="Seeds under which the limits must hold.")
@click.option("--no-bands", is_flag=True, help="Leave out the 19 draws of what the profile is in doubt about.")
@set_option()
@seed_option
@jobs_option
@html_option
@click.option("--scheduler", metavar="ADDRESS", help="A Dask cluster instead: tcp://host:8786.")
@click.option("--resume", is_flag=True, help="Take simulations from DIR that an earlier plan has run.")
@json_option("plan.json instead of the report")
@quiet_option
@with_asked
def plan(asked: Asked, /, file: Path | None, scheduler: str | None, resume: bool, **flags: Any) -> None:
    """Find the cheapest fleet that keeps the limits: GPU type, tensor parallelism, replicas, engine settings, router.

    The traffic is that of the scenario in FILE, of --trace, or of --model with --prompt-len and --output-len, at --rate
    requests per second. Without --limit, 99 % of the requests must keep FILE's SLO. Results go to DIR, by default
    results/<name of FILE>-plan.
    """
    from simbatch.sim.plan.ask import OWN_FILES, checked

    asked.refuse_jobs_beside(scheduler)
    question = checked(_question(asked, file, flags))
    output = Output(asked, f"{file.stem}-plan" if file is not None else "plan", OWN_FILES)
    where: dict[str, Any] = {"jobs": asked.jobs, "scheduler": scheduler, "resume": resume}
    try:
        with progress_of("plan, simulations", None, quiet=asked.quiet) as progress:
            found = question.answer(output.folder, progress=progress, **where)
    except KeyboardInterrupt:
        asked.say(f"the simulations so far are in {output.folder / 'cells'}; go on with --resume")
        raise
    output.show(found.save(output.folder, html=asked.html), found.text, "plan.json", unread=found.unread)


def _question(asked: Asked, file: Path | None, flags: dict[str, Any]) -> FleetQuestion:
    """What the flags say."""
    from simbatch.sim.plan.ask import FleetQuestion
    from simbatch.sim.scenario import Scenario, parse_overrides
    from simbatch.sim.tuning.goal import Limit

    scenario, read = None if file is None else Scenario.load(file), {}
    if scenario is not None and flags["trace"] is None:
        (scenario,) = asked.with_trace_flags([scenario])
    else:
        read = asked.reading_of(flags["trace"])
    version, seed = asked.vllm_version, asked.seed
    changes: list[tuple[dict[str, Any], str | dict[str, str]]] = [
        trace_changes(read),
        ({} if version is None else {"engine.vllm_version": version}, "--vllm-version"),
        (parse_overrides(asked.assignments), "--set"),
        ({} if seed is None else {"seed": seed}, "--seed"),
    ]
    same = ("model", "preset", "prompt_len", "output_len", "prefix_len", "trace", "rate", "growth", "routers", "spare")
    return FleetQuestion(
        scenario,
        tuple(map(Limit.parse, flags["limits"])),
        _wanted(flags),
        changes=[(values, origin) for values, origin in changes if values],
        bands=not flags["no_bands"],
        **{name: flags[name] for name in (*same, "max_gpus", "seconds", "replications")},
    )


def _wanted(flags: dict[str, Any]) -> Wanted:
    from simbatch.sim.plan.kinds import Wanted, parse_gpus, parse_prices, parse_sizes

    return Wanted(
        gpus=None if flags["gpus"] is None else parse_gpus(flags["gpus"]),
        sizes=None if flags["sizes"] is None else parse_sizes(flags["sizes"]),
        weights=flags["weights"],
        prices=parse_prices(flags["prices"]),
        gpus_per_node=flags["gpus_per_node"],
    )


CASES = ("interactive", "batch", "mixed", "longform")


@click.command()
@click.option("--use-case", type=click.Choice(CASES), help="What the model is to serve.")
@click.option("--profile", "reference", metavar="P", help="A profile that ships, or a path.")
@click.option("--scenario", "file", type=A_FILE, metavar="FILE", help="Your traffic, SLO, profile.")
@click.option("--preset", metavar="NAME", help="Other traffic for the use case: chat, code, rag, summarize.")
@click.option("--trace", metavar="F", help="Take the lengths of this file; arrivals are the use case's.")
@trace_options
@click.option("--slo", "limits", multiple=True, metavar="KEY=MS", help="--slo ttft_ms=500 --slo tpot_ms=40.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of the traffic.")
@jobs_option
@html_option
@folder_option
@json_option("recommend.json instead of the report")
@quiet_option
@with_asked
def recommend(
    asked: Asked,
    use_case: str | None,
    reference: str | None,
    file: Path | None,
    preset: str | None,
    trace: str | None,
    limits: tuple[str, ...],
    seed: int,
) -> None:
    """Recommend max_num_seqs and max_num_batched_tokens for a use case, as flags and a config file of vLLM.

    The rule of thumb for the use case is checked by simulation on the profile, and corrected where it is wrong. With
    --scenario under FILE's traffic at its rate, its SLO, its profile. Takes about a minute on two cores. Results go to
    DIR, by default results/recommend-<use case>-<profile>.
    """
    from simbatch.sim.report.page.page import page_writer
    from simbatch.sim.search.run import Runner
    from simbatch.sim.tuning.pages import recommend_page
    from simbatch.sim.tuning.recommend import recommend as search
    from simbatch.sim.tuning.recommend_report import OWN_FILES, report, save

    traced = _traced(asked, trace, preset)
    if file is not None:
        if given := preset or trace:
            flag = "--preset" if preset is not None else "--trace"
            raise UserError(Problem(flag, "FILE has its traffic", given, f"leave out {flag} or --scenario"))
        case, scenario, profile = _of_scenario(file, use_case, reference, limits)
        rate = scenario.workload.request_rate
    else:
        case, scenario, profile = _of_case(use_case, reference, preset, traced, limits, seed)
        rate = None
    output = Output(asked, f"recommend-{scenario.name}-{profile.name}", OWN_FILES)
    with progress_of("recommend, simulations (300 to 400)", None, quiet=asked.quiet) as progress:
        runner = Runner(scenario, jobs=asked.jobs, progress=progress)
        found = search(case, scenario, profile, runner, rate)
    found.num_runs = runner.num_runs
    written = save(found, output.folder, page_writer(partial(recommend_page, found), html=asked.html))
    last = f"{found.num_runs} simulations; {', '.join(path.name for path in written)} in {output.folder}"
    output.show(written, lambda: f"{report(found)}\n", "recommend.json", last=last, unread=runner.unread)


def _traced(asked: Asked, trace: str | None, preset: str | None) -> dict[str, Any] | None:
    """The file whose lengths are taken, and how it is read."""
    read = asked.reading_of(trace)
    if trace is not None and preset is not None:
        raise UserError(Problem("--preset", "cannot be given with --trace", preset, "give one of the two"))
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
    from simbatch.sim.cost.by_name import load_profile
    from simbatch.sim.scenario.presets import SessionPreset, preset_of, slo_of
    from simbatch.sim.tuning.recommend_cases import USE_CASES, scenario_of

    if use_case is None or reference is None:
        missing = "--use-case" if use_case is None else "--profile"
        mend = f"for example {missing} {'interactive' if use_case is None else 'rtx4090-llama-3.1-8b-bf16'}"
        raise UserError(Problem(missing, "is needed without --scenario", NOTHING, mend))
    case, known = USE_CASES[use_case], load_profile(reference, folder=Path())
    profile = _of_a_model(known, "--profile", reference, "take one that ships: `simbatch profiles list`")
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
    from simbatch.sim.scenario import Scenario, resolve
    from simbatch.sim.scenario.presets import slo_of
    from simbatch.sim.tuning.recommend_cases import USE_CASES, case_of

    scenario = Scenario.load(file).with_policy("vllm")
    if reference is not None:
        scenario = scenario.with_profile(reference)
    if slo := slo_of(limits):
        scenario = scenario.override({"slo": slo}, origin="--slo")
    resolved = resolve(scenario).lead
    scenario = scenario.override({"engine.max_model_len": resolved.engine.max_model_len}, origin="--scenario")
    profile = _of_a_model(resolved.profile, "--scenario", str(file), "add one that ships: --profile NAME")
    return case_of(USE_CASES[use_case or "mixed"], scenario), scenario, profile


def _of_a_model(profile: Profile, flag: str, given: str, mend: str) -> MeasuredProfile:
    from simbatch.sim.cost.profile import MeasuredProfile

    if not isinstance(profile, MeasuredProfile):
        rule = "names no model and no GPU, so there is nothing to recommend flags for"
        raise UserError(Problem(flag, rule, given, mend))
    return profile
