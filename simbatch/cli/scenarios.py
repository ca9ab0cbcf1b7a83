"""`simbatch scenarios` and `simbatch schema`: the scenarios that ship, and the JSON Schema of their files."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import wrap

import click


@click.group()
def scenarios() -> None:
    """List and copy the scenarios that ship; every command that takes a scenario's FILE takes these names too."""


@scenarios.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_scenarios(as_json: bool) -> None:
    """List the scenarios that ship, and what each shows."""
    from simbatch.sim.scenario.shipped import about, shipped_scenarios
    from simbatch.sim.text import width

    found = {name: about(name) for name in shipped_scenarios()}
    if as_json:
        click.echo(json.dumps([{"name": name, "about": text} for name, text in found.items()], indent=2))
        return
    longest = max(map(len, found))
    for name, text in found.items():
        line = wrap(f"{name:<{longest}}  {text}", width(), subsequent_indent=" " * (longest + 2))
        click.echo("\n".join(line))


@scenarios.command()
@click.argument("name")
@click.option(
    "-o", "--output", "target", type=click.Path(path_type=Path), metavar="FILE", help="Write it here, not to NAME.yaml."
)
def copy(name: str, target: Path | None) -> None:
    """Write the scenario NAME to a file, to be changed; a file that is there already is left alone."""
    from simbatch.sim.errors import Problem, UserError
    from simbatch.sim.paths import check_target
    from simbatch.sim.scenario.shipped import shipped_scenario_text

    text = shipped_scenario_text(name)
    target = target or Path(f"{name}.yaml")
    check_target(target)
    if target.exists():
        raise UserError(Problem(str(target), "is there already", mend="name another file with -o"))
    target.write_text(text, encoding="utf-8")
    click.echo(f"{target}; run it: simbatch run {target}")


@click.command()
def schema() -> None:
    """Print the JSON Schema of scenario files.

    Editors with a YAML language server complete and check a scenario whose first line is
    "# yaml-language-server: $schema=schema.json".
    """
    from simbatch.sim.scenario.schema import scenario_schema

    click.echo(json.dumps(scenario_schema(), indent=2))
