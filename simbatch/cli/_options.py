"""Options that several commands share, the scenario that they make, and those of `simbatch validate --server`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._trace_options import trace_flags, trace_options
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.profiler.validate import Bounds, Validation
    from simbatch.profiler.validate.on_server import Told
    from simbatch.sim.scenario import Scenario


Command = Callable[..., Any]
HOST = "simbatch.host"  # among what a command's context keeps


def gpu_options(command: Command) -> Command:
    """--gpu and --gpu-spec, for `gpus.gpu_of`."""
    spec = "Your own datasheet, or what differs from G's: memory=24GiB,bandwidth=936GB/s,bf16_flops=71T,link=32GB/s."
    command = click.option("--gpu-spec", metavar="KEY=VALUE,...", help=spec)(command)
    return click.option("--gpu", metavar="G", help="h100, a100-40, rtx3090 ... (`simbatch profiles gpus`).")(command)


def scenario_options(command: Command) -> Command:
    """FILE, --set, --seed and -o, which every command that simulates takes."""
    options = (
        click.argument("file", type=click.Path(path_type=Path)),
        click.option(
            "-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Results go here."
        ),
        click.option(
            "--set",
            "assignments",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set a key of the scenario: --set engine.max_num_seqs=64. Can be repeated.",
        ),
        click.option("--seed", type=int, metavar="N", help="Set the scenario's seed."),
    )
    command = trace_options(host_option(command))
    for option in reversed(options):
        command = option(command)
    return command


def host_option(command: Command) -> Command:
    """--host, of the commands that simulate; `load_scenario` finds it."""

    @wraps(command)
    def with_host(*args: Any, host: str | None, **others: Any) -> Any:
        click.get_current_context().meta[HOST] = host
        return command(*args, **others)

    text = "Take this profile's host and front end, not those of the scenario's."
    return click.option("--host", metavar="PROFILE", help=text)(with_host)


def jobs_option(command: Command) -> Command:
    """--jobs, of the commands that simulate on several processes; UserError at 0 before any work."""

    def checked(_context: click.Context, _parameter: click.Parameter, jobs: int) -> int:
        if jobs == 0:
            raise UserError(Problem("--jobs", "must not be 0", 0, "-1 is one process per core"))
        return jobs

    text = "Processes; -1: one per core."
    return click.option("--jobs", type=int, default=-1, metavar="N", help=text, callback=checked)(command)


def bands_option(command: Command) -> Command:
    """--bands, of the commands that can say how far their figures may be off."""
    text = "Simulate 19 draws of what the profile is in doubt about too, and say what nine in ten lie between."
    return click.option("--bands", is_flag=True, help=text)(command)


def html_option(command: Command) -> Command:
    """--html, of the commands whose result can be shown to others; UserError without plotly before any work."""

    def checked(_context: click.Context, _parameter: click.Parameter, html: bool) -> bool:
        if html:
            from simbatch.sim.report.page.page import require_plotly

            require_plotly()
        return html

    text = "Write report.html too: one file with the answer, interactive charts and all figures, to send to others."
    return click.option("--html", is_flag=True, help=text, callback=checked)(command)


def policy_option(command: Command) -> Command:
    """--policy, of the commands that run a scenario under one policy."""
    text = "Another policy: a name, package.module:Class, or file.py:Class."
    return click.option("--policy", metavar="P", help=text)(command)


def router_option(command: Command) -> Command:
    """--router, of the commands that run a cluster behind one router."""
    text = "Another router of the cluster: a name, package.module:Class, or file.py:Class."
    return click.option("--router", metavar="R", help=text)(command)


def version_option(command: Command) -> Command:
    """--vllm-version, of the commands that run a scenario under one version of vLLM."""
    text = "The vLLM whose rules and defaults hold, as 0.27; default: the newest that is tested."
    return click.option("--vllm-version", metavar="V", help=text)(command)


def load_scenario(
    file: Path,
    assignments: tuple[str, ...],
    seed: int | None,
    policy: str | None = None,
    profile: str | None = None,
    router: str | None = None,
    vllm_version: str | None = None,
) -> Scenario:
    """The scenario of `file` with what the flags change.

    First --policy, --profile, --host, those that say how a trace is read, --vllm-version, then --set, then --router
    (which needs a cluster, and --set makes one), then --seed.
    """
    from simbatch.sim.scenario import Scenario, parse_overrides

    values = parse_overrides(assignments)
    scenario = Scenario.load(file)
    if policy is not None:
        scenario = scenario.with_policy(policy)
    if profile is not None:
        scenario = scenario.with_profile(profile)
    context = click.get_current_context(silent=True)
    if context is not None and (host := context.meta.get(HOST)) is not None:
        scenario = scenario.with_host(host)
    (scenario,) = with_trace_flags([scenario])
    if vllm_version is not None:
        scenario = scenario.override({"engine.vllm_version": vllm_version}, origin="--vllm-version")
    if values:
        scenario = scenario.override(values, origin="--set")
    if router is not None:
        scenario = scenario.with_router(router)
    return scenario if seed is None else scenario.override({"seed": seed}, origin="--seed")


def with_trace_flags(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """The scenarios, those of a trace with what the flags of `ROW_KEYS` say of it."""
    read = trace_flags()
    if read and all(scenario.workload.trace is None for scenario in scenarios):
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in read)
        raise UserError(Problem(flags, "the scenario's workload is no trace", mend="leave it out, or name a trace"))

    def changed(scenario: Scenario) -> Scenario:
        is_traced = bool(read) and scenario.workload.trace is not None
        changes = trace_changes(read)
        return scenario.override(changes, origin=trace_origins(changes)) if is_traced else scenario

    return [*map(changed, scenarios)]


def trace_changes(read: dict[str, Any]) -> dict[str, Any]:
    """What flags say of a trace, as dotted keys of a scenario."""
    columns = {f"workload.trace.columns.{kind}": name for kind, name in read.get("columns", {}).items()}
    return {**columns, **{f"workload.trace.{key}": value for key, value in read.items() if key != "columns"}}


def trace_origins(changes: dict[str, Any]) -> dict[str, str]:
    """The flag that each of `trace_changes` comes from."""
    keys = {change: change.removeprefix("workload.trace.").partition(".")[0] for change in changes}
    return {change: f"--{key.replace('_', '-')}" for change, key in keys.items()}


@dataclass(frozen=True)
class ServerFlags:
    """What was given of the options that belong to `--server`; false without it."""

    url: str | None
    model: str | None
    max_concurrency: int | None
    temperature: float | None

    def __bool__(self) -> bool:
        return self.url is not None

    @property
    def assignments(self) -> tuple[str, ...]:
        """What they change in the scenario: a limit holds on both sides."""
        limit = self.max_concurrency
        return () if limit is None else (f"workload.max_concurrency={limit}",)

    def refuse_without(self, *, has_server: bool) -> None:
        """UserError for an option that says nothing without a server, a running one or one of our own."""
        if self.model is not None and not self:
            raise UserError(Problem("--served-model", "goes with --server alone"))
        for name, value in (("--max-concurrency", self.max_concurrency), ("--temperature", self.temperature)):
            if value is not None and not self and not has_server:
                raise UserError(Problem(name, "goes with --server or --engine"))

    def told(self, *, quiet: bool) -> Told:
        """Who is told how the runs go on."""
        from simbatch.profiler.validate.on_server import Told, progress

        return Told(
            say=lambda line: None if quiet else click.echo(line, err=True),
            progress=lambda runs, requests, run_s: progress(runs, requests, run_s, quiet=quiet),
        )

    def validate(
        self, scenario: Scenario, folder: Path, bounds: Bounds | None, flags: dict[str, Any], *, quiet: bool
    ) -> Validation:
        """Real runs on the server beside the simulation."""
        from simbatch.profiler.validate.on_server import ServerOptions, validate_server
        from simbatch.sim.scenario import resolve

        resolve(scenario)  # its mistakes, before anybody is asked
        options = ServerOptions(
            str(self.url), self.model, self.temperature or 0.0, flags["repeat"], resume=flags["resume"]
        )
        return validate_server(scenario, options, folder, bounds=bounds, told=self.told(quiet=quiet))


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add them; the command gets them as one, `server`."""

    @click.option("--server", "server_url", metavar="URL", help="Send the requests to this server, in real time.")
    @click.option("--served-model", metavar="NAME", help="With --server: its name there; default: the only one.")
    @click.option(
        "--max-concurrency", type=click.IntRange(1), metavar="N", help="With --server or --engine: most at once."
    )
    @click.option("--temperature", type=click.FloatRange(0), metavar="T", help="Of sampling; default 0, greedy.")
    @wraps(command)
    def with_server(
        server_url: str | None,
        served_model: str | None,
        max_concurrency: int | None,
        temperature: float | None,
        **given: Any,
    ) -> None:
        command(server=ServerFlags(server_url, served_model, max_concurrency, temperature), **given)

    return with_server
