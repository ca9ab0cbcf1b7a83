"""`simbatch run`: one scenario, one result."""

from __future__ import annotations

from pathlib import Path

import click

from simbatch.cli._options import load_scenario, policy_option, router_option, scenario_options
from simbatch.cli._output import Output


@click.command()
@scenario_options
@policy_option
@router_option
@click.option("--steps", is_flag=True, help="Write every step to steps.parquet.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the report.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def run(
    file: Path,
    folder: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    policy: str | None,
    router: str | None,
    steps: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Simulate the scenario in FILE (YAML) and show what its users feel.

    Results are written to DIR, by default results/<name of FILE>.
    """
    from simbatch.cli._simulate import simulate_shown
    from simbatch.sim.results.files import OWN_FILES
    from simbatch.sim.scenario import resolve

    resolved = resolve(load_scenario(file, assignments, seed, policy, router=router))
    if resolved.scenario.sweep is not None and not quiet:
        click.echo(f"the settings outside `sweep` are run; its cells: simbatch sweep {file}", err=True)
    output = Output(folder, file.stem, OWN_FILES)
    result = simulate_shown(resolved, resolved.scenario.name, steps=steps, quiet=quiet)
    written = result.save(output.folder)
    output.say_replaced(quiet=quiet)
    if as_json:
        click.echo((output.folder / "summary.json").read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        click.echo(result.text())
        click.echo(f"{len(written)} files in {output.folder}")
