"""`simbatch init`: a `vllm serve` command to a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from simbatch.cli._trace_options import reading_of, trace_options
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.commands.init import Made

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
@click.option("--json", "as_json", is_flag=True, help="Print what became of each flag as JSON.")
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), required=True, metavar="FILE")
def init(
    line: str,
    gpu: str | None,
    profile: str | None,
    trace: str | None,
    preset: str | None,
    rate: float | None,
    limits: tuple[str, ...],
    as_json: bool,
    target: Path,
) -> None:
    """Write a scenario from a `vllm serve` command, and say what became of every flag.

    LINE is the command in quotes, with `docker run`, environment and all; a `vllm bench serve` behind it is its
    traffic. FILE holds one: a script, a Kubernetes or Compose manifest, or a YAML of vLLM's --config.
    """
    import json

    from simbatch.profiler.model.published import facts_of
    from simbatch.sim.commands.init import Wish, make
    from simbatch.sim.files import write_text
    from simbatch.sim.paths import check_target
    from simbatch.sim.scenario.presets import slo_of

    if trace is not None and preset is not None:
        raise UserError(Problem("--preset", "cannot stand beside --trace", preset, "give one of the two"))
    check_target(target, [Path(path) for path in (line, trace) if path is not None and len(path) < 1024])
    made = make(line, Wish(gpu, profile, trace, reading_of(trace), rate, preset, slo_of(limits), facts_of), target)
    write_text(target, made.text)
    if as_json:
        click.echo(json.dumps(made.as_json(), indent=2))
    else:
        click.echo(_report(made, target))


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
