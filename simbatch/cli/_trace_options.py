"""How `simbatch trace` reads a trace and writes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

# repeated from sim/workload, whose models take a while to import; a test holds them together
READ = (
    "azure",
    "burstgpt",
    "mooncake",
    "timed_trace",
    "vllm_bench",
    "guidellm",
    "aiperf",
    "inference_perf",
    "jsonl",
    "csv",
    "parquet",
)
WRITE = ("jsonl", "csv", "parquet", "mooncake", "timed_trace", "azure")


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to read the trace: the keys of a scenario's `workload.trace`."""
    options = (
        click.option("--format", "trace_format", type=click.Choice(READ), help="The file's format. Default: detected."),
        click.option("--limit", type=int, metavar="N", help="Take the first N requests only."),
        click.option("--rate-scale", type=float, metavar="X", help="Multiply the arrival rate by X."),
        click.option("--time-unit", type=click.Choice(["s", "ms", "us", "ns"]), help="Unit of the file's plain times."),
        click.option(
            "--hash-block-tokens", type=int, metavar="N", help="Tokens that one entry of hash_ids stands for."
        ),
        click.option("--on-empty", type=click.Choice(["error", "skip"]), help="Rows without output tokens."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def writing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to write a trace."""
    options = (
        click.option("--to", type=click.Choice(WRITE), help="Format to write. Default: by OUT's ending."),
        click.option(
            "--out-hash-block-tokens",
            type=click.IntRange(1, 2**20),
            metavar="N",
            help="Tokens that one hash stands for in OUT. Default: mooncake 512, others 16.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
