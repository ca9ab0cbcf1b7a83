"""`simbatch fit`: from measured steps to a profile, without the engine that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simbatch.cli._output import replacing


@click.command()
@click.argument("samples", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Profile to write (JSON).")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw predicted against measured (PNG).")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def fit(samples: Path, output: Path | None, plot: Path | None, as_json: bool) -> None:
    """Fit a profile from SAMPLES, the steps that `simbatch profile` wrote down, and say what it is worth."""
    from simbatch.profiler.fitting.from_samples import fit_samples
    from simbatch.profiler.fitting.report import report_dict
    from simbatch.profiler.fitting.samples import read_samples
    from simbatch.profiler.write import write_profile
    from simbatch.sim.paths import check_target

    for target in (output, plot):
        if target is not None:
            check_target(target, [samples])
    name = None if output is None else output.name.removesuffix(".json")
    fitted = fit_samples(read_samples(samples), name=name)
    if output is not None:
        with replacing(output):
            write_profile(fitted.profile, output)
    if plot is not None:
        fitted.plot(plot)
    click.echo(json.dumps(report_dict(fitted), indent=2, ensure_ascii=False) if as_json else fitted.text())
    for target in (output, plot):
        if target is not None:
            click.echo(f"{target}: written", err=True)
