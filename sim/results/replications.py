"""Candidates side by side over several seeds: means, paired differences with intervals, verdicts.

Every candidate gets the same arrivals under the same seed (common random numbers), so each is compared with the first
by the differences of the pairs. The figures are those of finite runs, as they stand in summary.json; claims about the
steady state are made beside them, and refused for a candidate as soon as one of its runs refuses them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from simbatch.sim.results import console, files
from simbatch.sim.results.compare import OWN_FILES, Comparison, Row
from simbatch.sim.results.compared import STEADY, Metric, metrics_of, steady_metrics
from simbatch.sim.results.differences import Difference, Values
from simbatch.sim.results.steady import OVERLOADED
from simbatch.sim.statistics.intervals import CONFIDENCE, Interval, mean_interval

Summary = Mapping[str, Any]
COLUMNS = ("difference", "interval", "relative", "")


@dataclass(frozen=True)
class ReplicatedComparison:
    """`summaries`: of each candidate, one per seed, in the order of `seeds`; `first` holds the first seed's results.

    `bonferroni`: the intervals of a metric hold together with the confidence, rather than each by itself.
    """

    first: Comparison
    summaries: Mapping[str, Sequence[Summary]]
    seeds: Sequence[int]
    bonferroni: bool = False
    confidence: float = CONFIDENCE

    @property
    def labels(self) -> list[str]:
        """The candidates; the others are compared with the first."""
        return list(self.summaries)

    @cached_property
    def is_one_run(self) -> bool:
        """Whether the seed changes nothing (a trace, fixed lengths): all replications are one run."""
        return all(
            len({values[0], *values}) == 1 for _, by_label in self._measured for values in map(tuple, by_label.values())
        )

    @cached_property
    def differences(self) -> list[list[Difference]]:
        """Per metric, one per candidate after the first."""
        base, *others = self.labels
        confidence = 1 - (1 - self.confidence) / len(others) if self.bonferroni and others else self.confidence
        refused_all = "the seed changes nothing" if self.is_one_run else None
        return [
            [
                Difference.of(
                    metric,
                    (base, values[base]),
                    (other, values[other]),
                    confidence,
                    refused_all or (self._refusal(base) or self._refusal(other) if metric.is_steady else None),
                )
                for other in others
            ]
            for metric, values in self._measured
        ]

    def rows(self) -> Iterator[Row]:
        """The means over the seeds."""
        for metric, values in self._measured:
            means = {label: _mean(values[label]) for label in self.labels}
            yield Row(metric.key, metric.label, means, metric.better, max(metric.decimals, 1), metric.is_share)

    def text(self) -> str:
        """One table a candidate, and what must be known to read it."""
        base, *others = self.labels
        facts = next(iter(self.first.results.values())).facts
        lines = [
            f"{facts.scenario_name}, seeds {self.seeds[0]} to {self.seeds[-1]}: means of {len(self.seeds)} runs, "
            f"differences from {base} with {100 * self.confidence:g} % intervals",
            "",
        ]
        for i, other in enumerate(others):
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
            "seeds": list(self.seeds),
            "confidence": self.confidence,
            "simultaneous": self.bonferroni,
            "base": self.labels[0],
            "steady_state_refused": {label: self._refusal(label) for label in self.labels},
            "overloaded_runs": {label: self._num_overloaded(label) for label in self.labels},
            "metrics": [
                {
                    "key": row.key,
                    "label": row.label,
                    "better": row.better,
                    "values": row.values,
                    "best": row.best,
                    "runs": values,
                    "intervals": {label: self._interval(values[label]) for label in self.labels},
                    "differences": {difference.other: difference.as_dict() for difference in differences},
                }
                for row, (_, values), differences in zip(self.rows(), self._measured, self.differences, strict=True)
            ],
        }

    def save(self, folder: Path | str) -> list[Path]:
        """Write compare.json, compare.csv, compare.png (of the first seed) and differences.png; returns their paths."""
        from simbatch.sim.results.plots import comparison, differences

        writers: dict[str, Callable[[Path], None]] = {
            "compare.json": lambda path: files.write_json(path, self.as_dict()),
            "compare.csv": self._write_csv,
            "compare.png": lambda path: comparison.write(path, self.first.results),
            "differences.png": lambda path: differences.write(path, self),
        }
        return files.write_all(Path(folder), writers, OWN_FILES)

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
        if self.is_one_run:
            yield f"NOTE: the seed changes nothing here: {len(self.seeds)} replications are one run, without intervals."
        else:
            yield from self._multiplicity()
        if not self.first.same_arrivals:
            yield "NOTE: the candidates did not get the same requests at the same times."
        for label in self.labels:
            if (reason := self._refusal(label)) is not None:
                num = sum(_refusal(summary) is not None for summary in self.summaries[label])
                yield f"Steady state: no claim about {label}, {num} of {len(self.seeds)} runs: {reason}."
            if num := self._num_overloaded(label):
                yield (
                    f"WARNING: {label}: overloaded in {num} of {len(self.seeds)} runs: the queue kept growing, and the "
                    "means say how long the runs were."
                )

    def _multiplicity(self) -> Iterator[str]:
        each = len(self.labels) - 1
        if each > 1 and self.bonferroni:
            yield (
                f"The {each} intervals of a metric hold together at {100 * self.confidence:g} % (Bonferroni); "
                "those of different metrics each by itself."
            )
            return
        total = sum(difference.interval is not None for row in self.differences for difference in row)
        yield (
            f"{total} comparisons, each at {100 * self.confidence:g} % by itself: of those without a true difference, "
            f"1 in {1 / (1 - self.confidence):.0f} shows one{'; see --bonferroni' if each > 1 else ''}."
        )

    @cached_property
    def _measured(self) -> list[tuple[Metric, dict[str, Values]]]:
        """Every metric that somebody has, by candidate and seed."""
        every = [summary for runs in self.summaries.values() for summary in runs]
        table: list[tuple[Metric, dict[str, Values]]] = []
        for metric in (*metrics_of(every), *steady_metrics()):
            values: dict[str, Values] = {}
            for label, runs in self.summaries.items():
                is_refused = (
                    metric.is_steady and self._refusal(label) is not None
                )  # a claim about all the runs, or none
                values[label] = [None if is_refused else metric.of(summary) for summary in runs]
            if any(value is not None for of in values.values() for value in of):
                table.append((metric, values))
        return table

    def _refusal(self, label: str) -> str | None:
        """Why nothing is said of this candidate's steady state; overload before all else."""
        reasons = [reason for summary in self.summaries[label] if (reason := _refusal(summary)) is not None]
        return OVERLOADED if OVERLOADED in reasons else next(iter(reasons), None)

    def _num_overloaded(self, label: str) -> int:
        return sum(_refusal(summary) == OVERLOADED for summary in self.summaries[label])

    def _interval(self, values: Values) -> dict[str, float] | None:
        """Of one candidate's mean."""
        known = [value for value in values if value is not None]
        if len(known) < 2 or self.is_one_run:
            return None
        interval: Interval = mean_interval(known, self.confidence)
        return {"low": interval.low, "high": interval.high, "n": interval.n}


def _refusal(summary: Summary) -> str | None:
    _, _, key = STEADY.partition(".")
    reason: str | None = summary["simbatch"][key]["refused"]
    return reason


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """As everywhere, with the verdicts to the left."""
    width = max(len(row[-1]) for row in rows)
    return console.table(header, [(*row[:-1], row[-1].ljust(width)) for row in rows])
