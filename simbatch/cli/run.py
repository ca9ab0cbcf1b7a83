"""`simbatch run` and `simbatch explain`: one simulation, and the life of one of its requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simbatch.cli._options import (
    bands_option,
    host_option,
    html_option,
    jobs_option,
    load_scenario,
    policy_option,
    router_option,
    scenario_options,
    version_option,
)
from simbatch.cli._output import Output, bands_shown, show_page, simulate_shown
from simbatch.cli._trace_options import trace_options
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.engine.explain import Event


@click.command()
@scenario_options
@policy_option
@router_option
@version_option
@bands_option
@jobs_option
@html_option
@click.option("--steps", is_flag=True, help="Write every step to steps.parquet.")
@click.option(
    "--perfetto",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write host, device, requests, queue and KV use over time for ui.perfetto.dev (.json[.gz]); implies --steps.",
)
@click.option("--verbose", is_flag=True, help="Every resolved setting, and why nothing is said of the steady state.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of the report.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def run(
    file: Path,
    folder: Path | None,
    assignments: tuple[str, ...],
    seed: int | None,
    policy: str | None,
    router: str | None,
    vllm_version: str | None,
    bands: bool,
    jobs: int,
    html: bool,
    steps: bool,
    perfetto: Path | None,
    verbose: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Simulate the scenario in FILE (YAML) and show what its users feel.

    Results are written to DIR, by default results/<name of FILE>.
    """
    from simbatch.sim.files import check_target
    from simbatch.sim.results.files import OWN_FILES
    from simbatch.sim.scenario import resolve

    resolved = resolve(load_scenario(file, assignments, seed, policy, router=router, vllm_version=vllm_version))
    if resolved.scenario.sweep is not None and not quiet:
        click.echo(f"the settings outside `sweep` are run; its cells: simbatch sweep {file}", err=True)
    output = Output(folder, file.stem, OWN_FILES)
    if perfetto is not None:
        check_target(perfetto, [file])
    result = simulate_shown(resolved, resolved.scenario.name, steps=steps or perfetto is not None, quiet=quiet)
    further: list[str] = []
    if bands:
        from simbatch.sim.search.bands import add_bands, band_lines

        drawn = bands_shown(resolved, jobs=jobs, quiet=quiet)
        add_bands(result.summary, drawn)
        further = [*band_lines(result.summary, drawn)]
    elif not (quiet or as_json):
        from simbatch.sim.search.loads import load_lines
        from simbatch.sim.text import wrapped

        further = [*wrapped(load_lines(resolved, result.record))]
    written = result.save(output.folder, html=html)
    if perfetto is not None:
        result.write_perfetto(perfetto)
    text = "\n".join([result.text(verbose=verbose), *further])
    output.show(written, lambda: text, "summary.json" if as_json else None, quiet=quiet)


LEGEND = (
    "S: schedule() begins; after it L: the launch has returned, D: the device is done, U: the tokens are taken in.\n"
    "Of several steps alike these are the first one's."
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--request", "request_id", metavar="ID", help="Its request_id: see requests.parquet. Needed.")
@host_option
@trace_options
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Set a key of the scenario.")
@policy_option
@version_option
@router_option
@click.option("--seed", type=int, metavar="N", help="Set the scenario's seed.")
@click.option("--json", "as_json", is_flag=True, help="Print the events as JSON lines.")
def explain(
    file: Path,
    request_id: str | None,
    assignments: tuple[str, ...],
    policy: str | None,
    vllm_version: str | None,
    router: str | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Tell the life of one request of the scenario in FILE.

    Why it waited in each step (seats, blocks, budget, watermark, a preemption), who preempted it, what it hit in the
    prefix cache; where the profile has host times, also when each step was scheduled, launched, computed and taken in
    (S, L, D, U: docs/one-step.md). The scenario is simulated step by step, so this takes longer than a run.
    """
    from simbatch.sim.scenario import resolve
    from simbatch.sim.search import explain_request

    if request_id is None:
        mend = "give a request_id of requests.parquet (where the input has none, its row from 0): --request 17"
        raise UserError(Problem("--request", "is missing: the life of one request is told", mend=mend))
    scenario = load_scenario(file, assignments, seed, policy, router=router, vllm_version=vllm_version)
    events = explain_request(resolve(scenario), request_id)
    if as_json:
        for event in events:
            click.echo(json.dumps(event._asdict()))
        return
    lines = [f"request {request_id}"]
    for event in events:
        steps = "" if event.step is None else f"step {event.step}"
        times = f" (x {event.num_steps})" if event.num_steps > 1 else ""
        lines.append(f"{event.time_s:12.3f} s  {steps:<12} {event.what}{times}")
        if (line := _step_line(event)) is not None:
            lines.append(f"{'':<29}{line}")
    if any(event.schedule_s is not None for event in events):
        lines.append(LEGEND)
    show_page("\n".join(lines))


def _step_line(event: Event) -> str | None:
    """When the first step of an event was scheduled, launched, computed and taken in; None if that is no matter."""
    begin_s, *others = event.schedule_s, event.launched_s, event.end_s, event.updated_s
    if begin_s is None:
        return None
    after = (f"{name} +{1e3 * (time_s - begin_s):.1f}" for name, time_s in zip("LDU", others, strict=True) if time_s)
    return f"S {begin_s:.3f} s, {', '.join(after)} ms"
