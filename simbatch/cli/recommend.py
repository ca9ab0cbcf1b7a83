"""`simbatch recommend`: settings for a use case, from the source material's table, checked by simulation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from simbatch.cli._options import jobs_option
from simbatch.cli._output import Output, progress_of
from simbatch.sim.errors import Problem, UserError

if TYPE_CHECKING:
    from simbatch.sim.cost.profile import MeasuredProfile

CASES = ("interactive", "batch", "mixed", "longform")
ABOUT_RUNS = 300


@click.command()
@click.option("--use-case", type=click.Choice(CASES), required=True, help="What the model is to serve.")
@click.option("--profile", "reference", required=True, metavar="P", help="A profile that ships, or a path.")
@click.option("--preset", metavar="NAME", help="Other traffic for the use case: chat, code, rag, summarize.")
@click.option("--slo", "limits", multiple=True, metavar="KEY=MS", help="--slo ttft_ms=500 --slo tpot_ms=40.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Of the traffic.")
@jobs_option
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR", help="Results go here.")
@click.option("--json", "as_json", is_flag=True, help="Print recommend.json instead of the report.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def recommend(
    use_case: str,
    reference: str,
    preset: str | None,
    limits: tuple[str, ...],
    seed: int,
    jobs: int,
    folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Recommend max_num_seqs and max_num_batched_tokens for a use case, as flags and a config file of vLLM.

    The rule of thumb for the use case is checked by simulation on the profile, and corrected where it is wrong. Takes
    about a minute on two cores. Results go to DIR, by default results/recommend-<use case>-<profile>.
    """
    from simbatch.sim.scenario.presets import SessionPreset, preset_of, slo_of
    from simbatch.sim.search.run import Runner
    from simbatch.sim.tuning.recommend import recommend as search
    from simbatch.sim.tuning.recommend_cases import USE_CASES, scenario_of
    from simbatch.sim.tuning.recommend_report import OWN_FILES, report, save

    case, profile = USE_CASES[use_case], _profile(reference)
    traffic = None if preset is None else preset_of(preset)
    if isinstance(traffic, SessionPreset):
        rule = "loads a server with all requests at once, and turns of sessions wait for answers"
        mend = f"simbatch init LINE --gpu G --preset {preset} -o FILE, then simbatch tune FILE"
        raise UserError(Problem(f"--preset {preset}", rule, mend=mend))
    if traffic is not None:
        case = replace(case, words=f"{traffic.name}: {traffic.words} ({traffic.source})", slo=traffic.slo)
    slo = slo_of(limits) or dict(case.slo)
    scenario = scenario_of(case, profile, reference, slo, seed, traffic)
    output = Output(folder, f"recommend-{scenario.name}-{profile.name}", OWN_FILES)
    with progress_of("recommend", ABOUT_RUNS, quiet=quiet) as progress:
        runner = Runner(scenario, jobs=jobs, progress=progress)
        found = search(case, scenario, profile, runner)
    found.num_runs = runner.num_runs
    written = save(found, output.folder)
    last = f"{found.num_runs} simulations; {', '.join(path.name for path in written)} in {output.folder}"
    json_file = "recommend.json" if as_json else None
    output.show(written, lambda: f"{report(found)}\n", json_file, quiet=quiet, last=last)


def _profile(reference: str) -> MeasuredProfile:
    from simbatch.sim.cost.by_name import load_profile
    from simbatch.sim.cost.profile import MeasuredProfile

    profile = load_profile(reference, folder=Path())
    if not isinstance(profile, MeasuredProfile):
        rule = "names no model and no GPU, so there is nothing to recommend flags for"
        raise UserError(Problem("--profile", rule, reference, "take one that ships: `simbatch profiles list`"))
    return profile
