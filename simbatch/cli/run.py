"""One scenario as it stands: `simbatch run`, and `simbatch explain`, the life of one of its requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simbatch.cli._options import (
    Asked,
    bands_option,
    file_argument,
    host_option,
    html_option,
    jobs_option,
    json_option,
    policy_option,
    quiet_option,
    router_option,
    scenario_options,
    seed_option,
    set_option,
    trace_options,
    version_option,
    with_asked,
)
from simbatch.cli._output import Output, bands_shown, show_page, simulate_shown
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
@json_option("summary.json instead of the report")
@quiet_option
@with_asked
def run(asked: Asked, bands: bool, steps: bool, perfetto: Path | None, verbose: bool) -> None:
    """Simulate the scenario in FILE (YAML) and show what its users feel.

    Results are written to DIR, by default results/<name of FILE>.
    """
    from simbatch.sim.files import check_target
    from simbatch.sim.results.files import OWN_FILES
    from simbatch.sim.scenario import resolve

    resolved = resolve(asked.load())
    if resolved.scenario.sweep is not None:
        asked.say(f"the settings outside `sweep` are run; its cells: simbatch sweep {asked.file}")
    output = Output(asked, asked.file.stem, OWN_FILES)
    if perfetto is not None:
        check_target(perfetto, [asked.file])
    result = simulate_shown(asked, resolved, resolved.scenario.name, steps=steps or perfetto is not None)
    further: list[str] = []
    if bands:
        from simbatch.sim.search.bands import add_bands, band_lines

        drawn = bands_shown(asked, resolved)
        add_bands(result.summary, drawn)
        further = [*band_lines(result.summary, drawn)]
    elif not (asked.quiet or asked.as_json):
        from simbatch.sim.search.loads import load_lines
        from simbatch.sim.text import wrapped

        further = [*wrapped(load_lines(resolved, result.record))]
    written = result.save(output.folder, html=asked.html)
    if perfetto is not None:
        result.write_perfetto(perfetto)
    output.show(written, lambda: "\n".join([result.text(verbose=verbose), *further]), "summary.json")


LEGEND = (
    "S: schedule() begins; after it L: the launch has returned, D: the device is done, U: the tokens are taken in.\n"
    "Of several steps alike these are the first one's."
)


@click.command()
@file_argument
@click.option("--request", "request_id", metavar="ID", help="Its request_id: see requests.parquet. Needed.")
@host_option
@trace_options
@set_option()
@policy_option
@version_option
@router_option
@seed_option
@json_option("the events as JSON lines")
@with_asked
def explain(asked: Asked, request_id: str | None) -> None:
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
    events = explain_request(resolve(asked.load()), request_id)
    if asked.as_json:
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
