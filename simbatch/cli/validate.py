"""`simbatch validate`: a real run beside its simulation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import (
    ServerFlags,
    html_option,
    load_scenario,
    policy_option,
    scenario_options,
    server_options,
    version_option,
)
from simbatch.cli._output import Output, show_page
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.profiler.validate import Bounds, Validation
    from simbatch.profiler.validate.many import Many
    from simbatch.sim.scenario import Scenario

OUTSIDE = 1  # exit code


@click.command()
@scenario_options
@policy_option
@version_option
@click.option("--engine", "model", metavar="MODEL", help="Start vLLM's server with this model: a folder or name.")
@server_options
@click.option(
    "--recorded",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="RESULT...",
    help="Compare with recorded runs.",
)
@click.argument("more", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE...]")
@click.option("--requests", "source", type=click.Choice(["scenario", "recorded"]), help="Whose requests to simulate.")
@click.option("--quantization", metavar="NAME", help="awq, gptq, fp8 ...; default: what the model's config says.")
@click.option("--tensor-parallel-size", type=click.IntRange(1), metavar="N", help="GPUs that share the model.")
@click.option("--engine-arg", "engine_args", multiple=True, metavar="KEY=VALUE", help="Any other vLLM argument.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Real runs.")
@click.option("--resume", is_flag=True, help="Go on with the real runs that are in DIR.")
@click.option("--bounds", metavar="NAME=PERCENT,...", help="Exit with 1 when a figure is off by more.")
@html_option
@click.option("--json", "as_json", is_flag=True, help="Print validation.json instead of the table.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def validate(
    file: Path,
    folder: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    policy: str | None,
    vllm_version: str | None,
    model: str | None,
    server: ServerFlags,
    recorded: tuple[Path, ...],
    more: tuple[Path, ...],
    source: str | None,
    bounds: str | None,
    html: bool,
    as_json: bool,
    quiet: bool,
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

    if [model is None, not recorded, not server].count(False) != 1:
        raise click.UsageError("name either a model with --engine, a server with --server, or a file with --recorded")
    if more and server:
        raise click.UsageError(f"got unexpected extra arguments ({' '.join(map(str, more))})")
    server.refuse_without(has_server=model is not None)
    _refuse_flags(not recorded, source, flags, server)
    limits = None if bounds is None else Bounds.parse(bounds)
    show = Show(html=html, as_json=as_json, quiet=quiet)

    def load(path: Path) -> Scenario:
        given = (*assignments, *server.assignments)
        scenario = load_scenario(path, given, seed, policy, vllm_version=vllm_version)
        scenario.refuse_cluster("simbatch validate")
        return scenario

    if model is not None:
        is_within = _engine((file, *more), load, model, folder, server, limits, flags, show)
    else:
        scenario, output = load(file), _output(folder, file, "-recorded" if recorded else "-server", flags)
        validation = (
            _recorded(scenario, (*recorded, *more), source, limits, quiet)
            if recorded
            else server.validate(scenario, output.folder, limits, flags, quiet=quiet)
        )
        is_within = show(validation, output)
    if not is_within:
        raise click.exceptions.Exit(OUTSIDE)


def _output(folder: Path | None, file: Path, mode: str, flags: dict[str, Any]) -> Output:
    from simbatch.profiler.validate.pictures import OWN_FILES

    of_runs = () if mode == "-recorded" or flags["resume"] else ("run-1/result.json",)
    return Output(folder, f"validate-{file.stem}{mode}", (*OWN_FILES, *of_runs))


def _recorded(
    scenario: Scenario, paths: tuple[Path, ...], source: str | None, bounds: Bounds | None, quiet: bool
) -> Validation | Many:
    from simbatch.cli._output import progress_of, working
    from simbatch.profiler.records.recorded import gather
    from simbatch.profiler.validate.many import compare_recorded
    from simbatch.sim.scenario import resolve

    resolve(scenario)  # its mistakes, before any time is spent
    with working("reading", quiet=quiet):
        gathered = gather(paths)
    if (number := len(gathered.runs)) == 1:
        with working("simulating", quiet=quiet):
            return compare_recorded(scenario, gathered, source, bounds)
    with progress_of("simulating", number, quiet=quiet) as progress:
        return compare_recorded(scenario, gathered, source, bounds, progress)


def _engine(
    files: tuple[Path, ...],
    load: Callable[[Path], Scenario],
    model: str,
    given: Path | None,
    server: ServerFlags,
    bounds: Bounds | None,
    flags: dict[str, Any],
    show: Show,
) -> bool:
    """Scenarios on one start of a server; whether all keep to their bounds."""
    from simbatch.cli.profile import _extra as engine_args_of
    from simbatch.profiler.server.start import check_model, require_vllm
    from simbatch.profiler.validate.matching import check_can_run, engine_options
    from simbatch.profiler.validate.on_recorded import Job, validate_engine
    from simbatch.profiler.validate.on_server import ServerOptions
    from simbatch.sim.scenario import resolve

    wanted, jobs, outputs = [], [], []
    for file in files:
        scenario = load(file)
        check_can_run(scenario)
        resolve(scenario)  # its mistakes, before any time is spent
        wanted.append(
            engine_options(
                scenario,
                model,
                quantization=flags["quantization"],
                tensor_parallel_size=flags["tensor_parallel_size"],
                extra=engine_args_of(flags["engine_args"]),
            )
        )
        folder = given / file.stem if given is not None and len(files) > 1 else given
        outputs.append(_output(folder, file, "", flags))
        jobs.append(Job(scenario, outputs[-1].folder))
    for file, options in zip(files, wanted, strict=True):
        if options != wanted[0]:
            rule = f"needs another engine than {files[0]}, and scenarios share one start"
            raise UserError(Problem(str(file), rule, mend="validate it apart, or write the same engine and policy"))
    require_vllm()
    check_model(wanted[0])
    how = ServerOptions("", None, server.temperature or 0.0, flags["repeat"], resume=flags["resume"])
    log_folder = jobs[0].folder if len(jobs) == 1 else given or Path("results")
    told = server.told(quiet=show.quiet)
    is_within = True
    try:
        found = validate_engine(jobs, wanted[0], how, log_folder, bounds=bounds, told=told)
        for output, validation in zip(outputs, found, strict=True):
            is_within = show(validation, output) and is_within
        return is_within
    except KeyboardInterrupt:
        if any(any(job.folder.glob("run-*/result.json")) for job in jobs):
            click.echo(f"\nthe runs that had ended are kept in {log_folder}; go on with --resume", err=True)
        raise


def _refuse_flags(is_run_now: bool, source: str | None, flags: dict[str, Any], server: ServerFlags) -> None:
    """What belongs to another kind of validation."""
    if is_run_now and source is not None:
        raise UserError(Problem("--requests", "goes with --recorded alone", source))
    defaults: dict[str, Any] = {"repeat": 1}
    allowed = flags.keys() if is_run_now and not server else {"repeat", "resume"} if server else set()
    for name, value in flags.items():
        if name not in allowed and value != defaults.get(name) and value not in (None, (), False):
            also = " or --server" if name in ("repeat", "resume") else " alone"
            raise UserError(Problem(f"--{name.rstrip('s').replace('_', '-')}", f"goes with --engine{also}"))


@dataclass(frozen=True)
class Show:
    """How a validation is shown, once its files are written."""

    html: bool
    as_json: bool
    quiet: bool

    def __call__(self, validation: Validation | Many, output: Output) -> bool:
        """Write and show it; whether it keeps to its bounds."""
        from simbatch.profiler.validate.many import Many
        from simbatch.profiler.validate.page import validation_page
        from simbatch.profiler.validate.pictures import save
        from simbatch.profiler.validate.report import text_of, text_of_many
        from simbatch.sim.report.page.page import page_writer

        page = page_writer(partial(validation_page, validation), html=self.html)
        written = save(validation, output.folder, page)
        output.say_replaced(quiet=self.quiet)
        if self.as_json:
            click.echo((output.folder / "validation.json").read_text(encoding="utf-8"), nl=False)
        elif not self.quiet:
            show_page(text_of_many(validation) if isinstance(validation, Many) else text_of(validation))
            click.echo(f"{len(written)} files in {output.folder}")
        return validation.is_within_bounds
