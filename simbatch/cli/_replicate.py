"""The same candidates under further seeds, on several processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from simbatch.cli._progress import progress_of

if TYPE_CHECKING:
    from simbatch.sim.scenario import Resolved
    from simbatch.sim.search.cells import Cell
from simbatch.sim.results.runs import Summary


def cells_under(candidates: Mapping[str, Resolved], seeds: Sequence[int]) -> dict[str, list[Cell]]:
    """Each candidate under each seed; UserError when there is no such seed."""
    from simbatch.sim.search.cells import cells_of

    return {label: cells_of(resolved.scenario, [{}], seeds) for label, resolved in candidates.items()}


def summaries_of(cells: Mapping[str, Sequence[Cell]], *, jobs: int, quiet: bool) -> dict[str, list[Summary]]:
    """The content of summary.json of each, in their order."""
    from simbatch.sim.search.run import run_cells

    every = [cell for each in cells.values() for cell in each]
    num_ended = 0
    with progress_of("replications", len({cell.key for cell in every}), quiet=quiet) as progress:

        def count(_cell: Cell, _summary: Summary) -> None:
            nonlocal num_ended
            num_ended += 1
            if progress is not None:
                progress(num_ended)

        found = run_cells(every, jobs=jobs, on_result=count, say=lambda line: click.echo(line, err=True))
    return {label: [found[cell.key] for cell in each] for label, each in cells.items()}
