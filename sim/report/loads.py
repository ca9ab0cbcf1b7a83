"""Candidates over several loads: the same seeds at each, differences with intervals, one figure for a paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simbatch.sim.files import write_csv, write_json
from simbatch.sim.metrics.registry import Metric, shown
from simbatch.sim.report import style
from simbatch.sim.report.compare import OWN_FILES
from simbatch.sim.report.figures import BOTH_COLUMNS, DPI, NUM_PANELS, RC, Figures, Open, same_notes, taken_notes
from simbatch.sim.results import ALIKE, OverLoads, Point, SideBySide, files
from simbatch.sim.results.runs import MARKS
from simbatch.sim.scenario import ONE_RUN
from simbatch.sim.text import percent, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LoadComparison(Figures, OverLoads):
    """Candidates over several loads, for a reader: a table per metric, files, a figure for a paper."""

    @property
    def sides(self) -> Sequence[SideBySide]:
        """The candidates at each load."""
        return self.at

    def draw(self, open_figure: Open, metrics: Sequence[Metric], width: float) -> Figure:
        """A panel for each metric, a line per candidate, in a figure that is opened with its width and height."""
        from simbatch.sim.report import loads_picture

        return loads_picture.draw(open_figure, self, metrics, width)

    @property
    def shown(self) -> list[Metric]:
        """What the console and the figure show: tail, speed, service, and fairness where there are tenants."""
        known = {metric.key for metric in self.metrics}
        return shown("loads", lambda metric: metric.key in known)[:NUM_PANELS]

    def text(self, *, all_rows: bool = False) -> str:
        """A table per metric that is shown, a row per load; of one candidate a single table, its load curve."""
        base, seeds = self.at[0], self.at[0].seeds
        intervals = f" with {100 * base.confidence:g} % intervals" if len(seeds) > 1 else ""
        of = " of the trace, resampled in blocks," if base.is_resampled else ""
        runs = f"means of {len(seeds)} runs{of}" if len(seeds) > 1 else "one run"
        lines = [f"{self.name}, {_seeds(seeds)}: {runs} at each of {len(self.rates)} loads{intervals}"]
        cells = {metric.label: self._cells(metric) for metric in self.shown}
        if len(self.labels) == 1:
            (label,) = self.labels
            lines += ["", label, *self._table({name: by_label[label] for name, by_label in cells.items()})]
        else:
            for name, by_label in cells.items():
                lines += ["", name, *self._table({f"{label}  ": column for label, column in by_label.items()})]
        return "\n".join([*lines, "", *self._notes()]).rstrip()

    def _cells(self, metric: Metric) -> dict[str, list[str]]:
        """A column per candidate."""
        return {label: [_cell(point, metric) for point in points] for label, points in self.points(metric).items()}

    def _table(self, columns: Mapping[str, list[str]]) -> list[str]:
        """The loads, and these columns beside them."""
        rates = [f"{rate:g}" for rate in self.rates]
        rows = list(zip(rates, *columns.values(), strict=True))
        return table([self.key.rpartition(".")[2], *columns], rows)

    def as_dict(self) -> dict[str, Any]:
        """The content of compare.json."""
        base = self.at[0]
        return {
            "scenario": self.name,
            "rate_key": self.key,
            "rates": list(self.rates),
            "seeds": list(base.seeds),
            "confidence": base.confidence,
            "simultaneous": base.bonferroni,
            "base": base.labels[0],
            "same_as": self.same,
            "candidates": {
                label: {key: runs[0]["simbatch"][key] for key in ("policy", "profile")}
                for label, runs in base.summaries.items()
            },
            "loads": [
                {
                    "rate": rate,
                    "steady_state_refused": {label: runs.refusal for label, runs in replicated.runs.items()},
                    "overloaded_runs": {label: runs.num_overloaded for label, runs in replicated.runs.items()},
                    "rejected_share": {label: runs.rejected_share for label, runs in replicated.runs.items()},
                    "metrics": replicated.metrics(),
                }
                for rate, replicated in zip(self.rates, self.at, strict=True)
            ],
        }

    def save(self, folder: Path | str, *, html: bool = False) -> list[Path]:
        """Write compare.json, compare.csv, loads.png, loads.pdf, and with `html` report.html; returns their paths."""
        from simbatch.sim.report.page.compare import loads_page
        from simbatch.sim.report.page.page import page_writer

        writers: dict[str, Callable[[Path], None]] = {
            "compare.json": lambda path: write_json(path, self.as_dict()),
            "compare.csv": self._write_csv,
            "loads.png": lambda path: self._draw_to(path, "png"),
            "loads.pdf": lambda path: self._draw_to(path, "pdf"),
            **page_writer(lambda: loads_page(self, self.shown, self.text()), html=html),
        }
        versions = {label: files.version_of(runs[0]) for label, runs in self.at[0].summaries.items()}
        return files.write_result(Path(folder), writers, OWN_FILES, versions)

    def _draw_to(self, path: Path, kind: str) -> None:
        self.draw(partial(style.figure, path, kind=kind, rc=RC, dpi=DPI), self.shown, BOTH_COLUMNS)

    def _write_csv(self, path: Path) -> None:
        """A row per load, metric and candidate, as plotting libraries like it."""
        rows = self.table()
        write_csv(path, [*rows[0]], [[*row.values()] for row in rows])

    def _notes(self) -> Iterator[str]:
        """What the marks mean, and what the table does not say."""
        base, *others = self.labels
        num_seeds = len(self.at[0].seeds)
        if not self.has_chance:
            yield f"NOTE: {ONE_RUN}; there is no interval."
        elif num_seeds == 1:
            yield "NOTE: one run a load says nothing of chance; --replications 10 gives intervals."
        elif others:
            yield f"+ better than {base}, - worse, = no difference shown: by the differences seed by seed."
            yield from self._multiplicity()
        yield from same_notes(self.same, len(self.at) * num_seeds)
        yield from taken_notes({label: runs[0] for label, runs in self.at[0].summaries.items()})
        for label in self.labels:
            runs = {rate: at.runs[label].num_overloaded for rate, at in zip(self.rates, self.at, strict=True)}
            if any(runs.values()):
                counts = ", ".join(f"{rate:g} (in {num})" for rate, num in runs.items() if num)
                yield f"WARNING: {label}: overloaded at {counts}: latencies there say how long the runs were."
            shares = {rate: at.runs[label].rejected_share for rate, at in zip(self.rates, self.at, strict=True)}
            if any(shares.values()):
                counts = ", ".join(f"{percent(share)} at {rate:g}" for rate, share in shares.items() if share)
                yield f"NOTE: {label} rejected {counts}: its latencies are those of the others."

    def _multiplicity(self) -> Iterator[str]:
        """How many comparisons the table has; more stand in compare.csv."""
        first = self.at[0]
        others = len(self.labels) - 1 - len(self.same)
        if not others:
            yield ALIKE
            return
        if first.bonferroni:
            yield from first.multiplicity()
            return
        num = len(self.shown) * len(self.rates) * others
        chance = f"of those without a true difference, 1 in {1 / (1 - first.confidence):.0f} shows one"
        counted = f"{num} comparison{'' if num == 1 else 's'}, each at {100 * first.confidence:g} % by itself"
        yield f"{counted}: {chance}; see --bonferroni."


def _cell(point: Point, metric: Metric) -> str:
    """`215.1 ± 9.8 +`: mean, interval, verdict."""
    if point.mean is None:
        return "-  "
    text = metric.text_with(point.mean, point.low, point.high, decimals=1)
    mark = MARKS.get(point.difference.verdict, " ") if point.difference is not None else " "
    return f"{text} {mark}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
