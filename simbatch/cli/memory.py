"""`simbatch memory`: how large a batch fits into a GPU's memory, every figure with its formula.

And `simbatch estimate`: a profile that nobody measured, from a model's shapes and a GPU's datasheet.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli._options import Asked, Count, columns_option, flags_of, gpu_options, json_option, with_asked
from simbatch.cli._output import check_folder, replacing, show_either, show_page
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.profiler.model.roofline import Roofline
    from simbatch.sim.cost.profile import MeasuredProfile, Profile


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
@click.option("--memory", metavar="24GiB", help="The GPU's memory as CUDA reports it; alone, or with --gpu.")
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
@json_option("JSON")
@with_asked
def memory(
    asked: Asked,
    /,
    model: str | None,
    profile: str | None,
    as_list: bool,
    batches: str | None,
    plot: Path | None,
    **flags: Any,
) -> None:
    """Say how large a batch fits, with the formula of every figure.

    MODEL is a Hugging Face name that the shipped table knows, a model's config.json, or its folder. No GPU is needed
    and nothing is downloaded.
    """
    from simbatch.profiler.model import answer_of_model, answer_of_profile

    flags["columns"] = asked.reading.get("columns")
    if as_list:
        _print_list(model, profile, flags, asked.as_json)
        return
    if (model is None) == (profile is None):
        raise click.UsageError("name either a MODEL with --gpu, or --profile NAME, or --gpu G --list")
    if profile is not None:
        if given := flags_of(key for key in _OF_MODELS if flags[key] is not None):
            raise click.UsageError(f"{given}: a profile has its own; give MODEL and --gpu to plan")
        answer = answer_of_profile(profile, flags)
    else:
        answer = answer_of_model(str(model), flags)
    content, text = answer.content(), answer.text()
    if batches is not None or plot is not None:
        table = _by_batch(model, flags, batches, plot)
        content["batches"], text = table.content(), f"{text}\n\n{table.text()}"
    show_either(asked.as_json, lambda: content, lambda: text)


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
    show_either(as_json, lambda: [row._asdict() for row in rows], lambda: table_of(rows, flags))


FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("model", metavar="CONFIG", required=False)
@gpu_options
@click.option("--base", metavar="PROFILE", help="Start from a measured profile of the same model with larger weights.")
@click.option("--quantization", metavar="NAME", help="awq, fp8 ...; default: what the model's config says.")
@click.option("--kv-cache-dtype", default="auto", show_default=True, metavar="NAME", help="auto, fp8 ...")
@click.option("--tensor-parallel-size", type=click.IntRange(1), default=1, show_default=True, metavar="N")
@click.option("--experts-met", metavar="T:E,...", help="Experts that T tokens of a step meet, counted (even routing).")
@click.option(
    "--assume", metavar="ARCH", help="Estimate an unknown architecture as this one, as far as its config goes."
)
@click.option("--greedy", is_flag=True, help="Sampling at temperature 0; else as models' own configs have it.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write the profile to this file too.")
@click.option("--json", "as_json", is_flag=True, help="Print the profile's JSON.")
def estimate(model: str | None, output: Path | None, as_json: bool, base: str | None, **flags: Any) -> None:
    """Estimate step times and memory of a model on a GPU that nobody measured.

    CONFIG is a model's config.json, its folder, or a Hugging Face name that is known; nothing is downloaded. The
    roofline: every kernel takes its launch, and then its bytes or its multiplications at a share of the datasheet's
    rate that others measured. With --base: a measured profile, less what smaller weights need not read.
    """
    if model is None:
        raise UserError(Problem("CONFIG", "is missing", mend="name a model's config.json, its folder, or its name"))
    if output is not None:
        check_output(output, Path(model))
    estimated, limits = (
        roofline(model, output, flags) if base is None else (scaled(base, Path(model), output, flags), None)
    )
    if as_json:
        from simbatch.sim.cost.by_name import profile_json

        click.echo(profile_json(estimated), nl=False)
    else:
        _show(estimated, limits)
    if output is not None:
        write(estimated, output, f"{estimated.name}, an estimate")


def roofline(
    model: str, output: Path | None, flags: dict[str, Any], place: str = "--gpu"
) -> tuple[MeasuredProfile, Roofline]:
    """From shapes and datasheet, and what the datasheet allows; `flags` are the command's own, by vLLM's names."""
    from simbatch.profiler.model.estimates import roofline_profile
    from simbatch.profiler.model.published import find_model
    from simbatch.profiler.model.roofline import roofline_of
    from simbatch.profiler.model.step_parts import routing_of
    from simbatch.sim.cost.gpus import gpu_of

    config, short, assumed = find_model(model, flags.get("assume"))
    gpu = gpu_of(flags.get("gpu"), flags.get("gpu_spec"), place)
    name, experts_met, quantisation = (
        short if Path(model).exists() else model,
        flags.get("experts_met"),
        flags.get("quantization"),
    )
    shape: dict[str, Any] = {
        "kv_cache_dtype": flags.get("kv_cache_dtype") or "auto",
        "tensor_parallel_size": flags.get("tensor_parallel_size") or 1,
    }
    estimated = roofline_profile(
        config,
        gpu,
        model=name,
        quantisation=quantisation,
        **shape,
        experts_met=experts_met,
        greedy=bool(flags.get("greedy")),
        command=_command(name, flags, output),
        assumed=assumed,
    )
    return estimated, roofline_of(config, gpu, quantisation, **shape, routing=routing_of(experts_met, config))


def scaled(base: str, model: Path, output: Path | None, flags: dict[str, Any]) -> MeasuredProfile:
    """From the measured profile `base`, whose weights are stored smaller."""
    from simbatch.profiler.importers import estimate_profile

    given = [key for key in ("gpu", "gpu_spec", "experts_met", "assume") if flags[key] is not None]
    if given or flags["kv_cache_dtype"] != "auto" or flags["tensor_parallel_size"] != 1:
        what = flags_of(given[:1] or ("kv_cache_dtype", "tensor_parallel_size"))
        raise UserError(Problem(what, "is the measured profile's own", mend="leave it out, or leave out --base"))
    if flags["quantization"] is None:
        raise UserError(Problem("--quantization", "how are the weights stored?", mend="awq, gptq, fp8 or int8"))
    return estimate_profile(base, flags["quantization"], model, "FILE" if output is None else output.name)


def _command(name: str, flags: dict[str, Any], output: Path | None) -> str:
    keys = ("gpu", "gpu_spec", "quantization", "kv_cache_dtype", "tensor_parallel_size", "experts_met", "assume")
    given = {key: flags.get(key) for key in keys}
    words = ["simbatch estimate", shlex.quote(name)]
    words += [
        f"{flags_of([key])} {shlex.quote(str(text))}" for key, text in given.items() if text not in (None, "auto", 1)
    ]
    words += ["--greedy"] if flags.get("greedy") else []
    return " ".join([*words, f"-o {'FILE' if output is None else output.name}"])


def check_output(output: Path, *read: Path | None) -> None:
    """Raise UserError for a target that cannot be written, or that is read."""
    from simbatch.sim.files import check_target

    if output.parent.exists():
        check_target(output, [path for path in read if path is not None])
    else:  # it is made
        check_folder(output.parent, str(output))


def write(profile: Profile, output: Path, said: str | None = None) -> None:
    """Write the profile, and say where, with what is `said` of it."""
    from simbatch.sim.cost.by_name import write_profile

    with replacing(output):
        write_profile(profile, output)
    if said is not None:
        click.echo(f"{output}: {said}", err=True)


def _show(estimated: MeasuredProfile, limits: Roofline | None) -> None:
    """Its memory, and what each batch size would see."""
    from simbatch.profiler.profile import predicted
    from simbatch.sim.cost.by_name import profile_json

    memory = estimated.memory
    gpus = "" if estimated.tensor_parallel_size == 1 else f" on each of {estimated.tensor_parallel_size} GPUs"
    tokens = (memory.num_gpu_blocks - 1) * memory.block_size
    first = (
        f"{estimated.name}: an estimate; weights {memory.weights_bytes / 2**30:.1f} GiB{gpus}, KV cache {tokens:,} "
        f"tokens ({memory.num_gpu_blocks:,} blocks of {memory.block_size}), max_model_len {estimated.max_model_len:,}"
    )
    lengths, content = predicted.lengths_within(estimated), json.loads(profile_json(estimated))
    rows = predicted.predicted_batches(estimated, content, predicted.default_sizes(estimated), *lengths)
    notes = [f"- {note}" for note in (*predicted.table_notes(estimated, rows, limits), *estimated.notes)]
    lines = predicted.batch_table(rows, list(predicted.roofline_shares(limits, rows)))
    show_page("\n".join([first, *lines, *notes]))
