"""`simbatch profiles import` and `estimate`: profiles from the measurements of others, and from other profiles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from simbatch.cli._output import replacing
from simbatch.cli.estimate import check_output

if TYPE_CHECKING:
    from simbatch.sim.cost.profile import MeasuredProfile
    from simbatch.sim.cost.provenance import ErrorFigures, Link

FORMATS = ("llmservingsim", "aiconfigurator-core")
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command(name="import")
@click.option("--from", "source", type=click.Choice(FORMATS), required=True, help="Whose measurements DIR holds.")
@click.argument("directory", metavar="[DIR]", type=FOLDER, required=False)
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
    source: str,
    directory: Path | None,
    model: str | None,
    gpu: str | None,
    model_config: Path | None,
    quantization: str | None,
    kv_cache_dtype: str,
    tensor_parallel_size: int,
    link_us: float | None,
    link_gb_per_s: float | None,
    greedy: bool,
    run_meta: Path | None,
    output: Path,
) -> None:
    """Fit a profile from the measurements of others and write it.

    aiconfigurator-core is a package with tables of nine GPUs: give --model and --gpu, and no DIR. Else DIR is
    LLMServingSim's `profile` folder of one model on one GPU. Host and front end are assumed, and marked so.
    """
    from simbatch.profiler.importers import imported
    from simbatch.profiler.importers.source import ImportRequest

    request = ImportRequest(
        source=source,
        folder=directory,
        output_name=output.name,
        model=model,
        gpu=gpu,
        quantisation=quantization,
        kv_cache_dtype=kv_cache_dtype,
        tensor_parallel_size=tensor_parallel_size,
        model_config=model_config,
        run_meta=run_meta,
        link=_link(link_us, link_gb_per_s),
        greedy=greedy,
    )
    check_output(output, model_config, run_meta)
    _write(imported.import_profile(request), output)


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
    from simbatch.profiler.importers.imported import estimate_profile

    check_output(output, model_config)
    _write(estimate_profile(base, quantization, model_config, output.name), output)


def _write(profile: MeasuredProfile, output: Path) -> None:
    from simbatch.sim.cost.by_name import write_profile

    with replacing(output):
        write_profile(profile, output)
    click.echo(f"{output}: {_summary(profile)}", err=True)


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
