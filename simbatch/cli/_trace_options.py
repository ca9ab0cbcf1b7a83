"""How commands read a trace and write one."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from simbatch.sim.errors import Problem, UserError

KINDS = (
    "arrival",
    "prompt",
    "output",
    "priority",
    "tenant",
    "request_id",
    "session",
    "parent",
    "delay",
    "hash_ids",
    "predicted_output",
)
ROW_KEYS = ("columns", "between", "sort", "on_empty", "chars_per_token", "tokenizer")
UNITS = ("s", "ms", "us", "ns", "iso")
Option = Callable[[Callable[..., Any]], Callable[..., Any]]
TRACE = "simbatch.trace"  # among what a command's context keeps


class FormatName(click.types.StringParamType):
    """A format of traces; their list is looked into when a name is given."""

    name = "format"

    def __init__(self, *, written: bool) -> None:
        self._written = written

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; a usage error that lists the names for another."""
        from simbatch.sim.workload.formats import FORMATS, TABLES

        names = TABLES if self._written else FORMATS
        if value not in names:
            self.fail(f"{value!r} is not one of {', '.join(names)}.", param, ctx)
        return str(value)


def trace_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How rows are read, of the commands that take a trace; `trace_flags` finds what is given."""

    @wraps(command)
    def with_trace(*args: Any, **options: Any) -> Any:
        own = {key: options.pop(key) for key in ROW_KEYS}
        click.get_current_context().meta[TRACE] = trace_settings(own)
        return command(*args, **options)

    found: Callable[..., Any] = with_trace
    for option in reversed(_row_options()):
        found = option(found)
    return found


def _row_options() -> tuple[Option, ...]:
    columns = "Names of the trace's columns: arrival=NAME,prompt=NAME,output=NAME ...; arrival=NAME:ms says its unit."
    between = "Requests of the trace from START up to END, by its own clock."
    return (
        click.option("--columns", metavar="KIND=NAME,...", help=columns),
        click.option("--between", metavar="START,END", help=between),
        click.option("--sort", is_flag=True, default=None, help="Put the trace's rows in order of arrival first."),
        click.option("--on-empty", type=click.Choice(["error", "skip"]), help="Rows of it without output tokens."),
        click.option(
            "--chars-per-token", type=float, metavar="X", help="A trace of texts: take X characters for a token."
        ),
        click.option("--tokenizer", metavar="FILE", help="A trace of texts: count them by this tokenizer.json."),
    )


def trace_flags() -> dict[str, Any]:
    """What this command's flags say of its trace, by the keys of `workload.trace`."""
    context = click.get_current_context(silent=True)
    return {} if context is None else context.meta.get(TRACE, {})


def reading_of(trace: str | None) -> dict[str, Any]:
    """How the file of --trace is read; UserError where flags say it of none."""
    read = trace_flags()
    if read and trace is None:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in read)
        raise UserError(Problem(flags, "there is no trace to read", mend="add --trace FILE"))
    return read


def trace_settings(own: dict[str, Any]) -> dict[str, Any]:
    """What the flags of `ROW_KEYS` say, by the keys of `workload.trace`; UserError that names the flag."""
    settings = {key: value for key, value in own.items() if value is not None}
    if "columns" in settings:
        settings["columns"] = columns_of(settings["columns"])
    if "tokenizer" in settings:  # a scenario's paths start at its folder
        settings["tokenizer"] = str(Path(settings["tokenizer"]).expanduser().absolute())
    if (between := settings.get("between")) is not None:
        bounds = [bound.strip() for bound in between.split(",")]
        if len(bounds) != 2 or not all(bounds):
            raise UserError(Problem("--between", "takes two moments", between, "write START,END: --between 60,120"))
        settings["between"] = list(map(_number, bounds))
    return settings


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


def columns_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--columns, of a command that takes a trace's lengths alone; given as `workload.trace.columns` has it."""

    def parsed(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, Any] | None:
        return None if text is None else columns_of(text)

    text = "Names of the trace's columns: prompt=NAME,output=NAME."
    return click.option("--columns", metavar="KIND=NAME,...", callback=parsed, help=text)(command)


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to read the trace: the keys of a scenario's `workload.trace`."""
    options: tuple[Option, ...] = (
        click.option("--format", "trace_format", type=FormatName(written=False), help="Its format. Default: detected."),
        click.option("--limit", type=int, metavar="N", help="Take the first N requests only."),
        *_row_options(),
        click.option("--rate-scale", type=float, metavar="X", help="Multiply the arrival rate by X."),
        click.option("--time-unit", type=click.Choice(["s", "ms", "us", "ns"]), help="Unit of the file's plain times."),
        click.option(
            "--hash-block-tokens", type=int, metavar="N", help="Tokens that one entry of hash_ids stands for."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def writing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How to write a trace."""
    options = (
        click.option("--to", type=FormatName(written=True), help="Format to write. Default: by OUT's ending."),
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
