"""`simbatch explain`: the life of one request."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simbatch.cli._options import load_scenario, policy_option


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--request", "request_id", required=True, metavar="ID", help="Its request_id: see requests.parquet.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key of the scenario.")
@policy_option
@click.option("--seed", type=int, metavar="N", help="Set the scenario's seed.")
@click.option("--json", "as_json", is_flag=True, help="Print the events as JSON lines.")
def explain(
    file: Path, request_id: str, assignments: tuple[str, ...], policy: str | None, seed: int | None, as_json: bool
) -> None:
    """Tell the life of one request of the scenario in FILE.

    Why it waited in each step (seats, blocks, budget, watermark, a preemption), who preempted it, what it hit in the
    prefix cache. The scenario is simulated step by step, so this takes longer than a run.
    """
    from simbatch.sim.scenario import resolve
    from simbatch.sim.simulate import explain_request

    events = explain_request(resolve(load_scenario(file, assignments, seed, policy)), request_id)
    if as_json:
        for event in events:
            click.echo(json.dumps(event._asdict()))
        return
    click.echo(f"request {request_id}")
    for event in events:
        steps = "" if event.step is None else f"step {event.step}"
        times = f" (x {event.num_steps})" if event.num_steps > 1 else ""
        click.echo(f"{event.time_s:12.3f} s  {steps:<12} {event.what}{times}")
