"""Candidates under several seeds at one load: differences with intervals as tables, pictures, a file of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.files import write_json
from simbatch.sim.metrics.registry import Metric
from simbatch.sim.report.compare import (
    OWN_FILES,
    Comparison,
    certificates_of,
    headline_rows,
    rows_left_out,
    same_notes,
    taken_notes,
)
from simbatch.sim.report.figures import Figures, Open
from simbatch.sim.results import files
from simbatch.sim.results.differences import Difference
from simbatch.sim.results.experiment import SideBySide
from simbatch.sim.text import table, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLEAR = ("better", "worse")
COLUMNS = ("difference", "interval", "relative", "")


@dataclass(frozen=True, repr=False)
class ReplicatedComparison(Figures, SideBySide):
    """Candidates under several seeds; `first`: the results of the first seed, for the picture and the facts."""

    first: Comparison = field(kw_only=True)

    @property
    def sides(self) -> Sequence[SideBySide]:
        """All of it: there is one load."""
        return [self]

    def draw(self, open_figure: Open, metrics: Sequence[Metric], width: float) -> Figure:
        """A panel for each metric, a point per candidate, in a figure that is opened with its width and height."""
        from simbatch.sim.report import points_picture

        limits = next(iter(self.first.results.values())).facts.slo.limits()
        return points_picture.draw(open_figure, self, limits, metrics, width)

    def text(self, *, all_rows: bool = False) -> str:
        """One table a candidate that differs from the first, and what must be known to read them.

        Its headline rows and what they say in a sentence; with `all_rows` every figure, and the differences in percent.
        """
        base, *others = self.labels
        facts = next(iter(self.first.results.values())).facts
        lines = [
            f"{facts.scenario_name}, seeds {self.seeds[0]} to {self.seeds[-1]}: means of {len(self.seeds)} runs"
            f"{' of the trace, resampled in blocks' if self.is_resampled else ''}, "
            f"differences from {base} with {100 * self.confidence:g} % intervals",
            "",
        ]
        different = [label for label in others if self.same.get(label) != base] or others[:1]
        for i, other in enumerate(others):
            if other not in different:
                continue
            every = [
                (row, differences[i])
                for row, differences in zip(self.rows(), self.differences, strict=True)
                if not (differences[i].metric.is_steady and differences[i].interval is None)
            ]
            chosen = every if all_rows else [*headline_rows(every, lambda pair: pair[1].metric)]
            columns = COLUMNS if all_rows else (*COLUMNS[:2], "")
            rows = [
                (row.metric.label, row.text(base), row.text(other), *difference.cells(short=not all_rows))
                for row, difference in chosen
            ]
            lines += [*_table((f"{other} against {base}", base, other, *columns), rows), ""]
            if not all_rows:
                lines += [*_said([difference for _, difference in chosen], other, base)]
                lines += [*rows_left_out(len(every) - len(chosen)), ""]
        return "\n".join(wrapped([*lines, *self._notes(all_rows)])).rstrip()

    def as_dict(self) -> dict[str, Any]:
        """The content of compare.json: that of one run, means in place of values, and the intervals."""
        return {
            **{key: value for key, value in self.first.as_dict().items() if key != "metrics"},
            "same_as": self.same,
            "seeds": list(self.seeds),
            "confidence": self.confidence,
            "simultaneous": self.bonferroni,
            "base": self.labels[0],
            "steady_state_refused": {label: runs.refusal for label, runs in self.runs.items()},
            "overloaded_runs": {label: runs.num_overloaded for label, runs in self.runs.items()},
            "metrics": self.metrics(),
        }

    def save(self, folder: Path | str) -> list[Path]:
        """Write compare.json, compare.csv, compare.png (of the first seed) and differences.png; returns their paths."""
        from simbatch.sim.report import compare_pictures

        writers: dict[str, Callable[[Path], None]] = {
            "compare.json": lambda path: write_json(path, self.as_dict()),
            "compare.csv": self._write_csv,
            "compare.png": lambda path: compare_pictures.write_comparison(path, self.first.results),
            "differences.png": lambda path: compare_pictures.write_differences(path, self.first.name, self),
        }
        facts = certificates_of({label: runs[0] for label, runs in self.summaries.items()})
        return files.write_result(Path(folder), writers, OWN_FILES, facts)

    def _write_csv(self, path: Path) -> None:
        others = self.labels[1:]
        figures = ("difference", "low", "high", "relative", "relative_low", "relative_high", "verdict")
        columns = ["metric", "better", *self.labels, *(f"{other} {name}" for other in others for name in figures)]
        rows = []
        for row, differences in zip(self.rows(), self.differences, strict=True):
            known = [difference.as_dict() for difference in differences]
            against = [content[name] for content in known for name in figures]
            rows.append([row.metric.key, row.metric.better, *row.values.values(), *against])
        files.write_csv(path, columns, rows)

    def _notes(self, all_rows: bool) -> Iterator[str]:
        """What the table means, and what it does not say."""
        yield from self.multiplicity()
        yield from same_notes(self.same, len(self.seeds))
        yield from taken_notes({label: runs[0] for label, runs in self.summaries.items()})
        if not self.first.same_arrivals:
            yield "NOTE: the candidates did not get the same requests at the same times."
        for label in self.labels:
            runs = self.runs[label]
            if all_rows and (reason := runs.refusal) is not None:
                num = runs.num_refused
                yield f"Steady state: no claim about {label}, {num} of {len(self.seeds)} runs: {reason}."
            if num := runs.num_overloaded:
                yield (
                    f"WARNING: {label}: overloaded in {num} of {len(self.seeds)} runs: the queue kept growing, and the "
                    "means say how long the runs were."
                )


def _said(differences: Sequence[Difference], other: str, base: str) -> Iterator[str]:
    """What is better and what is worse, `adaptive against vllm: better in P99 TPOT; worse in P99 TTFT`."""
    by_verdict: dict[str, list[str]] = {}
    for difference in differences:
        by_verdict.setdefault(difference.verdict, []).append(difference.metric.title)
    told = [f"{verdict} in {', '.join(named)}" for verdict, named in sorted(by_verdict.items()) if verdict in CLEAR]
    yield f"{other} against {base}: {'; '.join(told) or 'no difference is shown in any of these'}."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """As everywhere, with the verdicts to the left."""
    width = max(len(row[-1]) for row in rows)
    return table(header, [(*row[:-1], row[-1].ljust(width)) for row in rows])
