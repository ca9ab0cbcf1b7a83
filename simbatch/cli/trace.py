"""`simbatch trace`: describe, convert and generate request traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import (
    A_FILE,
    Asked,
    flags_of,
    json_option,
    kept,
    read_option,
    set_option,
    together,
    trace_options,
    with_asked,
)
from simbatch.cli._output import progress_of, replacing, show_either
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import check_target, user_path

if TYPE_CHECKING:
    from simbatch.sim.workload.chunk import RequestSource
    from simbatch.sim.workload.model import Workload
    from simbatch.sim.workload.traces import TraceSource

_BOUNDS = {
    "greater_than": ("more than", "gt", "raise it"),
    "greater_than_equal": ("at least", "ge", "raise it"),
    "less_than_equal": ("at most", "le", "lower it"),
}
_DISTRIBUTIONS = ("fixed", "lognormal")  # what the length flags can say


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


reading_options = together(
    read_option("format", type=FormatName(written=False), help="Its format. Default: detected."),
    read_option("limit", type=int, metavar="N", help="Take the first N requests only."),
    trace_options,
    read_option("rate_scale", type=float, metavar="X", help="Multiply the arrival rate by X."),
    read_option("time_unit", type=click.Choice(["s", "ms", "us", "ns"]), help="Unit of the file's plain times."),
    read_option("hash_block_tokens", type=int, metavar="N", help="Tokens that one entry of hash_ids stands for."),
)
writing_options = together(
    click.option("--to", type=FormatName(written=True), help="Format to write. Default: by OUT's ending."),
    click.option(
        "--out-hash-block-tokens",
        type=click.IntRange(1, 2**20),
        metavar="N",
        help="Tokens that one hash stands for in OUT. Default: mooncake 512, others 16.",
    ),
)


@click.group()
def trace() -> None:
    """Describe, convert or generate request traces."""


@trace.command()
@click.argument("file", type=A_FILE)
@reading_options
@json_option("JSON")
@click.option(
    "-o",
    "--output",
    "--picture",
    "picture",
    type=A_FILE,
    metavar="PICTURE.png",
    help="Draw arrivals and lengths; of a benchmark's detailed result, its steps over time.",
)
@with_asked
def describe(asked: Asked, file: Path, picture: Path | None) -> None:
    """Say what the trace in FILE is like: size, rate, burstiness, lengths, shared prefixes.

    Of a benchmark's detailed result also what its streams say of the server: steps, batch, time in prefills, whether
    its client kept up, prefix hits, stationarity.
    """
    from simbatch.cli._trace_text import describe_all, description, stream_lines

    if picture is not None:
        _check_picture(picture)
    told = describe_all(file, lambda run: _open(file, asked.reading, run), picture)
    parts = [[description(facts), *(stream_lines(facts["stream"]) if facts.get("stream") else [])] for facts in told]
    content = told[0] if len(told) == 1 else {"runs": told}
    show_either(asked.as_json, lambda: content, lambda: "\n\n".join("\n".join(part) for part in parts))


@trace.command()
@click.argument("file", metavar="IN", type=A_FILE)
@click.argument("output", metavar="OUT", type=A_FILE)
@writing_options
@reading_options
@with_asked
def convert(asked: Asked, file: Path, output: Path, to: str | None, out_hash_block_tokens: int | None) -> None:
    """Write the trace in IN as OUT; what OUT's format cannot hold is named on stderr."""
    source = _open(file, asked.reading)
    if source.max_concurrency is not None:
        rule = f"is a closed loop ({source.max_concurrency:,} in flight) without times of sending, which a trace has"
        raise UserError(Problem(str(file), rule, mend="simulate it, and convert the result's requests.parquet"))
    target = _target(output, to)
    check_target(output, [file])
    size = out_hash_block_tokens or _default_hash_block_tokens(target)
    count = _write(source, output, target, size, source.hash_block_tokens != size)
    for line in source.unread():
        _warn(line)
    click.echo(f"{count} requests: {file} ({source.format}) to {output} ({target})")


@trace.command()
@click.argument("output", metavar="OUT", type=A_FILE)
@writing_options
@click.option("--scenario", type=A_FILE, metavar="FILE", help="Take the workload and seed of this scenario (YAML).")
@set_option()
@kept("seed", "--seed", type=click.IntRange(0), metavar="N", help="Seed. Default: the scenario's, or 0.")
@click.option("--num-prompts", type=int, metavar="N", help="How many requests.")
@click.option("--request-rate", type=float, metavar="X", help="Requests per second.")
@click.option("--burstiness", type=float, metavar="X", help="Shape of the gamma gaps: 1 is Poisson, less is burstier.")
@click.option("--prompt-len-mean", type=float, metavar="X", help="Mean prompt length, tokens.")
@click.option("--prompt-len-cv", type=float, metavar="X", help="Its standard deviation / mean (lognormal). Default: 0.")
@click.option("--prompt-len-max", type=int, metavar="N", help="Longer draws are set to it.")
@click.option("--output-len-mean", type=float, metavar="X", help="Mean output length, tokens.")
@click.option("--output-len-cv", type=float, metavar="X", help="Its standard deviation / mean (lognormal). Default: 0.")
@click.option("--output-len-max", type=int, metavar="N", help="Longer draws are set to it.")
@with_asked
def generate(
    asked: Asked,
    /,
    output: Path,
    to: str | None,
    out_hash_block_tokens: int | None,
    scenario: Path | None,
    **options: Any,
) -> None:
    """Write synthetic requests to OUT: those of a scenario, or drawn as the options say."""
    from simbatch.sim.workload import open_workload

    target = _target(output, to)
    given = {key: value for key, value in options.items() if value is not None}
    if scenario is not None:
        if given:
            mend = "leave them out, or use --set workload.request_rate=3"
            raise UserError(Problem(flags_of(given), "a scenario brings its own workload", mend=mend))
        loaded = asked.load(file=scenario)
        workload, seed, folder = loaded.workload, loaded.seed, loaded.folder
    else:
        if asked.assignments:
            raise UserError(Problem("--set", "needs a scenario", ", ".join(asked.assignments), "add --scenario FILE"))
        workload, seed, folder = _of_options(given), asked.seed or 0, Path()
    inputs = [user_path(folder, workload.trace.path)] if workload.trace else []
    check_target(output, [*inputs, scenario] if scenario else inputs)
    source = open_workload(workload, seed=seed, folder=folder)
    _check_open_loop(source)
    size = out_hash_block_tokens or _default_hash_block_tokens(target)
    # a trace's hashes cover whole prompts; a synthetic workload's shared prefixes do not
    regroup = workload.trace is None or source.hash_block_tokens != size
    count = _write(source, output, target, size, regroup)
    click.echo(f"{count} requests to {output} ({target}), seed {seed}")


def _open(file: Path, reading: dict[str, Any], run: int | None = None) -> TraceSource:
    from simbatch.sim.workload.trace_model import Trace
    from simbatch.sim.workload.traces import open_trace

    read: Trace = _validated(Trace, {"path": str(file), **reading})
    return open_trace(read, place="", run=run)


def _validated(model: Any, data: dict[str, Any]) -> Any:
    """The model of what the flags say; UserError that names the flag."""
    from pydantic import ValidationError

    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(*map(_flag_problem, error.errors(include_url=False))) from None


def _flag_problem(details: Any) -> Problem:
    flag = "--" + "-".join(part for part in map(str, details["loc"]) if part not in _DISTRIBUTIONS).replace("_", "-")
    if details["type"] == "missing":
        many = flag in ("--prompt-len", "--output-len")
        return Problem(f"{flag}-mean" if many else flag, "required, but missing", mend="add it, or use --scenario FILE")
    context = details.get("ctx", {})
    if details["type"] == "extra_forbidden":  # min and max go with a distribution that varies
        length = flag.rpartition("-")[0]
        return Problem(
            flag, f"needs {length}-cv: a fixed length is never cut", details["input"], "add it, or remove this"
        )
    if details["type"] in _BOUNDS:
        word, key, mend = _BOUNDS[details["type"]]
        return Problem(flag, f"must be {word} {context[key]:.10g}", details["input"], mend)
    if not details["loc"]:
        mend = "add --num-prompts 100 --request-rate 2 --prompt-len-mean 500 --output-len-mean 100, or --scenario FILE"
        return Problem("simbatch trace generate", "needs to know what to generate", mend=mend)
    rule = details["msg"].replace("Input should be", "must be")
    return Problem(flag, rule, details["input"], str(context.get("mend", "check the value")))


def _target(output: Path, to: str | None) -> str:
    from simbatch.sim.workload.traces.write import WRITE_FORMATS

    ending = to or output.suffix.removeprefix(".")
    found = next((name for name in WRITE_FORMATS if name == ending), None)
    if found is None:
        rule = "the format to write cannot be told from the file's ending"
        raise UserError(Problem(str(output), rule, output.suffix, f"add --to: one of {', '.join(WRITE_FORMATS)}"))
    return found


def _default_hash_block_tokens(target: str) -> int:
    from simbatch.sim.workload.formats import FORMATS

    return FORMATS[target].hash_block_tokens or 16


def _write(source: RequestSource, output: Path, to: str, size: int, regroup: bool) -> int:
    from simbatch.sim.workload.traces.write import HOLDS_HASHES, write_trace

    with replacing(output), progress_of(f"writing {output.name}", source.num_requests, quiet=False) as progress:
        count, losses = write_trace(source, output, to, hash_block_tokens=size, regroup=regroup, progress=progress)
    for line in losses.lines():
        _warn(line)
    if source.hash_block_tokens and to in HOLDS_HASHES:
        if size > source.hash_block_tokens:
            _warn(
                f"hashes of {source.hash_block_tokens} tokens became ones of {size}: shorter shared prefixes are lost"
            )
        if size != _default_hash_block_tokens(to):
            _warn(f"{output} does not say that a hash stands for {size} tokens: read it with hash_block_tokens: {size}")
    return count


def _of_options(given: dict[str, Any]) -> Workload:
    from simbatch.sim.workload.model import Workload

    data: dict[str, Any] = {}
    for key, value in given.items():
        length, _, part = key.partition("_len_")
        if part:
            data.setdefault(f"{length}_len", {})[part] = value
        else:
            data[key] = value
    for length in ("prompt_len", "output_len"):
        if length in data:
            data[length]["distribution"] = "lognormal" if data[length].get("cv") else "fixed"
            if data[length]["distribution"] == "fixed":
                data[length].pop("cv", None)
    workload: Workload = _validated(Workload, data)
    return workload


def _check_open_loop(source: RequestSource) -> None:
    from simbatch.sim.workload.turns import turns_in

    if getattr(source, "is_closed_loop", False):
        rule = "a closed loop has no arrival times before it is simulated"
        raise UserError(
            Problem("workload.arrival", rule, mend="simulate it, and convert the result's requests.parquet")
        )
    turns = turns_in(source)
    users = source.max_concurrency if turns is None else turns.max_sessions
    if users is not None:
        what = "requests" if turns is None else "sessions"
        _warn(f"max_concurrency ({users}) holds {what} back when simulated; a trace cannot say that")


def _check_picture(picture: Path) -> None:
    if picture.suffix.lower() != ".png":
        raise UserError(Problem(f"-o {picture}", "a picture's name must end in .png", mend="rename it"))
    check_target(picture)


def _warn(line: str) -> None:
    click.echo(f"warning: {line}", err=True)
