"""`simbatch serve`: a real vLLM server whose GPU is simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


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
    from simbatch.sim.scenario.reading.source import read_value

    chosen: Any = policy
    if policy is not None and policy.startswith("{"):
        chosen = read_value(policy, "--policy", "")
    length = None if output_len is None else read_value(output_len, "--output-len", "")
    run(ServeOptions(profile, policy=chosen, output_len=length, **given), lambda line: click.echo(line))
