"""`simbatch plan`: how many GPUs of which type keep the limits for a traffic, in which shape, at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import (
    TRACE_FLAGS,
    html_option,
    jobs_option,
    trace_changes,
    version_option,
    with_trace_flags,
)
from simbatch.cli._output import Output, progress_of, say_to
from simbatch.cli._trace_options import reading_of, trace_options
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.plan.ask import FleetQuestion
    from simbatch.sim.plan.kinds import Wanted

Count = click.IntRange(min=1)
TokenCount = click.IntRange(min=1, max=2**20)


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@version_option
@trace_options
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Results go here.")
@click.option("--model", metavar="M", help="Without FILE: the model, as Qwen/Qwen3-32B.")
@click.option(
    "--preset",
    metavar="NAME",
    help="Without FILE: traffic by name: chat, code, rag, summarize, chat_sessions, coding_agent.",
)
@click.option("--prompt-len", type=TokenCount, metavar="N", help="Without FILE: mean tokens of a prompt.")
@click.option("--output-len", type=TokenCount, metavar="N", help="Without FILE: mean tokens of an output.")
@click.option("--prefix-len", type=TokenCount, metavar="N", help="Tokens that all prompts begin with, in front.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="F", help="The traffic of a trace's file.")
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
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key of the scenario.")
@click.option("--seed", type=int, metavar="N", help="Set the scenario's seed.")
@jobs_option
@html_option
@click.option("--scheduler", metavar="ADDRESS", help="A Dask cluster instead: tcp://host:8786.")
@click.option("--resume", is_flag=True, help="Take simulations from DIR that an earlier plan has run.")
@click.option("--json", "as_json", is_flag=True, help="Print plan.json instead of the report.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def plan(
    file: Path | None,
    folder: Path | None,
    jobs: int,
    html: bool,
    scheduler: str | None,
    resume: bool,
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Find the cheapest fleet that keeps the limits: GPU type, tensor parallelism, replicas, engine settings, router.

    The traffic is that of the scenario in FILE, of --trace, or of --model with --prompt-len and --output-len, at --rate
    requests per second. Without --limit, 99 % of the requests must keep FILE's SLO. Results go to DIR, by default
    results/<name of FILE>-plan.
    """
    from simbatch.sim.plan.ask import checked
    from simbatch.sim.plan.report import OWN_FILES

    if scheduler is not None and jobs != -1:
        raise UserError(Problem("--jobs", "says nothing to a cluster: its workers do", jobs, "leave it out"))
    question = checked(_question(file, asked))
    output = Output(folder, f"{file.stem}-plan" if file is not None else "plan", OWN_FILES)
    where: dict[str, Any] = {"jobs": jobs, "scheduler": scheduler, "resume": resume}
    with progress_of("plan, simulations", None, quiet=quiet) as progress, _kept(output.folder, quiet=quiet):
        found = question.answer(output.folder, progress=progress, **where)
    written = found.save(output.folder, html=html)
    output.show(written, found.text, "plan.json" if as_json else None, quiet=quiet, unread=found.unread)


@contextmanager
def _kept(folder: Path, *, quiet: bool) -> Iterator[None]:
    """Say how to go on when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        say_to(quiet=quiet)(f"the simulations so far are in {folder / 'cells'}; go on with --resume")
        raise


def _question(file: Path | None, asked: dict[str, Any]) -> FleetQuestion:
    """What the flags say."""
    from simbatch.sim.plan.ask import FleetQuestion
    from simbatch.sim.scenario import Scenario, parse_overrides
    from simbatch.sim.tuning.goal import Limit

    version, seed = asked["vllm_version"], asked["seed"]
    scenario = None if file is None else Scenario.load(file)
    if scenario is not None and asked["trace"] is None:
        (scenario,) = with_trace_flags([scenario])
    changes = [
        ({} if file and asked["trace"] is None else trace_changes(reading_of(asked["trace"])), TRACE_FLAGS),
        ({} if version is None else {"engine.vllm_version": version}, "--vllm-version"),
        (parse_overrides(asked["assignments"]), "--set"),
        ({} if seed is None else {"seed": seed}, "--seed"),
    ]
    same = ("model", "preset", "prompt_len", "output_len", "prefix_len", "trace", "rate", "growth", "routers", "spare")
    return FleetQuestion(
        scenario,
        tuple(map(Limit.parse, asked["limits"])),
        _wanted(asked),
        changes=[(values, origin) for values, origin in changes if values],
        bands=not asked["no_bands"],
        **{name: asked[name] for name in (*same, "max_gpus", "seconds", "replications")},
    )


def _wanted(asked: dict[str, Any]) -> Wanted:
    from simbatch.sim.plan.kinds import Wanted, parse_gpus, parse_sizes
    from simbatch.sim.plan.prices import parse_prices

    return Wanted(
        gpus=None if asked["gpus"] is None else parse_gpus(asked["gpus"]),
        sizes=None if asked["sizes"] is None else parse_sizes(asked["sizes"]),
        weights=asked["weights"],
        prices=parse_prices(asked["prices"]),
        gpus_per_node=asked["gpus_per_node"],
    )
