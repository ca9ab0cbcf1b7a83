"""Policies or profiles side by side on the same arrivals: one table, one picture, one file of numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import write_json
from simbatch.sim.results import files
from simbatch.sim.results.alike import same_as, same_notes, taken_notes
from simbatch.sim.results.registry import LOWER, Metric, metrics_of
from simbatch.sim.results.result import Result
from simbatch.sim.results.text import number, percent, table

OWN_FILES = ("compare.json", "compare.csv", "compare.png", "differences.png", "loads.png", "loads.pdf")


@dataclass(frozen=True)
class Row:
    """One metric of every candidate; `better` says which end is, None when neither."""

    key: str  # as in summary.json, dots between the levels
    label: str
    values: dict[str, float | None]
    better: str | None = None
    decimals: int = 2
    is_share: bool = False

    @property
    def best(self) -> list[str]:
        """Who has the best value, to the digits shown; nobody when all look equal."""
        measured = {value: label for label, value in self.values.items() if value is not None}
        texts = {self.text(label) for label in measured.values()}
        if self.better is None or len(texts) < 2:
            return []
        best = self.text(measured[(min if self.better == LOWER else max)(measured)])
        return [label for label in self.values if self.text(label) == best]

    def cell(self, label: str) -> str:
        """What the table shows, the best with a star."""
        return f"{self.text(label)} {'*' if label in self.best else ' '}"

    def text(self, label: str) -> str:
        """A candidate's value as it is shown."""
        value = self.values[label]
        return percent(value) if self.is_share else number(value, self.decimals)


class Further(Protocol):
    """What is to be said of several candidates beside their figures."""

    def lines(self) -> Iterable[str]:
        """For the console."""

    def as_dict(self) -> dict[str, Any]:
        """For compare.json."""


class Comparison:
    """Several results under their labels, `{"fixed": result, "adaptive": result}`, in that order.

    `upgrades` are what is to be said of candidates that differ in their vLLM.
    """

    def __init__(self, results: Mapping[str, Result], upgrades: Sequence[Further] = ()) -> None:
        if not results:
            raise UserError(Problem("compare", "needs at least one result", mend="name a policy or a profile"))
        self.results = dict(results)
        self.upgrades = upgrades

    @cached_property
    def same_arrivals(self) -> bool:
        """Whether all served the same requests at the same times; a closed loop never does."""
        first, *others = (result.record.requests for result in self.results.values())
        return all(
            np.array_equal(first.arrival_ps, other.arrival_ps)
            and np.array_equal(first.num_prompt_tokens, other.num_prompt_tokens)
            and np.array_equal(first.priority, other.priority)
            and first.tenant == other.tenant
            for other in others
        )

    @cached_property
    def same(self) -> dict[str, str]:
        """Who is the same as an earlier candidate in every figure, and as whom."""
        return same_as({label: [result.summary] for label, result in self.results.items()})

    @cached_property
    def rows(self) -> list[Row]:
        """The metrics that are compared; a latency that nobody has is left out."""
        rows = [self._row(metric) for metric in metrics_of([result.summary for result in self.results.values()])]
        return [row for row in rows if any(value is not None for value in row.values.values())]

    def text(self) -> str:
        """The table for the console, plain text."""
        labels = list(self.results)
        header = ("", *(f"{label}  " for label in labels))
        lines_of_table = table(header, [(row.label, *(row.cell(label) for label in labels)) for row in self.rows])
        facts = next(iter(self.results.values())).facts
        title = f"{facts.scenario_name}, seed {facts.seed}: {len(labels)} candidates, * marks the best"
        lines = [title, "", *lines_of_table, "", *same_notes(self.same, 1)]
        lines += taken_notes({label: result.summary for label, result in self.results.items()})
        if not self.same_arrivals:
            lines.append("NOTE: the candidates did not get the same requests at the same times.")
        warnings = {label: result.summary["simbatch"]["warnings"] for label, result in self.results.items()}
        of_all = [warning for warning in next(iter(warnings.values())) if all(warning in w for w in warnings.values())]
        for label, own in warnings.items():
            lines += [f"WARNING: {label}: {warning}" for warning in own if warning not in of_all]
        lines += [f"WARNING: {warning}" for warning in of_all]
        for upgrade in self.upgrades:
            lines += ["", *upgrade.lines()]
        return "\n".join(line.rstrip() for line in lines)

    def as_dict(self) -> dict[str, Any]:
        """The content of compare.json."""
        facts = next(iter(self.results.values())).facts
        return {
            "scenario": facts.scenario_name,
            "seed": facts.seed,
            "same_arrivals": self.same_arrivals,
            "same_as": self.same,
            "candidates": {
                label: {
                    "policy": result.summary["simbatch"]["policy"],
                    "profile": result.facts.profile,
                    "vllm_version": result.summary["simbatch"]["engine"].get("vllm_version"),
                }
                for label, result in self.results.items()
            },
            "metrics": [
                {"key": row.key, "label": row.label, "better": row.better, "values": row.values, "best": row.best}
                for row in self.rows
            ],
            **({"upgrades": [upgrade.as_dict() for upgrade in self.upgrades]} if self.upgrades else {}),
        }

    def save(self, folder: Path | str) -> list[Path]:
        """Write compare.json, compare.csv and compare.png to `folder`; returns their paths."""
        from simbatch.sim.results.plots import comparison

        writers: dict[str, Callable[[Path], None]] = {
            "compare.json": lambda path: write_json(path, self.as_dict()),
            "compare.csv": self._write_csv,
            "compare.png": lambda path: comparison.write(path, self.results),
        }
        return files.write_result(Path(folder), writers, OWN_FILES)

    def _write_csv(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["metric", "better", *self.results])
            for row in self.rows:
                writer.writerow([row.key, row.better or "", *row.values.values()])

    def _row(self, metric: Metric) -> Row:
        values = {name: metric.of(result.summary) for name, result in self.results.items()}
        return Row(metric.key, metric.label, values, metric.better, metric.decimals, metric.is_share)
