"""Candidates side by side on the same arrivals, under one seed or several: a table, pictures, a file of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import write_csv, write_json
from simbatch.sim.metrics.registry import Metric
from simbatch.sim.report.figures import Figures, Open, best_in, headline, left_out, said, same_notes, taken_notes
from simbatch.sim.report.result import Result
from simbatch.sim.results import Experiment, SideBySide, files
from simbatch.sim.results.runs import MetricRow, marked, unread_in
from simbatch.sim.text import table, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN_FILES = ("compare.json", "compare.csv", "compare.png", "differences.png", "loads.png", "loads.pdf", "report.html")


class Further(Protocol):
    """What is to be said of several candidates beside their figures."""

    def lines(self) -> Iterable[str]:
        """For the console."""

    def as_dict(self) -> dict[str, Any]:
        """For compare.json."""


class Comparison(Figures):
    """Several results under their labels, `{"fixed": result, "adaptive": result}`, in that order.

    `upgrades` are what is to be said of candidates that differ in their vLLM, `bands` of how far all may be off.
    """

    def __init__(
        self, results: Mapping[str, Result], upgrades: Sequence[Further] = (), bands: Further | None = None
    ) -> None:
        if not results:
            raise UserError(Problem("compare", "needs at least one result", mend="name a policy or a profile"))
        self.results = dict(results)
        self.upgrades, self.bands = upgrades, bands

    @property
    def name(self) -> str:
        """The scenario's."""
        return next(iter(self.results.values())).facts.scenario_name

    @cached_property
    def sides(self) -> Sequence[SideBySide]:
        """All of it: there is one load, and one seed."""
        places = [(label, None, result.facts.seed) for label, result in self.results.items()]
        return [SideBySide(Experiment.of(places, (result.summary for result in self.results.values())))]

    @property
    def limits(self) -> Mapping[str, float]:
        """The SLO in ms, by latency."""
        return next(iter(self.results.values())).facts.slo.limits()

    def draw(self, open_figure: Open, metrics: Sequence[Metric], width: float) -> Figure:
        """A panel for each metric, a point per candidate, in a figure that is opened with its width and height."""
        from simbatch.sim.report import loads_picture

        return loads_picture.draw_points(open_figure, self.sides[0], self.limits, metrics, width)

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
        return self.sides[0].same

    @cached_property
    def rows(self) -> list[MetricRow]:
        """The metrics that are compared; a latency that nobody has is left out."""
        return [
            MetricRow(metric, {label: value for label, (value,) in values.items()})
            for metric, values in self.sides[0].measured
            if not metric.is_steady
        ]

    def text(self, *, all_rows: bool = False) -> str:
        """The table for the console, plain text: its headline rows and who is best in them, or `all_rows`."""
        labels = list(self.results)
        rows = [*headline(self.rows, lambda row: row.metric)] if not all_rows else self.rows
        cells = [(row.metric.label, *(row.cell(label) for label in labels)) for row in rows]
        header = ("", *(f"{label}  " for label in labels))
        facts = next(iter(self.results.values())).facts
        title = f"{facts.scenario_name}, seed {facts.seed}: {len(labels)} candidates, * marks the best"
        lines = [title, "", *table(header, cells), "", *best_in(rows, labels), *left_out(len(self.rows) - len(rows))]
        lines += same_notes(self.same, 1)
        lines += taken_notes({label: result.summary for label, result in self.results.items()})
        if not self.same_arrivals:
            lines.append("NOTE: the candidates did not get the same requests at the same times.")
        warnings = {label: result.summary["simbatch"]["warnings"] for label, result in self.results.items()}
        of_all = [warning for warning in next(iter(warnings.values())) if all(warning in w for w in warnings.values())]
        unread = unread_in(result.summary for result in self.results.values())
        for label, own in warnings.items():
            lines += [marked(warning, unread, f"{label}: ") for warning in own if warning not in of_all]
        lines += [marked(warning, unread) for warning in of_all]
        for further in [*self.upgrades, *([self.bands] if self.bands is not None else [])]:
            lines += ["", *further.lines()]
        return "\n".join(wrapped(line.rstrip() for line in lines))

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
                    "vllm_version": files.version_of(result.summary),
                }
                for label, result in self.results.items()
            },
            "metrics": [{**row.metric.named(), "values": row.values, "best": row.best} for row in self.rows],
            **({"upgrades": [upgrade.as_dict() for upgrade in self.upgrades]} if self.upgrades else {}),
            **({} if self.bands is None else self.bands.as_dict()),
        }

    def save(self, folder: Path | str, *, html: bool = False) -> list[Path]:
        """Write compare.json, compare.csv, compare.png, and with `html` report.html; returns their paths."""
        from simbatch.sim.report import compare_pictures
        from simbatch.sim.report.page.compare import comparison_page
        from simbatch.sim.report.page.page import page_writer

        writers: dict[str, Callable[[Path], None]] = {
            "compare.json": lambda path: write_json(path, self.as_dict()),
            "compare.csv": self._write_csv,
            "compare.png": lambda path: compare_pictures.write_comparison(path, self.results),
            **page_writer(lambda: comparison_page(self.results, self.rows, self.text(all_rows=True)), html=html),
        }
        versions = {label: files.version_of(result.summary) for label, result in self.results.items()}
        return files.write_result(Path(folder), writers, OWN_FILES, versions)

    def _write_csv(self, path: Path) -> None:
        rows = [[row.metric.key, row.metric.better, *row.values.values()] for row in self.rows]
        write_csv(path, ["metric", "better", *self.results], rows)


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
        from simbatch.sim.report import loads_picture

        return loads_picture.draw_points(open_figure, self, self.first.limits, metrics, width)

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
            chosen = every if all_rows else [*headline(every, lambda pair: pair[1].metric)]
            columns = COLUMNS if all_rows else (*COLUMNS[:2], "")
            rows = [
                (row.metric.label, row.text(base), row.text(other), *difference.cells(short=not all_rows))
                for row, difference in chosen
            ]
            lines += [*table((f"{other} against {base}", base, other, *columns), rows), ""]
            if not all_rows:
                lines += [*said([difference for _, difference in chosen], other, base)]
                lines += [*left_out(len(every) - len(chosen)), ""]
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

    def save(self, folder: Path | str, *, html: bool = False) -> list[Path]:
        """Write compare.json, compare.csv and two pictures, and with `html` report.html; returns their paths.

        compare.png is of the first seed, differences.png has the intervals.
        """
        from simbatch.sim.report import compare_pictures
        from simbatch.sim.report.page.compare import replicated_page
        from simbatch.sim.report.page.page import page_writer

        writers: dict[str, Callable[[Path], None]] = {
            "compare.json": lambda path: write_json(path, self.as_dict()),
            "compare.csv": self._write_csv,
            "compare.png": lambda path: compare_pictures.write_comparison(path, self.first.results),
            "differences.png": lambda path: compare_pictures.write_differences(path, self.first.name, self),
            **page_writer(lambda: replicated_page(self, self.first.results, self.text(all_rows=True)), html=html),
        }
        versions = {label: files.version_of(runs[0]) for label, runs in self.summaries.items()}
        return files.write_result(Path(folder), writers, OWN_FILES, versions)

    def _write_csv(self, path: Path) -> None:
        others = self.labels[1:]
        figures = ("difference", "low", "high", "relative", "relative_low", "relative_high", "verdict")
        columns = ["metric", "better", *self.labels, *(f"{other} {name}" for other in others for name in figures)]
        rows = []
        for row, differences in zip(self.rows(), self.differences, strict=True):
            known = [difference.as_dict() for difference in differences]
            against = [content[name] for content in known for name in figures]
            rows.append([row.metric.key, row.metric.better, *row.values.values(), *against])
        write_csv(path, columns, rows)

    def _notes(self, all_rows: bool) -> Iterator[str]:
        """What the table means, and what it does not say."""
        if all_rows:
            yield f"+ better than {self.labels[0]}, - worse, = no difference shown; > higher, < lower."
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
