"""The comparison of several seeds as a person reads it, and its files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simbatch.sim.files import write_json
from simbatch.sim.results import files
from simbatch.sim.results.alike import same_notes, taken_notes
from simbatch.sim.results.compare import OWN_FILES, Comparison
from simbatch.sim.results.replicated import Replicated
from simbatch.sim.results.text import table

COLUMNS = ("difference", "interval", "relative", "")


@dataclass(frozen=True)
class ReplicatedComparison(Replicated):
    """The same with `first`, the results of the first seed, for its picture and its facts."""

    first: Comparison = field(kw_only=True)

    def text(self) -> str:
        """One table a candidate that differs from the first, and what must be known to read them."""
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
            rows = [
                (row.label, row.text(base), row.text(other), *differences[i].cells())
                for row, differences in zip(self.rows(), self.differences, strict=True)
                if not (differences[i].metric.is_steady and differences[i].interval is None)
            ]
            lines += [*_table((f"{other} against {base}", base, other, *COLUMNS), rows), ""]
        return "\n".join([*lines, *self._notes()]).rstrip()

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
        from simbatch.sim.results.plots import comparison, differences

        writers: dict[str, Callable[[Path], None]] = {
            "compare.json": lambda path: write_json(path, self.as_dict()),
            "compare.csv": self._write_csv,
            "compare.png": lambda path: comparison.write(path, self.first.results),
            "differences.png": lambda path: differences.write(path, self),
        }
        return files.write_result(Path(folder), writers, OWN_FILES)

    def _write_csv(self, path: Path) -> None:
        others = self.labels[1:]
        figures = ("difference", "low", "high", "relative", "relative_low", "relative_high", "verdict")
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["metric", "better", *self.labels, *(f"{other} {name}" for other in others for name in figures)]
            )
            for row, differences in zip(self.rows(), self.differences, strict=True):
                known = [difference.as_dict() for difference in differences]
                writer.writerow(
                    [
                        *(row.key, row.better or "", *row.values.values()),
                        *(content[name] for content in known for name in figures),
                    ]
                )

    def _notes(self) -> Iterator[str]:
        """What the table means, and what it does not say."""
        yield from self.multiplicity()
        yield from same_notes(self.same, len(self.seeds))
        yield from taken_notes({label: runs[0] for label, runs in self.summaries.items()})
        if not self.first.same_arrivals:
            yield "NOTE: the candidates did not get the same requests at the same times."
        for label in self.labels:
            runs = self.runs[label]
            if (reason := runs.refusal) is not None:
                num = runs.num_refused
                yield f"Steady state: no claim about {label}, {num} of {len(self.seeds)} runs: {reason}."
            if num := runs.num_overloaded:
                yield (
                    f"WARNING: {label}: overloaded in {num} of {len(self.seeds)} runs: the queue kept growing, and the "
                    "means say how long the runs were."
                )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """As everywhere, with the verdicts to the left."""
    width = max(len(row[-1]) for row in rows)
    return table(header, [(*row[:-1], row[-1].ljust(width)) for row in rows])
