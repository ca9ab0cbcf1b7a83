"""`simbatch profiles`: list, show, import and estimate profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from simbatch.cli import GroupOfNames
from simbatch.cli._output import show_either, show_page
from simbatch.cli.fit import error_text, estimate, import_profile
from simbatch.sim.cost.provenance import span
from simbatch.sim.errors import Problem, UserError
from simbatch.sim.text import table

if TYPE_CHECKING:
    from simbatch.sim.cost.profile import Profile
    from simbatch.sim.cost.provenance import ErrorFigures, SeenRun


@click.group(cls=GroupOfNames)
def profiles() -> None:
    """List, show, import and estimate profiles (what a GPU does with a model)."""


@profiles.command(name="list")
@click.option("--gpu", metavar="G", help="Those of this GPU alone.")
@click.option("--model", metavar="NAME", help="Those of models whose name has this in it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_profiles(gpu: str | None, model: str | None, as_json: bool) -> None:
    """List the profiles that ship.

    ~ marks a number of KV blocks that was estimated. decode, prefill and mixed are the fit's mean absolute errors, held
    out; TTFT error is what real runs say of the simulation, where there are any. `profiles show NAME` has the rest, as
    the batches and chunks that were measured.
    """
    from simbatch.sim.cost.by_name import load_profile, shipped_names

    found = _matching([load_profile(name, folder=Path()) for name in shipped_names()], gpu, model)
    more = "what was measured of one, and how far to trust it: simbatch profiles show NAME"
    show_either(as_json, lambda: [*map(_facts, found)], lambda: "\n".join([*_table(found), more]))


@profiles.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the profile's own JSON; with --batches, the table's rows.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw its step times to this PNG.")
@click.option("--batches", metavar="N,N,...", help="What a batch of each size would see, simulated: 1,8,64 or `all`.")
@click.option("--prompt-len", type=click.IntRange(1), default=512, show_default=True, help="With --batches.")
@click.option("--output-len", type=click.IntRange(2), default=128, show_default=True, help="With --batches.")
def show(name: str, as_json: bool, plot: Path | None, batches: str | None, prompt_len: int, output_len: int) -> None:
    """Show one profile, and draw it: NAME is one that ships, or a path.

    With --batches: step, throughput, TTFT, TPOT, KV memory and share of the roofline by batch size, and the knee.
    """
    from simbatch.sim.cost.by_name import load_profile, profile_json
    from simbatch.sim.files import check_target

    profile = load_profile(name, folder=Path())
    if plot is not None:
        check_target(plot)
    if batches is not None:
        _show_batches(profile, name, batches, (prompt_len, output_len), as_json, plot)
        return
    if plot is not None:
        from simbatch.sim.report.step_times import plot_step_times

        plot_step_times(profile, plot)
    if as_json:
        click.echo(profile_json(profile), nl=False)
        return
    show_page("\n".join(f"{key:<22}  {value}" for key, value in _facts(profile).items()))


def _show_batches(
    profile: Profile, name: str, batches: str, lengths: tuple[int, int], as_json: bool, plot: Path | None
) -> None:
    from simbatch.profiler.profile import predicted

    sizes = predicted.default_sizes(profile) if batches == "all" else _sizes(batches)
    rows = predicted.predicted_batches(profile, name, sizes, *lengths)
    roofline = predicted.roofline_of_profile(profile)
    shares = list(predicted.roofline_shares(roofline, rows))
    if plot is not None:
        predicted.plot_batches(profile, rows, plot)
    shown = [{**row, "roofline_share": share} for row, share in zip(rows, shares, strict=True)]
    notes = [f"- {note}" for note in predicted.table_notes(profile, rows, roofline)]
    show_either(as_json, lambda: shown, lambda: "\n".join([*predicted.batch_table(rows, shares), *notes]))


def _sizes(text: str) -> list[int]:
    """`1,2,4` as numbers; UserError for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip(" .")]
    if not parts or not all(part.isdigit() and 0 < int(part) <= 65_536 for part in parts):
        raise UserError(Problem("--batches", "must be batch sizes, as 1,8,64, or all", text))
    return sorted({int(part) for part in parts})


@profiles.command(name="gpus")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_gpus(as_json: bool) -> None:
    """List the GPUs that have a name, with their datasheets and where the figures are from.

    memory is what CUDA reports, in GiB; rates are dense, in 10^12 a second; link is to another GPU, in one direction.
    """
    from dataclasses import asdict

    from simbatch.sim.cost.gpus import GIB, GPUS

    names = ("name", "GPU", "memory", "GB/s", "bf16", "fp8", "int8", "fp4", "link", "memory from", "datasheet")
    rows = []
    for gpu in GPUS.values():
        rates = [f"{gpu.flops_per_s[kind] / 1e12:g}" if kind in gpu.flops_per_s else "-" for kind in names[4:8]]
        memory, speed = f"{gpu.total_bytes / GIB:.2f}", f"{gpu.bandwidth_bytes_per_s / 1e9:g}"
        source = gpu.sheet.split(" (")[0]
        link = f"{gpu.link_bytes_per_s / 1e9:g}"
        rows.append((gpu.short, gpu.name, memory, speed, *rates, link, gpu.memory_from, source))
    text = partial(table, names, rows, num_left=2, texts=("memory from", "datasheet"))
    show_either(as_json, lambda: [*map(asdict, GPUS.values())], lambda: "\n".join(text()))


profiles.add_command(import_profile)
profiles.add_command(estimate)


def _matching(found: list[Profile], gpu: str | None, model: str | None) -> list[Profile]:
    """Those of one GPU and of models with this in their name; UserError where there are none."""
    from simbatch.sim.cost.gpus import find_gpu

    short = None if gpu is None else find_gpu(gpu).short
    plain = (model or "").lower().replace(" ", "-")
    kept = [
        one
        for one in found
        if short in (None, getattr(one, "gpu", None)) and plain in getattr(one, "model", "").lower()
    ]
    if not kept:
        given = " ".join(f"--{key} {value}" for key, value in (("gpu", gpu), ("model", model)) if value)
        mend = "estimate one: `simbatch estimate CONFIG --gpu G`, or import one: `simbatch profiles import`"
        raise UserError(Problem("profiles", "none that ships is of", given, mend))
    return kept


def _facts(profile: Profile) -> dict[str, object]:
    """What tells profiles apart, in the order shown."""
    from simbatch.sim.cost.profile import MeasuredProfile
    from simbatch.sim.cost.provenance import HARDLY_TOLD
    from simbatch.sim.cost.uncertainty import uncertainty_of

    facts: dict[str, object] = {"name": profile.name}
    if isinstance(profile, MeasuredProfile):
        facts |= {
            "model": profile.model,
            "gpu": profile.gpu,
            "quantisation": profile.quantisation,
            "kv_cache_dtype": profile.kv_cache_dtype,
            "tensor_parallel_size": profile.tensor_parallel_size,
            "num_gpu_blocks": f"{profile.memory.num_gpu_blocks} ({profile.memory.num_gpu_blocks_from})",
            "vllm_version": profile.vllm_version,
            "source": profile.source,
            "licence": profile.licence,
            "command": profile.command,
        }
    facts |= {"max_model_len": profile.max_model_len, "step_time": _form(profile)}
    if (error := profile.fit_error) is not None:
        facts |= {f"error {key}": error_text(getattr(error, key)) for key in ("decode", "prefill", "mixed")}
        facts["error design"] = error.design
    if isinstance(profile, MeasuredProfile):
        runs = profile.compared
        facts["real runs"] = "none" if runs is None else runs.summary().removeprefix("real runs: ")
    facts |= {f"in doubt: {part}": each.text() for part, each in uncertainty_of(profile).items()}
    if (measured := profile.measured) is not None:
        for regime, bounds in measured.model_dump().items():
            facts[f"range {regime}"] = ", ".join(f"{key} {low}-{high}" for key, (low, high) in bounds.items())
    if (fit := profile.streams) is not None:
        facts["streams"] = fit.summary()
        facts |= {f"streams.saw {i}": _seen(run) for i, run in enumerate(fit.runs, 1)}
        told = {part: share for part, share in fit.sure.items() if share <= HARDLY_TOLD}
        facts |= {f"streams.error of {part}": f"{share:.0%} of it" for part, share in told.items()}
        facts |= {f"streams.not told {part}": source for part, source in fit.taken.items()}
        facts |= {f"streams.warning {i}": warning for i, warning in enumerate(fit.warnings, 1)}
    for key in ("host", "front_end"):
        if (part := getattr(profile, key)) is not None:
            facts[key] = f"from {part.source or 'somewhere (it does not say)'}"
            facts |= {f"{key}.{name}": value for name, value in _leaves(part.model_dump(exclude_defaults=True))}
    if isinstance(profile, MeasuredProfile):
        facts |= {f"note {number}": note for number, note in enumerate(profile.notes, 1)}
    return facts


def _seen(run: SeenRun) -> str:
    load = "" if run.max_concurrency is None else f", at most {run.max_concurrency} at once"
    low, high = run.batch
    return f"{run.file}: {run.requests:,} requests{load}, {run.steps:,} steps of {low} to {high} decodes"


def _form(profile: Profile) -> str:
    return f"{profile.step_time.form}, padded to CUDA graphs" if profile.step_time.padded else profile.step_time.form


def _leaves(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    """The figures of a section by their dotted names; a spread by its ends."""
    for key, value in section.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and "ratio" in value:
            yield name, f"{value['ratio'][0]:g} to {value['ratio'][-1]:g} times the mean"
        elif isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        elif key != "source":
            yield name, value


def _table(found: list[Profile]) -> list[str]:
    """A line each; weights and KV cache are in the names."""
    rows = []
    for profile in found:
        facts = {key: str(value) for key, value in _facts(profile).items()}
        error = profile.fit_error
        blocks, _, kind = facts.get("num_gpu_blocks", "-").partition(" ")
        shares = [_share(part) for part in (error.decode, error.prefill, error.mixed)] if error else ["-"] * 3
        source = "estimate" if profile.is_estimate else facts.get("source", "-").split(" (")[0].removesuffix("-core")
        runs = "no real run" if profile.compared is None else span(profile.compared.mean_ttft)
        rows.append((profile.name, f"~{blocks}" if "est" in kind else blocks, *shares, runs, source))
    names = ("name", "blocks", "decode", "prefill", "mixed", "TTFT error", "source")
    return table(names, rows, texts=("source",))


def _share(figures: ErrorFigures) -> str:
    return f"{figures.mape:.1%}" if figures.num_steps else "-"
