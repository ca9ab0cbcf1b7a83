"""`simbatch fit`: from what a server told, or from measured steps, to a profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simbatch.cli._output import replacing

if TYPE_CHECKING:
    from simbatch.sim.cost.profile import Profile

FIRST_BYTES = 4096


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--profile", "nearest", help="Nearest profile: what the streams do not tell is taken from it, scaled.")
@click.option("--max-num-seqs", type=click.IntRange(1), help="As the server was started.")
@click.option(
    "--max-num-batched-tokens", type=click.IntRange(1), help="As the server was started; else read off its steps."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Profile to write (JSON).")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw predicted against measured (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def fit(
    files: tuple[Path, ...],
    nearest: str | None,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Fit a profile and say what it is worth.

    FILES are detailed results of one server (`vllm bench serve --save-result --save-detailed`), two or more at loads
    that are five to ten times apart: its steps are rebuilt from their streams. Or files of a recorder inside one server
    (`simbatch.vllm_recorder`), a live server's own traffic too. Or one file of samples, the steps that `simbatch
    profile` wrote down.
    """
    from simbatch.profiler.fit.from_samples import fit_samples
    from simbatch.profiler.fit.recorder.from_recorder import fit_recorder
    from simbatch.profiler.fit.recorder.from_recorder import report_dict as recorder_report
    from simbatch.profiler.fit.report import plot_fit, report_dict, report_text
    from simbatch.profiler.fit.streams.from_streams import fit_streams
    from simbatch.profiler.fit.streams.from_streams import report_dict as stream_report
    from simbatch.profiler.records.lines import is_recorded
    from simbatch.profiler.records.samples import read_samples
    from simbatch.sim.paths import check_target

    for target in (output, plot):
        if target is not None:
            check_target(target, list(files))
    name = None if output is None else output.name.removesuffix(".json")
    if all(map(is_recorded, files)):
        limits = {"--max-num-seqs": max_num_seqs, "--max-num-batched-tokens": max_num_batched_tokens}
        _refuse({**limits, "--plot": plot}, "is not for a recorder's files, which say it themselves")
        recorded = fit_recorder(files, nearest=nearest, name=name)
        _write(recorded.profile, output)
        shown = recorder_report(recorded) if as_json else recorded.text()
    elif _are_samples(files):
        own = {"--profile": nearest, "--max-num-seqs": max_num_seqs, "--max-num-batched-tokens": max_num_batched_tokens}
        _refuse(own, "is for results of a server; a file of samples says it itself")
        read = read_samples(files[0])
        samples = fit_samples(read, name=name)
        if plot is not None:
            plot_fit(samples, plot)
        _write(samples.profile, output)
        if read.engine.async_scheduling:
            click.echo(ASYNC, err=True)
        shown = report_dict(samples) if as_json else report_text(samples)
    else:
        _refuse({"--plot": plot}, "draws a file of samples, and FILES are results of a server")
        streams = fit_streams(
            files,
            nearest=nearest,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            name=name,
        )
        _write(streams.profile, output)
        shown = stream_report(streams) if as_json else streams.text()
    click.echo(shown if isinstance(shown, str) else json.dumps(shown, indent=2, ensure_ascii=False))
    for target in (output, plot):
        if target is not None:
            click.echo(f"{target}: written", err=True)


ASYNC = (
    "warning: two steps were in flight (async_scheduling), and samples have one time for host and device; the "
    "recorder's file beside them tells the two apart: simbatch fit NAME.steps.jsonl -o mine.json"
)


def _write(profile: Profile, output: Path | None) -> None:
    from simbatch.sim.cost.by_name import write_profile

    if output is not None:
        with replacing(output):
            write_profile(profile, output)


def _are_samples(files: tuple[Path, ...]) -> bool:
    """Whether this is the one samples file: its first line is a record."""
    if len(files) > 1:
        return False
    try:
        with files[0].open(encoding="utf-8", errors="replace") as file:
            first = file.readline(FIRST_BYTES)
    except OSError:
        return True  # whose reader says why it cannot be read
    return '"record"' in first or not first.strip()


def _refuse(given: Mapping[str, object], rule: str) -> None:
    from simbatch.sim.errors import Problem, UserError

    wrong = {option: value for option, value in given.items() if value is not None}
    if wrong:
        raise UserError(*(Problem(option, rule, str(value), "leave it out") for option, value in wrong.items()))
