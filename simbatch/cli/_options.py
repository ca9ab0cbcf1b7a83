"""Options that several commands share. What they say is kept in one `Asked`, which makes the scenario too."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.scenario import Scenario

Command = Callable[..., Any]
Option = Callable[[Command], Command]
A_FILE = click.Path(path_type=Path)
Count = click.IntRange(min=1)


@dataclass
class Asked:
    """What was said by the options that several commands share; a command without one of them has what stands here.

    `reading` is how the trace is read, by the keys of `workload.trace`.
    """

    file: Path = Path()
    folder: Path | None = None
    assignments: tuple[str, ...] = ()
    seed: int | None = None
    policy: str | None = None
    profile: str | None = None
    router: str | None = None
    vllm_version: str | None = None
    host: str | None = None
    reading: dict[str, Any] = field(default_factory=dict)
    jobs: int = -1
    html: bool = False
    as_json: bool = False
    quiet: bool = False

    def load(self, **instead: Any) -> Scenario:
        """The scenario of `file` with what the flags change, those of `instead` in their place.

        First --policy, --profile, --host, those that say how a trace is read, --vllm-version, then --set, then --router
        (which needs a cluster, and --set makes one), then --seed.
        """
        from simbatch.sim.scenario import Scenario, parse_overrides

        if instead:
            return replace(self, **instead).load()
        values = parse_overrides(self.assignments)
        scenario = Scenario.load(self.file)
        if self.policy is not None:
            scenario = scenario.with_policy(self.policy)
        if self.profile is not None:
            scenario = scenario.with_profile(self.profile)
        if self.host is not None:
            scenario = scenario.with_host(self.host)
        (scenario,) = self.with_trace_flags([scenario])
        if self.vllm_version is not None:
            scenario = scenario.override({"engine.vllm_version": self.vllm_version}, origin="--vllm-version")
        if values:
            scenario = scenario.override(values, origin="--set")
        if self.router is not None:
            scenario = scenario.with_router(self.router)
        return scenario if self.seed is None else scenario.override({"seed": self.seed}, origin="--seed")

    def with_trace_flags(self, scenarios: Sequence[Scenario]) -> list[Scenario]:
        """The scenarios, those of a trace read as the flags say; UserError where there is none."""
        if self.reading and all(scenario.workload.trace is None for scenario in scenarios):
            mend = "leave it out, or name a trace"
            raise UserError(Problem(flags_of(self.reading), "the scenario's workload is no trace", mend=mend))
        changes, origins = trace_changes(self.reading)
        return [
            each.override(changes, origin=origins) if changes and each.workload.trace else each for each in scenarios
        ]

    def reading_of(self, trace: str | Path | None) -> dict[str, Any]:
        """How the file of --trace is read; UserError where flags say it of none."""
        if self.reading and trace is None:
            raise UserError(Problem(flags_of(self.reading), "there is no trace to read", mend="add --trace FILE"))
        return self.reading

    def refuse_jobs_beside(self, scheduler: str | None) -> None:
        """UserError where processes here and those of a cluster are both asked for."""
        if scheduler is not None and self.jobs != -1:
            raise UserError(Problem("--jobs", "says nothing to a cluster: its workers do", self.jobs, "leave it out"))

    def say(self, line: str) -> None:
        """A line on stderr for whoever looks on."""
        if not self.quiet:
            click.echo(line, err=True)


with_asked = click.make_pass_decorator(Asked, ensure=True)


def flags_of(keys: Any) -> str:
    """`--max-num-seqs, --seed`: the flags of these names of parameters."""
    return ", ".join(f"--{key.replace('_', '-')}" for key in keys)


def trace_changes(read: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What flags say of a trace, as dotted keys of a scenario, and the flag that each comes from."""
    parts = {**{f"columns.{kind}": name for kind, name in read.get("columns", {}).items()}, **read}
    changes = {f"workload.trace.{key}": value for key, value in parts.items() if key != "columns"}
    return changes, {key: flags_of([key.split(".")[2]]) for key in changes}


def kept(name: str, *declared: str, check: Callable[[Any], Any] | None = None, **how: Any) -> Option:
    """An option that says a field of `Asked`, by its name; `check` makes the field of what is given."""

    def keep(context: click.Context, _: click.Parameter, value: Any) -> None:
        setattr(context.ensure_object(Asked), name, value if check is None else check(value))

    return click.option(*(declared or [flags_of([name])]), name, expose_value=False, callback=keep, **how)


def read_option(key: str, check: Callable[[Any], Any] | None = None, **how: Any) -> Option:
    """An option that says how a trace is read, by a key of `workload.trace`."""

    def keep(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            context.ensure_object(Asked).reading[key] = value if check is None else check(value)

    return click.option(flags_of([key]), key, expose_value=False, callback=keep, **how)


def together(*options: Option) -> Option:
    """Several options as one decorator, in the order of the help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _keep_file(context: click.Context, _: click.Parameter, file: Path) -> None:
    context.ensure_object(Asked).file = file


def set_option(text: str = "Set a key of the scenario.") -> Option:
    """--set, of the commands that take a scenario."""
    return kept("assignments", "--set", multiple=True, metavar="KEY=VALUE", help=text)


def json_option(what: str) -> Option:
    """--json, which prints `what`."""
    return kept("as_json", "--json", is_flag=True, help=f"Print {what}.")


def _require_plotly(html: bool) -> bool:
    if html:
        from simbatch.sim.report.page.page import require_plotly

        require_plotly()
    return html


def _check_jobs(jobs: int) -> int:
    if jobs == 0:
        raise UserError(Problem("--jobs", "must not be 0", 0, "-1 is one process per core"))
    return jobs


gpu_options = together(
    click.option("--gpu", metavar="G", help="h100, a100-40, rtx3090 ... (`simbatch profiles gpus`)."),
    click.option(
        "--gpu-spec",
        metavar="KEY=VALUE,...",
        help="Your own datasheet, or what differs from G's: memory=24GiB,bandwidth=936GB/s,bf16_flops=71T,link=32GB/s.",
    ),
)
file_argument = click.argument("file", type=A_FILE, expose_value=False, callback=_keep_file)
folder_option = kept("folder", "-o", "--output", type=A_FILE, metavar="DIR", help="Results go here.")
seed_option = kept("seed", type=int, metavar="N", help="Set the scenario's seed.")
quiet_option = kept("quiet", is_flag=True, help="Print nothing but errors.")
jobs_option = kept("jobs", check=_check_jobs, type=int, default=-1, metavar="N", help="Processes; -1: one per core.")
html_option = kept(  # before any work it is said where plotly is missing
    "html",
    is_flag=True,
    check=_require_plotly,
    help="Write report.html too: one file with the answer, interactive charts and all figures, to send to others.",
)
host_option = kept(
    "host", metavar="PROFILE", help="Take this profile's host and front end, not those of the scenario's."
)
policy_option = kept("policy", metavar="P", help="Another policy: a name, package.module:Class, or file.py:Class.")
router_option = kept(
    "router", metavar="R", help="Another router of the cluster: a name, package.module:Class, or file.py:Class."
)
version_option = kept(
    "vllm_version",
    metavar="V",
    help="The vLLM whose rules and defaults hold, as 0.27; default: the newest that is tested.",
)
bands_option = click.option(
    "--bands",
    is_flag=True,
    help="Simulate 19 draws of what the profile is in doubt about too, and say what nine in ten lie between.",
)

KINDS = (
    *("arrival", "prompt", "output", "priority", "tenant", "request_id", "session", "parent", "delay", "hash_ids"),
    "predicted_output",
)
UNITS = ("s", "ms", "us", "ns", "iso")


def columns_of(text: str) -> dict[str, Any]:
    """`arrival=start_time:ms,prompt=tokens_in` as `workload.trace.columns` has it."""
    columns: dict[str, Any] = {}
    for part in next(csv.reader([text], skipinitialspace=True), []):
        kind, equals, name = part.strip().partition("=")
        if kind not in KINDS or not equals or not name:
            rule = f"takes KIND=NAME, KIND one of {', '.join(KINDS)}"
            raise UserError(Problem("--columns", rule, part, "for example arrival=timestamp,prompt=tokens_in"))
        if kind in columns:
            raise UserError(Problem("--columns", f"{kind} stands twice", text, "keep one of them"))
        stem, _, unit = name.rpartition(":")
        columns[kind] = {"name": stem, "unit": unit} if stem and unit in UNITS else name
    return columns


def _bounds_of(text: str) -> list[float | int | str]:
    bounds = [bound.strip() for bound in text.split(",")]
    if len(bounds) != 2 or not all(bounds):
        raise UserError(Problem("--between", "takes two moments", text, "write START,END: --between 60,120"))
    return list(map(_number, bounds))


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


columns_option = read_option(
    "columns", columns_of, metavar="KIND=NAME,...", help="Names of the trace's columns: prompt=NAME,output=NAME."
)
trace_options = together(
    read_option(
        "columns",
        columns_of,
        metavar="KIND=NAME,...",
        help="Names of the trace's columns: arrival=NAME,prompt=NAME,output=NAME ...; arrival=NAME:ms says its unit.",
    ),
    read_option(
        "between", _bounds_of, metavar="START,END", help="Requests of the trace from START up to END, by its own clock."
    ),
    read_option("sort", is_flag=True, default=None, help="Put the trace's rows in order of arrival first."),
    read_option("on_empty", type=click.Choice(["error", "skip"]), help="Rows of it without output tokens."),
    read_option("chars_per_token", type=float, metavar="X", help="A trace of texts: take X characters for a token."),
    read_option(  # a scenario's paths start at its folder
        "tokenizer",
        lambda path: str(Path(path).expanduser().absolute()),
        metavar="FILE",
        help="A trace of texts: count them by this tokenizer.json.",
    ),
)
scenario_options = together(
    file_argument,
    folder_option,
    set_option("Set a key of the scenario: --set engine.max_num_seqs=64. Can be repeated."),
    seed_option,
    trace_options,
    host_option,
)
