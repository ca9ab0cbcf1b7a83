"""`simbatch validate`: a real run beside its simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import (
    A_FILE,
    Asked,
    flags_of,
    html_option,
    json_option,
    policy_option,
    quiet_option,
    scenario_options,
    version_option,
    with_asked,
)
from simbatch.cli._output import Output, progress_of, working
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.profiler.validate import Bounds, Validation
    from simbatch.profiler.validate.many import Many
    from simbatch.profiler.validate.on_server import ServerOptions, Told
    from simbatch.sim.scenario import Scenario

OUTSIDE = 1  # exit code
# what an option goes with, where it is not every kind of validation
GOES_WITH = {
    "served_model": "--server alone",
    "max_concurrency": "--server or --engine",
    "temperature": "--server or --engine",
    "requests": "--recorded alone",
    "quantization": "--engine alone",
    "tensor_parallel_size": "--engine alone",
    "engine_arg": "--engine alone",
    "repeat": "--engine or --server",
    "resume": "--engine or --server",
}


@click.command()
@scenario_options
@policy_option
@version_option
@click.option("--engine", "model", metavar="MODEL", help="Start vLLM's server with this model: a folder or name.")
@click.option("--server", "url", metavar="URL", help="Send the requests to this server, in real time.")
@click.option("--served-model", metavar="NAME", help="With --server: its name there; default: the only one.")
@click.option("--max-concurrency", type=click.IntRange(1), metavar="N", help="With --server or --engine: most at once.")
@click.option("--temperature", type=click.FloatRange(0), metavar="T", help="Of sampling; default 0, greedy.")
@click.option("--recorded", type=A_FILE, multiple=True, metavar="RESULT...", help="Compare with recorded runs.")
@click.argument("more", nargs=-1, type=A_FILE, metavar="[FILE...]")
@click.option("--requests", type=click.Choice(["scenario", "recorded"]), help="Whose requests to simulate.")
@click.option("--quantization", metavar="NAME", help="awq, gptq, fp8 ...; default: what the model's config says.")
@click.option("--tensor-parallel-size", type=click.IntRange(1), metavar="N", help="GPUs that share the model.")
@click.option("--engine-arg", multiple=True, metavar="KEY=VALUE", help="Any other vLLM argument.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Real runs.")
@click.option("--resume", is_flag=True, help="Go on with the real runs that are in DIR.")
@click.option("--bounds", metavar="NAME=PERCENT,...", help="Exit with 1 when a figure is off by more.")
@html_option
@json_option("validation.json instead of the table")
@quiet_option
@with_asked
def validate(
    asked: Asked,
    /,
    model: str | None,
    url: str | None,
    recorded: tuple[Path, ...],
    more: tuple[Path, ...],
    bounds: str | None,
    **flags: Any,
) -> None:
    """Simulate the scenario in FILE and compare it with a real run of the same requests.

    The real run is made now, in real time on a vLLM server that is started for it (--engine; several FILEs share one
    start) or on a running server of OpenAI's protocol (--server), or was recorded (--recorded: the result of
    `vllm bench serve` or its older forms, of SGLang's bench_serving, GuideLLM, aiperf or inference-perf, or
    LLMServingSim's requests.jsonl). Several results, or a folder of them, are several runs of one server: a table.
    Figures and pictures are written to DIR, by default results/validate-<name of FILE>, with --recorded or --server
    -recorded or -server after it; those of several FILEs to DIR/<name of FILE>.
    """
    from simbatch.profiler.validate import Bounds

    if [model is None, not recorded, url is None].count(False) != 1:
        raise click.UsageError("name either a model with --engine, a server with --server, or a file with --recorded")
    if more and url is not None:
        raise click.UsageError(f"got unexpected extra arguments ({' '.join(map(str, more))})")
    mode = "--engine" if model is not None else "--server" if url is not None else "--recorded"
    _refuse_flags(mode, flags)
    limits = None if bounds is None else Bounds.parse(bounds)
    if flags["max_concurrency"] is not None:  # a limit holds on both sides
        asked.assignments += (f"workload.max_concurrency={flags['max_concurrency']}",)
    if model is not None:
        is_within = _engine(asked, (asked.file, *more), model, limits, flags)
    else:
        scenario, output = _loaded(asked), _output(asked, "-recorded" if recorded else "-server", flags)
        validation: Validation | Many
        if url is None:
            validation = _recorded(asked, scenario, (*recorded, *more), flags["requests"], limits)
        else:
            validation = _server(asked, scenario, _how(url, flags), output.folder, limits)
        is_within = _show(asked, validation, output)
    if not is_within:
        raise click.exceptions.Exit(OUTSIDE)


def _loaded(asked: Asked, *checks: Callable[[Scenario], object]) -> Scenario:
    """The scenario, whose mistakes are told before any time is spent."""
    from simbatch.sim.scenario import resolve

    scenario = asked.load()
    scenario.refuse_cluster("simbatch validate")
    for check in (*checks, resolve):
        check(scenario)
    return scenario


def _output(asked: Asked, mode: str, flags: dict[str, Any]) -> Output:
    from simbatch.profiler.validate.pictures import OWN_FILES

    of_runs = () if mode == "-recorded" or flags["resume"] else ("run-1/result.json",)
    return Output(asked, f"validate-{asked.file.stem}{mode}", (*OWN_FILES, *of_runs))


def _how(url: str, flags: dict[str, Any]) -> ServerOptions:
    """How the real runs are made."""
    from simbatch.profiler.validate.on_server import ServerOptions

    temperature = flags["temperature"] or 0.0
    return ServerOptions(url, flags["served_model"], temperature, flags["repeat"], resume=flags["resume"])


def _told(asked: Asked) -> Told:
    """Who is told how the runs go on."""
    from simbatch.profiler.validate.on_server import Told, progress

    return Told(asked.say, partial(progress, quiet=asked.quiet))


def _server(asked: Asked, scenario: Scenario, how: ServerOptions, folder: Path, bounds: Bounds | None) -> Validation:
    from simbatch.profiler.validate.on_server import validate_server

    return validate_server(scenario, how, folder, bounds=bounds, told=_told(asked))


def _recorded(
    asked: Asked, scenario: Scenario, paths: tuple[Path, ...], source: str | None, bounds: Bounds | None
) -> Validation | Many:
    from simbatch.profiler.records.recorded import gather
    from simbatch.profiler.validate.many import compare_recorded

    with working("reading", quiet=asked.quiet):
        gathered = gather(paths)
    if (number := len(gathered.runs)) == 1:
        with working("simulating", quiet=asked.quiet):
            return compare_recorded(scenario, gathered, source, bounds)
    with progress_of("simulating", number, quiet=asked.quiet) as progress:
        return compare_recorded(scenario, gathered, source, bounds, progress)


def _engine(asked: Asked, files: tuple[Path, ...], model: str, bounds: Bounds | None, flags: dict[str, Any]) -> bool:
    """Scenarios on one start of a server; whether all keep to their bounds."""
    from simbatch.cli.profile import _extra as engine_args_of
    from simbatch.profiler.server.start import check_model, require_vllm
    from simbatch.profiler.validate.matching import check_can_run, engine_options
    from simbatch.profiler.validate.on_recorded import Job, validate_engine

    given, wanted, jobs, outputs = asked.folder, [], [], []
    for file in files:
        own = replace(asked, file=file, folder=given / file.stem if given and len(files) > 1 else given)
        scenario = _loaded(own, check_can_run)
        wanted.append(
            engine_options(
                scenario,
                model,
                quantization=flags["quantization"],
                tensor_parallel_size=flags["tensor_parallel_size"],
                extra=engine_args_of(flags["engine_arg"]),
            )
        )
        outputs.append(_output(own, "", flags))
        jobs.append(Job(scenario, outputs[-1].folder))
    for file, options in zip(files, wanted, strict=True):
        if options != wanted[0]:
            rule = f"needs another engine than {files[0]}, and scenarios share one start"
            raise UserError(Problem(str(file), rule, mend="validate it apart, or write the same engine and policy"))
    require_vllm()
    check_model(wanted[0])
    log_folder = jobs[0].folder if len(jobs) == 1 else given or Path("results")
    is_within = True
    try:
        found = validate_engine(jobs, wanted[0], _how("", flags), log_folder, bounds=bounds, told=_told(asked))
        for output, validation in zip(outputs, found, strict=True):
            is_within = _show(asked, validation, output) and is_within
        return is_within
    except KeyboardInterrupt:
        if any(any(job.folder.glob("run-*/result.json")) for job in jobs):
            click.echo(f"\nthe runs that had ended are kept in {log_folder}; go on with --resume", err=True)
        raise


def _refuse_flags(mode: str, flags: dict[str, Any]) -> None:
    """What belongs to another kind of validation."""
    for name, goes_with in GOES_WITH.items():
        is_given = flags[name] not in (None, (), False) and (name, flags[name]) != ("repeat", 1)
        if is_given and mode not in goes_with:
            given = (flags[name],) if name == "requests" else ()
            raise UserError(Problem(flags_of([name]), f"goes with {goes_with}", *given))


def _show(asked: Asked, validation: Validation | Many, output: Output) -> bool:
    """Write and show it; whether it keeps to its bounds."""
    from simbatch.profiler.validate.page import validation_page
    from simbatch.profiler.validate.pictures import save
    from simbatch.profiler.validate.report import text_of
    from simbatch.sim.report.page.page import page_writer

    page = page_writer(partial(validation_page, validation), html=asked.html)
    written = save(validation, output.folder, page)
    output.show(written, partial(text_of, validation), "validation.json")
    return validation.is_within_bounds
