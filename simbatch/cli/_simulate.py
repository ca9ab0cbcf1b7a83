"""Run a scenario for a command, with a progress bar when a person is looking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simbatch.cli._progress import progress_of

if TYPE_CHECKING:
    from simbatch.sim.results import Result
    from simbatch.sim.scenario import Resolved


def simulate_shown(resolved: Resolved, label: str, *, steps: bool = False, quiet: bool = False) -> Result:
    """Simulate; `label` names the bar on stderr."""
    from simbatch.sim.search.simulate import run_resolved

    with progress_of(label, resolved.scenario.workload.num_prompts, quiet=quiet) as progress:
        return run_resolved(resolved, steps=steps, progress=progress)
