"""`simbatch profiles`: list, show and import profiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from simbatch.sim.cost.error import ErrorFigures
    from simbatch.sim.cost.profile import MeasuredProfile, Profile

FORMATS = ("llmservingsim",)
MIN_WIDTH = 140  # a row of `list` stays on one line when piped


@click.group()
def profiles() -> None:
    """List, show and import profiles (what a GPU does with a model)."""


@profiles.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_profiles(as_json: bool) -> None:
    """List the profiles that ship."""
    from simbatch.sim.cost.load import shipped_names
    from simbatch.sim.cost.profile import load_profile

    found = [load_profile(name, folder=Path()) for name in shipped_names()]
    if as_json:
        click.echo(json.dumps([_facts(profile) for profile in found], indent=2))
        return
    from rich.console import Console

    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    console.print(_table(found))


@profiles.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the profile's own JSON.")
def show(name: str, as_json: bool) -> None:
    """Show one profile: NAME is one that ships, or a path."""
    from simbatch.profiler.write import profile_json
    from simbatch.sim.cost.profile import load_profile

    profile = load_profile(name, folder=Path())
    if as_json:
        click.echo(profile_json(profile), nl=False)
        return
    for key, value in _facts(profile).items():
        click.echo(f"{key:<24}{value}")


@profiles.command(name="import")
@click.option("--from", "source", type=click.Choice(FORMATS), required=True, help="Whose measurements DIR holds.")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--model-config", type=click.Path(path_type=Path), required=True, help="The model's config.json.")
@click.option("--run-meta", type=click.Path(path_type=Path), help="meta.json of a run: the blocks that vLLM resolved.")
@click.option("--tensor-parallel-size", type=int, default=1, show_default=True, help="GPUs that share the model.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
def import_profile(
    source: str,
    directory: Path,
    model_config: Path,
    run_meta: Path | None,
    tensor_parallel_size: int,
    output: Path,
) -> None:
    """Fit a profile from measurements in DIR and write it."""
    from simbatch.profiler.importers.imported import import_llmservingsim
    from simbatch.profiler.write import write_profile
    from simbatch.sim.paths import check_target

    if output.parent.exists():  # the others are made
        check_target(output, [model_config])
    del source  # there is one so far
    profile = import_llmservingsim(directory, model_config, run_meta, output.name, tensor_parallel_size)
    write_profile(profile, output)
    click.echo(f"{output}: {_summary(profile)}", err=True)


def _summary(profile: MeasuredProfile) -> str:
    error = profile.error
    if error is None:
        return profile.name
    parts = {"decode": error.decode, "prefill": error.prefill, "mixed": error.mixed}
    return f"{profile.name}, held-out error " + ", ".join(f"{key} {_percent(part)}" for key, part in parts.items())


def _percent(figures: ErrorFigures) -> str:
    return f"{figures.mape:.1%} (p95 {figures.p95:.1%}, bias {figures.bias:+.1%})"


def _facts(profile: Profile) -> dict[str, object]:
    """What tells profiles apart, in the order shown."""
    from simbatch.sim.cost.profile import MeasuredProfile

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
    facts |= {"max_model_len": profile.max_model_len, "step_time": profile.step_time.form}
    if (error := profile.fit_error) is not None:
        facts |= {f"error {key}": _percent(getattr(error, key)) for key in ("decode", "prefill", "mixed")}
        facts["error design"] = error.design
    if (measured := profile.measured) is not None:
        for regime, bounds in measured.model_dump().items():
            facts[f"range {regime}"] = ", ".join(f"{key} {low}-{high}" for key, (low, high) in bounds.items())
    if isinstance(profile, MeasuredProfile):
        facts |= {f"note {number}": note for number, note in enumerate(profile.notes, 1)}
    return facts


def _table(found: list[Profile]) -> Table:
    from rich.table import Table

    table = Table("name", "model", "gpu", "weights", "blocks", "decode", "prefill", "mixed", "source", box=None)
    for profile in found:
        facts = _facts(profile)
        error = profile.fit_error
        shares = [f"{part.mape:.1%}" for part in (error.decode, error.prefill, error.mixed)] if error else ["-"] * 3
        columns = [str(facts.get(key, "-")) for key in ("name", "model", "gpu", "quantisation", "num_gpu_blocks")]
        table.add_row(*columns, *shares, str(facts.get("source", "-")).split(" (")[0])
    for column in table.columns:
        column.no_wrap = True
    return table
