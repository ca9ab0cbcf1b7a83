"""`simbatch init` (a `vllm serve` command to a scenario), `scenarios`, `schema`, `serve` (vLLM on a simulated GPU)."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli import GroupOfNames
from simbatch.cli._options import Asked, json_option, trace_options, with_asked
from simbatch.cli._output import show_either
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.commands import Made


KINDS = (("used", "simulated"), ("no_effect", "no effect on scheduling"), ("not_simulated", "NOT simulated"))


@click.command()
@click.argument("line", metavar="LINE|FILE")
@click.option("--gpu", metavar="G", help="h100, a100-40, rtx3090 ... (`simbatch profiles gpus`).")
@click.option("--profile", metavar="P", help="This profile, not the one that the command's model and GPU choose.")
@click.option("--trace", metavar="FILE", help="Its requests are the traffic.")
@trace_options
@click.option(
    "--preset", metavar="NAME", help="Traffic by name: chat, code, rag, summarize, chat_sessions, coding_agent."
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="R", help="Requests a second.")
@click.option("--slo", "limits", multiple=True, metavar="KEY=MS", help="--slo ttft_ms=1000 --slo tpot_ms=50.")
@json_option("what became of each flag as JSON")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), required=True, metavar="FILE")
@with_asked
def init(
    asked: Asked,
    line: str,
    gpu: str | None,
    profile: str | None,
    trace: str | None,
    preset: str | None,
    rate: float | None,
    limits: tuple[str, ...],
    target: Path,
) -> None:
    """Write a scenario from a `vllm serve` command, and say what became of every flag.

    LINE is the command in quotes, with `docker run`, environment and all; a `vllm bench serve` behind it is its
    traffic. FILE holds one: a script, a Kubernetes or Compose manifest, or a YAML of vLLM's --config.
    """
    from simbatch.profiler.model.published import facts_of
    from simbatch.sim.commands import Wish, make
    from simbatch.sim.files import check_target, write_text
    from simbatch.sim.scenario.presets import slo_of

    if trace is not None and preset is not None:
        raise UserError(Problem("--preset", "cannot be given with --trace", preset, "give one of the two"))
    check_target(target, [Path(path) for path in (line, trace) if path is not None and len(path) < 1024])
    wish = Wish(gpu, profile, trace, asked.reading_of(trace), rate, preset, slo_of(limits), facts_of)
    made = make(line, wish, target)
    write_text(target, made.text)
    show_either(asked.as_json, made.as_json, lambda: _report(made, target))


def _report(made: Made, target: Path) -> str:
    from simbatch.sim.commands.written import by_reason

    lines = [f"{target}: {made.profile}"]
    for status, words in KINDS:
        reasons = by_reason(made.given, status)  # type: ignore[arg-type]
        if status == "not_simulated":
            lines += [f"  {words}: {flags} ({reason})" for reason, flags in reasons.items()]
        elif reasons:
            lines.append(f"  {words}: {', '.join(reasons.values())}")
    if made.is_example:
        lines.append("  Its traffic is an EXAMPLE (chat at one request a second, if no --rate): put yours into it.")
    return "\n".join([*lines, f"run it: simbatch run {target}"])


@click.group(cls=GroupOfNames)
def scenarios() -> None:
    """List and copy the scenarios that ship; every command that takes a scenario's FILE takes these names too."""


@scenarios.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_scenarios(as_json: bool) -> None:
    """List the scenarios that ship, and what each shows."""
    from simbatch.sim.scenario.presets import about, shipped_scenarios
    from simbatch.sim.text import width

    found = {name: about(name) for name in shipped_scenarios()}
    if as_json:
        click.echo(json.dumps([{"name": name, "about": text} for name, text in found.items()], indent=2))
        return
    longest = max(map(len, found))
    for name, text in found.items():
        line = wrap(f"{name:<{longest}}  {text}", width(), subsequent_indent=" " * (longest + 2))
        click.echo("\n".join(line))


@scenarios.command()
@click.argument("name")
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), metavar="FILE", help="Write it here, not to NAME.yaml."
)
def copy(name: str, target: Path | None) -> None:
    """Write the scenario NAME to a file, to be changed; a file that is there already is left alone."""
    from simbatch.sim.files import check_target
    from simbatch.sim.scenario.presets import shipped_scenario_text

    text = shipped_scenario_text(name)
    target = target or Path(f"{name}.yaml")
    check_target(target)
    if target.exists():
        raise UserError(Problem(str(target), "is there already", mend="name another file with -o"))
    target.write_text(text, encoding="utf-8")
    click.echo(f"{target}; run it: simbatch run {target}")


@click.command()
def schema() -> None:
    """Print the JSON Schema of scenario files.

    Editors with a YAML language server complete and check a scenario whose first line is
    "# yaml-language-server: $schema=schema.json".
    """
    from simbatch.sim.scenario.schema import scenario_schema

    click.echo(json.dumps(scenario_schema(), indent=2))


@click.command()
@click.argument("profile")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, metavar="N", help="Where to serve."
)
@click.option(
    "--policy",
    metavar="P",
    help="A policy: a name, package.module:Class, file.py:Class, or '{name: adaptive, target_tpot_ms: 40}'.",
)
@click.option(
    "--host",
    type=click.Choice(["own", "profile"]),
    default="own",
    show_default=True,
    help="Host times: as long as vLLM takes here, or waited for until they are the profile's.",
)
@click.option(
    "--output-len",
    metavar="DIST",
    help="Lengths of answers to requests that may end by themselves: a number, or as in a scenario. "
    "Default: '{distribution: lognormal, mean: 200, cv: 0.8}'.",
)
@click.option("--steps", type=click.Path(path_type=Path), metavar="FILE", help="Write every step to FILE (JSON lines).")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of those lengths.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve(profile: str, policy: str | None, output_len: str | None, **given: Any) -> None:
    """Serve PROFILE through real vLLM, without a GPU: steps last as long as the profile says.

    FLAGS of `vllm serve` stand behind a --, as in: simbatch serve h100-llama-3.1-8b-bf16 -- --max-num-seqs 64
    """
    from simbatch.serving.simulated.command import ServeOptions
    from simbatch.serving.simulated.command import serve as run
    from simbatch.sim.scenario.reading import read_value

    chosen: Any = policy
    if policy is not None and policy.startswith("{"):
        chosen = read_value(policy, "--policy", "")
    length = None if output_len is None else read_value(output_len, "--output-len", "")
    run(ServeOptions(profile, policy=chosen, output_len=length, **given), lambda line: click.echo(line))
