"""`simbatch schema`: the JSON Schema of scenario files, for editors."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON Schema of scenario files.

    Editors with a YAML language server complete and check a scenario whose first line is
    "# yaml-language-server: $schema=schema.json".
    """
    from simbatch.sim.scenario.schema import scenario_schema

    click.echo(json.dumps(scenario_schema(), indent=2))
