"""`simbatch profile`: measure a model through vLLM, or estimate it from its config and a GPU's datasheet."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import flags_of
from simbatch.cli._output import replacing, show_page
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.profiler.profile import Files, MeasuredFit
    from simbatch.profiler.profile.measure import Budget

_OF_ESTIMATES = {"quantization", "kv_cache_dtype", "tensor_parallel_size"}
NOT_QUIET = 1.2  # slowest over fastest canary


@click.command()
@click.argument("model", required=False)
@click.option("--quantization", metavar="NAME", help="awq, gptq, fp8 ...; default: what the model's config says.")
@click.option("--kv-cache-dtype", metavar="NAME", help="auto, fp8 ...: the type of the KV cache.")
@click.option("--tensor-parallel-size", type=click.IntRange(1), metavar="N", help="GPUs that share the model.")
@click.option("--max-num-seqs", type=click.IntRange(1), metavar="N", help="Requests that run at once, at most.")
@click.option("--max-num-batched-tokens", type=click.IntRange(1), metavar="N", help="Tokens of a step, at most.")
@click.option("--max-model-len", type=click.IntRange(1), metavar="N", help="Tokens of a request, at most.")
@click.option(
    "--gpu-memory-utilization",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="Share of the memory that vLLM takes.",
)
@click.option("--engine-arg", "engine_args", multiple=True, metavar="KEY=VALUE", help="Any other vLLM argument.")
@click.option("--server", "url", metavar="URL", help="Measure this running server instead of one of our own.")
@click.option(
    "--steps", type=click.Path(path_type=Path), metavar="FILE", help="With --server: where its recorder writes."
)
@click.option("--served-model", metavar="NAME", help="With --server: its name there; default: the only one.")
@click.option(
    "--budget-minutes",
    type=click.FloatRange(0, min_open=True),
    default=7.0,
    show_default=True,
    metavar="M",
    help="Measure no longer than that, vLLM's start apart; it ends sooner when the held-out error stops improving.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of the design.")
@click.option("--resume", is_flag=True, help="Go on with the samples next to FILE.")
@click.option(
    "--roofline",
    type=(click.Path(path_type=Path), str),
    metavar="MODEL_CONFIG GPU",
    help="Estimate instead of measuring: `simbatch estimate` by its older name.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The profile.")
def profile(
    model: str | None,
    output: Path,
    budget_minutes: float,
    seed: int,
    resume: bool,
    roofline: tuple[Path, str] | None,
    engine_args: tuple[str, ...],
    url: str | None,
    steps: Path | None,
    served_model: str | None,
    **flags: Any,
) -> None:
    """Measure MODEL (a folder or a name of Hugging Face) on this machine through vLLM's server and write a profile.

    Give the flags that you serve with. What was measured is kept next to FILE as it comes: after an interruption go on
    with --resume.
    """
    from simbatch.sim.files import check_target

    check_target(output)
    if [model, roofline, url].count(None) != 2:
        raise click.UsageError("name either a MODEL to measure, a --server, or --roofline MODEL_CONFIG GPU to estimate")
    given = {key: value for key, value in flags.items() if value is not None}
    _check_server(url, steps, served_model, [*given, *(["engine_arg"] if engine_args else [])])
    if roofline is not None:
        _estimate(*roofline, given, output)
        return
    from simbatch.profiler.profile import Files, Running
    from simbatch.profiler.server.start import EngineOptions

    files = Files(output)
    target: EngineOptions | Running
    if url is not None and steps is not None:
        target = Running(url, steps, served_model)
    else:
        target = EngineOptions(str(model), **given, seed=seed, extra=_extra(engine_args), log=files.log)
    with replacing(None if resume else output):
        measured = _measure(target, files, budget_minutes, seed, resume)
    _show(measured, files)


def _check_server(url: str | None, steps: Path | None, served_model: str | None, others: list[str]) -> None:
    """UserError for what does not go with a server that is there, or without one."""
    if url is None:
        for name, value in (("--steps", steps), ("--served-model", served_model)):
            if value is not None:
                raise UserError(Problem(name, "goes with --server alone", str(value)))
        return
    if steps is None:
        mend = "name the file that its recorder writes (docs/recorder.md), or that of `simbatch serve --steps`"
        raise UserError(Problem("--server", "does not tell its steps to a client", mend=f"--steps FILE: {mend}"))
    if others:
        raise UserError(
            Problem(
                flags_of(others[:1]), "is said when a server is started, and --server is running", mend="leave it out"
            )
        )


def _measure(target: Any, files: Files, budget_minutes: float, seed: int, resume: bool) -> MeasuredFit:
    import time

    from simbatch.profiler.profile import Measuring, Running, check_start
    from simbatch.profiler.profile.measure import Budget, check_not_begun

    if isinstance(target, Running):
        check_not_begun(files.samples, resume=resume)
        command = f"simbatch profile --server URL --seed {seed} --budget-minutes {budget_minutes:g}"
    else:
        check_start(target, files, resume=resume)
        command = _command_line(target, budget_minutes)
        click.echo(f"starting vLLM's server with {target.model} (its messages go to {files.log})", err=True)
        for warning in target.warnings:
            click.echo(f"note: {warning}", err=True)
    budget, say = partial(Budget, 60 * budget_minutes, time.monotonic), partial(click.echo, err=True)
    try:
        return Measuring(target, files, budget, resume, seed, command, _progress, say).run()
    except (KeyboardInterrupt, UserError):
        if files.samples.exists():
            click.echo(f"what was measured is kept in {files.samples}; go on with --resume", err=True)
        raise


LINE_S = 15.0  # between two lines in a file
SOONER = "the time left is at most what is shown: it ends sooner when the held-out error stops improving"


def left_text(seconds: float) -> str:
    """An upper bound, for the budget ends it."""
    return f"at most {_minutes(seconds)} left"


def _plan_text(seconds: float) -> str:
    """What the time is for."""
    from simbatch.profiler.profile.measure import MAX_TABLE, TRAFFIC

    return (
        f"plan for {_minutes(seconds)}: on a CPU a warm-up; the batch table, {_minutes(MAX_TABLE * seconds)} at most; "
        f"traffic at four loads, {_minutes(TRAFFIC * seconds)}; waves of decodes and prompts until the end; the fit"
    )


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextmanager
def _progress(budget: Budget) -> Iterator[Callable[[str], None]]:
    """What to call with the present activity."""
    print(_plan_text(budget.seconds), file=sys.stderr)
    print(SOONER, file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        yield from _bar(budget)
    else:
        yield from _lines(budget)


def _bar(budget: Budget) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=budget.seconds)

        def tell(what: str) -> None:
            bar.update(task, completed=budget.elapsed_s, description=f"{left_text(budget.left_s)}: {what}")

        yield tell


def _lines(budget: Budget) -> Iterator[Callable[[str], None]]:
    last, last_s = "", float("-inf")

    def tell(what: str) -> None:
        nonlocal last, last_s
        activity = what.split(":")[0].split(" ")[0]
        if activity != last or budget.elapsed_s - last_s > LINE_S:
            last, last_s = activity, budget.elapsed_s
            print(f"{left_text(budget.left_s)}: {what}", file=sys.stderr, flush=True)

    yield tell


def _command_line(options: Any, budget_minutes: float) -> str:
    """The command that does the same again, without paths of this machine."""
    flags = [f"--{key.replace('_', '-')} {value}" for key, value in vars(options).items() if value is not None]
    skipped = ("--model ", "--extra ", "--log ")
    flags = [flag for flag in flags if not flag.startswith(skipped)]
    flags += [f"--engine-arg {shlex.quote(f'{key}={value}')}" for key, value in options.extra.items()]
    name = Path(options.model).name if Path(options.model).is_absolute() else options.model
    return " ".join(["simbatch profile", shlex.quote(name), *flags, f"--budget-minutes {budget_minutes:g}"])


def _extra(assignments: tuple[str, ...]) -> dict[str, Any]:
    import yaml

    extra = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.isidentifier():
            mend = "write KEY=VALUE, as in --engine-arg enforce_eager=true"
            raise UserError(Problem("--engine-arg", "must be an argument of vLLM and its value", assignment, mend))
        try:
            extra[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(Problem(f"--engine-arg {key}", "the value is not YAML", value)) from None
    return extra


def _show(measured: MeasuredFit, files: Files) -> None:
    from simbatch.profiler.profile.batches import batch_notes, batch_table
    from simbatch.profiler.profile.predicted import memory_table, planned_memory, utilisation

    facts, rows = measured.samples.engine, measured.samples.batches
    shares, no_roofline = utilisation(facts, rows)
    cut = [note["text"] for note in measured.samples.notes if "batch table" in note.get("text", "")][-1:]
    planned, how = planned_memory(facts)
    notes = [f"- {note}" for note in (*batch_notes(rows, facts, no_roofline), *cut)]
    lines = [*batch_table(rows, facts, shares), *notes, "", *memory_table(facts, planned), f"- {how}"]
    show_page("\n".join([*lines, "", measured.fitted.text]))
    if (times := measured.canary_ratio) > NOT_QUIET:
        click.echo(
            f"warning: the machine was not quiet: one step took {times:.1f} times as long at one time as at another; "
            "measure again when it is",
            err=True,
        )
    written = [path.name for path in files.pictures if path.exists()]
    click.echo(f"{measured.why_ended}\n{files.profile}, {', '.join(written)}", err=True)


def _estimate(config: Path, gpu: str, flags: dict[str, Any], output: Path) -> None:
    """The profile that `simbatch estimate` would write, from a config and a datasheet."""
    from simbatch.cli.memory import roofline, write

    if flags.keys() - _OF_ESTIMATES:
        raise click.UsageError(
            f"{flags_of(sorted(flags.keys() - _OF_ESTIMATES))}: a roofline estimate takes --quantization, "
            "--kv-cache-dtype and --tensor-parallel-size alone; the scenario's engine section has the rest"
        )
    estimated, _ = roofline(str(config), output, {**flags, "gpu": gpu}, place="--roofline GPU")
    memory = estimated.memory
    show_page(
        f"{estimated.name}: {memory.num_gpu_blocks:,} KV blocks of {memory.block_size} tokens, "
        f"weights of {memory.weights_bytes / 2**30:.1f} GiB; {estimated.notes[0]}"
    )
    write(estimated, output, f"{estimated.name}, an estimate")
