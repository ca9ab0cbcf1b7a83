"""`simbatch memory`: how large a batch fits into a GPU's memory, every figure with its formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from simbatch.cli._options import gpu_options
from simbatch.cli._trace_options import columns_option

Count = click.IntRange(min=1)
_OF_MODELS = (
    "gpu",
    "gpu_spec",
    "memory",
    "quantization",
    "tensor_parallel_size",
    "max_num_batched_tokens",
    "enable_prefix_caching",
    "vllm_version",
    "assume",
)


@click.command()
@click.argument("model", required=False)
@gpu_options
@click.option("--memory", metavar="24GiB", help="The GPU's memory as CUDA reports it; alone, or beside --gpu.")
@click.option("--profile", metavar="NAME", help="Take the memory of this profile instead of MODEL and --gpu.")
@click.option("--list", "as_list", is_flag=True, help="All known models that fit the GPU, in bf16 and quantised.")
@click.option("--context", metavar="32k", help="With --list: only what holds a request of so many tokens.")
@click.option("--vllm-version", metavar="V", help="Reserves and defaults of this vLLM (the newest tested).")
@click.option("--quantization", metavar="NAME", help="awq, gptq, int4, fp8, nvfp4, ...; default: the checkpoint's own.")
@click.option("--kv-cache-dtype", default="auto", show_default=True, metavar="NAME", help="auto, fp8, nvfp4 ...")
@click.option("--tensor-parallel-size", type=Count, metavar="N", help="GPUs that share the model (1).")
@click.option("--enable-expert-parallel", is_flag=True, help="Divide experts whole among these GPUs.")
@click.option(
    "--gpu-memory-utilization",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="Share of the memory that vLLM takes (0.92; before 0.20 0.9).",
)
@click.option("--block-size", type=Count, metavar="N", help="Tokens of a KV block (16; 64 with MLA).")
@click.option("--max-num-seqs", type=Count, metavar="N", help="vLLM's limit; default: vLLM's on this GPU.")
@click.option("--max-num-batched-tokens", type=Count, metavar="N", help="vLLM's limit; default: vLLM's on this GPU.")
@click.option("--max-model-len", type=Count, metavar="N", help="Longest prompt and output together (the model's).")
@click.option("--enforce-eager", is_flag=True, help="No CUDA graphs.")
@click.option(
    "--enable-prefix-caching/--no-enable-prefix-caching",
    default=None,
    help="Matters to models with states alone: on since vLLM 0.28, off before.",
)
@click.option("--assume", metavar="ARCH", help="Plan an architecture that is not known as this one.")
@click.option("--prompt-len", type=Count, metavar="N", help="Prompt tokens of a request (mean).")
@click.option("--output-len", type=Count, metavar="M", help="Output tokens of a request (mean).")
@click.option("--prompt-len-cv", type=click.FloatRange(0, 10), default=0.0, metavar="C", help="0: all alike.")
@click.option("--output-len-cv", type=click.FloatRange(0, 10), default=0.0, metavar="C", help="Else lognormal.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE", help="Take the lengths of this trace.")
@click.option("--trace-format", metavar="F", help="Its format, if it is not detected.")
@columns_option
@click.option("--batches", metavar="1,8,64", help="A table of the memory that so many of these requests take.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG", help="The same as a picture.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def memory(
    model: str | None, profile: str | None, as_list: bool, batches: str | None, plot: Path | None, **flags: Any
) -> None:
    """Say how large a batch fits, with the formula of every figure.

    MODEL is a Hugging Face name that the shipped table knows, a model's config.json, or its folder. No GPU is needed
    and nothing is downloaded.
    """
    from simbatch.profiler.model.memory_answer import answer_of_model, answer_of_profile

    as_json = flags.pop("as_json")
    if as_list:
        _print_list(model, profile, flags, as_json)
        return
    if (model is None) == (profile is None):
        raise click.UsageError("name either a MODEL with --gpu, or --profile NAME, or --gpu G --list")
    if profile is not None:
        given = [f"--{key.replace('_', '-')}" for key in _OF_MODELS if flags[key] is not None]
        if given:
            raise click.UsageError(f"{', '.join(given)}: a profile has its own; give MODEL and --gpu to plan")
        answer = answer_of_profile(profile, flags)
    else:
        answer = answer_of_model(str(model), flags)
    content, text = answer.content(), answer.text()
    if batches is not None or plot is not None:
        table = _by_batch(model, flags, batches, plot)
        content["batches"], text = table.content(), f"{text}\n\n{table.text()}"
    click.echo(json.dumps(content, indent=2) if as_json else text)


def _by_batch(model: str | None, flags: dict[str, Any], batches: str | None, plot: Path | None) -> Any:
    from simbatch.profiler.model.memory_tables import by_batch, draw

    if model is None:
        raise click.UsageError("--batches and --plot need MODEL and --gpu: a profile does not say all parts")
    table = by_batch(model, flags, batches)
    if plot is not None:
        draw(table, plot)
    return table


def _print_list(model: str | None, profile: str | None, flags: dict[str, Any], as_json: bool) -> None:
    from simbatch.profiler.model.memory_tables import fitting, table_of

    if model is not None or profile is not None:
        raise click.UsageError("--list takes a GPU alone: it goes through all models")
    rows = fitting(flags)
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=2))
        return
    click.echo(table_of(rows, flags))
