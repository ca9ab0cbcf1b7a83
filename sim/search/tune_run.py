"""Simulations for a search, through the same cells as `simbatch sweep`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simbatch.sim.results.runs import Summary
from simbatch.sim.scenario import Scenario
from simbatch.sim.search.cells import Cell, CellStore, cells_of, run_cells
from simbatch.sim.search.tune_space import Settings


class Runner:
    """Changes of one scenario and seeds in, summaries out; each different simulation runs once."""

    def __init__(
        self,
        scenario: Scenario,
        store: CellStore | None = None,
        *,
        jobs: int = -1,
        resume: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._scenario, self._store, self._jobs, self._progress = scenario, store, jobs, progress
        self._resume = resume
        self._known: dict[str, Summary] = {}

    def __call__(self, asked: Sequence[tuple[Settings, int]]) -> list[Summary]:
        """The summaries in the order of what is asked; on as many processes as there are jobs."""
        cells = self._cells(asked)
        new = {cell.key: cell for cell in cells if cell.key not in self._known}
        if self._resume and self._store is not None:
            self._known |= {key: found for key in new if (found := self._store.get(key)) is not None}
        missing = [cell for key, cell in new.items() if key not in self._known]
        if missing:
            self._known |= run_cells(missing, self._store, jobs=self._jobs)
        if self._progress is not None:
            self._progress(self.num_runs)
        return [self._known[cell.key] for cell in cells]

    def _cells(self, asked: Sequence[tuple[Settings, int]]) -> list[Cell]:
        """All of a seed at once, since what they share is looked at once in each call."""
        cells: dict[int, Cell] = {}
        for seed in dict.fromkeys(seed for _, seed in asked):
            places = [place for place, (_, other) in enumerate(asked) if other == seed]
            of_seed = cells_of(self._scenario, [asked[place][0] for place in places], [seed])
            cells |= zip(places, of_seed, strict=True)
        return [cells[place] for place in range(len(asked))]

    @property
    def num_runs(self) -> int:
        """How many simulations there were, those taken from the store included."""
        return len(self._known)
