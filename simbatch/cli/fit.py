"""`simbatch fit`: from what a server told, or from measured steps, to a profile.

And `simbatch profiles import` and `estimate`: profiles from the measurements of others, and from other profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import flags_of
from simbatch.cli._output import progress_of, show_either, working
from simbatch.cli.memory import check_output, write

if TYPE_CHECKING:
    from simbatch.sim.cost.profile import MeasuredProfile, Profile
    from simbatch.sim.cost.provenance import ErrorFigures, Link


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
    from simbatch.profiler.records.lines import is_recorded
    from simbatch.sim.files import check_target

    for target in (output, plot):
        if target is not None:
            check_target(target, list(files))
    limits = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    flags = {flags_of([name]): value for name, value in limits.items()}
    name = None if output is None else output.name.removesuffix(".json")
    if all(map(is_recorded, files)):
        _refuse({**flags, "--plot": plot}, "is not for a recorder's files, which say it themselves")
        profile, content, text = _of_recorder(files, nearest, name)
    elif _are_samples(files):
        _refuse({"--profile": nearest, **flags}, "is for results of a server; a file of samples says it itself")
        profile, content, text = _of_samples(files[0], name, plot)
    else:
        _refuse({"--plot": plot}, "draws a file of samples, and FILES are results of a server")
        profile, content, text = _of_streams(files, nearest, name, limits)
    if output is not None:
        write(profile, output)
    show_either(as_json, content, text, ascii_only=False)
    for target in (output, plot):
        if target is not None:
            click.echo(f"{target}: written", err=True)


Fitted = tuple["Profile", Callable[[], dict[str, Any]], Callable[[], str]]  # with its report, as JSON and as text


def _of_recorder(files: tuple[Path, ...], nearest: str | None, name: str | None) -> Fitted:
    from simbatch.profiler.fit.recorder import fit_recorder, report_dict

    with working("fit of a recorder's files"):
        found = fit_recorder(files, nearest=nearest, name=name)
    return found.profile, partial(report_dict, found), found.text


def _of_samples(file: Path, name: str | None, plot: Path | None) -> Fitted:
    from simbatch.profiler.fit import fit_samples
    from simbatch.profiler.fit.report import plot_fit, report_dict, report_text
    from simbatch.profiler.records.samples import read_samples

    with working("fit of samples"):
        samples = read_samples(file)
        found = fit_samples(samples, name=name)
    if plot is not None:
        plot_fit(found, plot)
    if samples.engine.async_scheduling:
        click.echo(ASYNC, err=True)
    return found.profile, partial(report_dict, found), partial(report_text, found)


def _of_streams(
    files: tuple[Path, ...], nearest: str | None, name: str | None, limits: Mapping[str, int | None]
) -> Fitted:
    from simbatch.profiler.fit.streams import fit_streams, num_parts, report_dict

    with progress_of("fit", num_parts(len(files)), quiet=False) as progress:
        found = fit_streams(files, nearest=nearest, name=name, progress=progress, **limits)
    return found.profile, partial(report_dict, found), found.text


ASYNC = (
    "warning: two steps were in flight (async_scheduling), and samples have one time for host and device; the "
    "recorder's file next to them tells the two apart: simbatch fit NAME.steps.jsonl -o mine.json"
)


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


FORMATS = ("llmservingsim", "aiconfigurator-core")
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command(name="import")
@click.option("--from", "source", type=click.Choice(FORMATS), required=True, help="Whose measurements DIR holds.")
@click.argument("folder", metavar="[DIR]", type=FOLDER, required=False)
@click.option("--model", help="Whose times to compose, as Qwen/Qwen3-32B (aiconfigurator-core).")
@click.option("--gpu", metavar="G", help="h100, h200, b200, a100 ... (aiconfigurator-core).")
@click.option("--model-config", type=FILE, help="The model's config.json, where its name is not known.")
@click.option("--quantization", help="Of the weights: bf16, fp8 ... (aiconfigurator-core).")
@click.option("--kv-cache-dtype", default="auto", show_default=True, help="auto or fp8 (aiconfigurator-core).")
@click.option(
    "--tensor-parallel-size", type=click.IntRange(1), default=1, show_default=True, help="GPUs that share the model."
)
@click.option("--link-us", type=click.FloatRange(0, min_open=True), help="All-reduce over PCIe: latency of a call.")
@click.option("--link-gb-per-s", type=click.FloatRange(0, min_open=True), help="And its bandwidth, one direction.")
@click.option(
    "--greedy", is_flag=True, help="Sampling at temperature 0 (tables of the package); else as models' own configs."
)
@click.option(
    "--run-meta", type=FILE, help="meta.json of a run: the blocks that vLLM resolved; else they are estimated."
)
@click.option("-o", "--output", type=FILE, required=True, help="File to write.")
def import_profile(
    output: Path, link_us: float | None, link_gb_per_s: float | None, quantization: str | None, **flags: Any
) -> None:
    """Fit a profile from the measurements of others and write it.

    aiconfigurator-core is a package with tables of nine GPUs: give --model and --gpu, and no DIR. Else DIR is
    LLMServingSim's `profile` folder of one model on one GPU. Host and front end are assumed, and marked so.
    """
    from simbatch.profiler import importers
    from simbatch.profiler.importers.source import ImportRequest

    link = _link(link_us, link_gb_per_s)
    request = ImportRequest(output_name=output.name, quantisation=quantization, link=link, **flags)
    check_output(output, request.model_config, request.run_meta)
    profile = importers.import_profile(request)
    write(profile, output, _summary(profile))


def _link(latency_us: float | None, gb_per_s: float | None) -> Link | None:
    from simbatch.sim.cost.provenance import Link

    if latency_us is None and gb_per_s is None:
        return None
    if latency_us is None or gb_per_s is None:
        raise click.UsageError("--link-us and --link-gb-per-s go together")
    return Link(latency_s=latency_us / 1e6, bandwidth_bytes_per_s=gb_per_s * 1e9)


@click.command(hidden=True)
@click.option(
    "--base", required=True, metavar="NAME", help="A profile of the same model and GPU: one that ships, or a path."
)
@click.option("--quantization", required=True, help="Of the weights: awq, gptq, fp8, int8.")
@click.option("--model-config", type=FILE, required=True, help="The model's config.json.")
@click.option("-o", "--output", type=FILE, required=True, help="File to write.")
def estimate(base: str, quantization: str, model_config: Path, output: Path) -> None:
    """Estimate what quantised weights do to a measured profile: `simbatch estimate --base` by its older name."""
    from simbatch.profiler.importers import estimate_profile

    check_output(output, model_config)
    profile = estimate_profile(base, quantization, model_config, output.name)
    write(profile, output, _summary(profile))


def error_text(figures: ErrorFigures) -> str:
    """Mean absolute error, 95th percentile and bias; `not measured` without a step."""
    if figures.num_steps == 0:
        return "not measured"
    return f"{figures.mape:.1%} (p95 {figures.p95:.1%}, bias {figures.bias:+.1%})"


def _summary(profile: MeasuredProfile) -> str:
    memory = profile.memory
    parts = [profile.name, f"{memory.num_gpu_blocks} KV blocks ({memory.num_gpu_blocks_from})"]
    if profile.error is not None and not profile.estimate:
        regimes = ("decode", "prefill", "mixed")
        errors = [f"{regime} {error_text(getattr(profile.error, regime))}" for regime in regimes]
        parts.append(f"held-out error {', '.join(errors)}")
    return "; ".join(parts)
