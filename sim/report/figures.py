"""A comparison for a notebook and a paper: its figures in long form, chosen metrics as one picture, and its sentences.

The sentences: who is best, what differs, who is the same as whom, who runs on what instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from simbatch.sim.errors import Problem, UserError
from simbatch.sim.files import data_frame, write_all, write_csv
from simbatch.sim.metrics.registry import ALIASES, Metric, shown
from simbatch.sim.report import style
from simbatch.sim.report.console import in_place_of
from simbatch.sim.results import Point, SideBySide
from simbatch.sim.results.runs import Difference, MetricRow

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


Row = dict[str, Any]
NUM_PANELS = 4  # of a picture for which nobody chose metrics
BOTH_COLUMNS = 7.16  # inches: the width of a page of two columns
NARROW = 5.0  # inches, below which panels stand above each other
MIN_WIDTH, MAX_WIDTH = 2.0, 40.0  # inches
INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72}
DPI = 200
RC = {"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5}
AGAINST = ("difference", "low", "high", "relative", "verdict")
Open = Callable[[float, float], AbstractContextManager["Figure"]]  # a figure of this width and height


class Figures(ABC):
    """What every comparison gives beside its text and files."""

    @property
    @abstractmethod
    def sides(self) -> Sequence[SideBySide]:
        """The candidates at each load; one where nobody asked for loads."""

    @abstractmethod
    def draw(self, open_figure: Open, metrics: Sequence[Metric], width: float) -> Figure:
        """A panel for each metric, in a figure that is opened with its width and height in inches."""

    @abstractmethod
    def text(self, *, all_rows: bool = False) -> str:
        """The table for the console."""

    def table(self, metrics: Sequence[str] | None = None, *, each_run: bool = False) -> list[Row]:
        """A row per load, metric and candidate: mean, 95 % interval, difference from the first candidate.

        With `each_run` a row per load, metric, candidate and seed. Times are in ms, shares 0 to 1; `metrics` are names
        of summary.json, all of them where it is None.
        """
        rows = self._runs if each_run else self._points
        return [row for metric in self.chosen(metrics) for row in rows(metric)]

    def to_pandas(self, metrics: Sequence[str] | None = None, *, each_run: bool = False) -> pd.DataFrame:
        """`table` as a DataFrame."""
        return data_frame(self.table(metrics, each_run=each_run))

    def plot(self, metrics: Sequence[str] | None = None, *, width: float = BOTH_COLUMNS) -> Figure:
        """A matplotlib Figure, `width` inches wide: a panel per metric, means with their 95 % intervals."""
        chosen = self._for_picture(metrics)
        return self.draw(partial(style.inline, rc=RC, dpi=DPI), chosen, check_width(width))

    def save_figure(
        self, path: Path | str, metrics: Sequence[str] | None = None, *, width: float = BOTH_COLUMNS
    ) -> list[Path]:
        """The picture of `plot` as .pdf, .png or .svg, and what it shows beside it as .csv; returns both paths."""
        target, chosen = check_figure(Path(path)), self._for_picture(metrics)
        open_figure = partial(style.figure, kind=target.suffix[1:].lower(), rc=RC, dpi=DPI)
        rows = self.table([metric.key for metric in chosen])
        writers: Mapping[str, Callable[[Path], None]] = {
            target.name: lambda file: self._write(partial(open_figure, file), chosen, check_width(width)),
            target.with_suffix(".csv").name: lambda file: write_csv(
                file, [*rows[0]], [[*row.values()] for row in rows]
            ),
        }
        return write_all(target.parent, writers)

    def chosen(self, names: Sequence[str] | None) -> list[Metric]:
        """The metrics of these names, all that somebody has where it is None; UserError at one that nobody has."""
        known = {metric.key: metric for side in self.sides for metric, _ in side.measured}
        return [*known.values()] if names is None else [_metric(name, known) for name in names]

    def _for_picture(self, names: Sequence[str] | None) -> list[Metric]:
        if names is not None:
            return self.chosen(names)
        known = {metric.key for metric in self.chosen(None)}
        return shown("loads", lambda metric: metric.key in known)[:NUM_PANELS]

    def _write(self, open_figure: Open, metrics: Sequence[Metric], width: float) -> None:
        self.draw(open_figure, metrics, width)

    def _points(self, metric: Metric) -> Iterator[Row]:
        for side in self.sides:
            for label in side.labels:
                point = side.point(metric, label)
                interval = {"mean": point.mean, "low": point.low, "high": point.high}
                yield {**_place(side), "metric": metric.key, "candidate": label, **interval, **_against(point)}

    def _runs(self, metric: Metric) -> Iterator[Row]:
        for side in self.sides:
            for label in side.labels:
                for seed, value in zip(side.seeds, side.point(metric, label).values, strict=True):
                    yield {**_place(side), "metric": metric.key, "candidate": label, "seed": seed, "value": value}

    def __repr__(self) -> str:
        first = self.sides[0]
        at = f" at {len(self.sides)} loads" if len(self.sides) > 1 else ""
        return f"{type(self).__name__}({', '.join(first.labels)}: {len(first.seeds)} runs each{at})"

    def _repr_html_(self) -> str:
        """For notebooks: what the console would show."""
        return f"<pre>{escape(self.text())}</pre>"


def parse_width(text: str) -> float:
    """`3.35in`, `8.5cm`, `85mm`, `241pt` in inches; a bare number is inches."""
    unit = next((unit for unit in INCHES if text.strip().endswith(unit)), "in")
    try:
        value = float(text.strip().removesuffix(unit))
    except ValueError:
        mend = "for example --width 3.35in, or 85mm"
        raise UserError(Problem("--width", "must be a length", text, mend)) from None
    return check_width(value * INCHES[unit], text)


def check_width(width: float, given: str | None = None) -> float:
    """As it is; UserError where no figure is so wide."""
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        rule = f"must be {MIN_WIDTH:g} to {MAX_WIDTH:g} inches"
        raise UserError(Problem("--width" if given else "width", rule, given or width, "one column is 3.35in"))
    return width


def check_figure(path: Path, place: str = "figure") -> Path:
    """As it is; UserError where its ending names no kind of picture."""
    if path.suffix[1:].lower() not in style.KINDS:
        raise UserError(Problem(place, "must end in .pdf, .png or .svg", str(path), "a paper takes a .pdf"))
    return path


def num_columns(width: float, num_panels: int) -> int:
    """How many panels stand side by side."""
    return 1 if width < NARROW else min(2, num_panels)


def _metric(name: str, known: Mapping[str, Metric]) -> Metric:
    key = ALIASES.get(name.strip(), name.strip())
    found = known.get(key) or known.get(f"simbatch.{key}")
    if found is not None:
        return found
    near = get_close_matches(key, [*ALIASES, *known], n=1, cutoff=0.6)
    mend = f"did you mean {near[0]}?" if near else "for example p99_ttft_ms,output_throughput; compare.csv has them all"
    raise UserError(Problem("metrics", "is no figure that was compared here", name, mend))


def _place(side: SideBySide) -> Row:
    """At which load, where there are several."""
    return {} if side.load is None else {"rate": side.load}


def _against(point: Point) -> Row:
    known = {} if point.difference is None else point.difference.as_dict()
    names = ("difference", "difference_low", "difference_high", "relative", "verdict")
    return {name: known.get(key) for name, key in zip(names, AGAINST, strict=True)}


NUM_HEADLINES = 8
CLEAR = ("better", "worse")
T = TypeVar("T")


def headline(rows: Sequence[T], metric_of: Callable[[T], Metric]) -> Iterator[T]:
    """Those of the figures that a comparison is read for, in their order; the tail of the first class among them."""
    by_key = {metric_of(row).key: row for row in rows}
    tails = [key for key in by_key if key.startswith("simbatch.classes.") and key.endswith(".p99_ttft_ms")][:1]
    usual = [metric.key for metric in shown("compare", lambda metric: metric.key in by_key)]
    yield from (by_key[key] for key in [*usual[: NUM_HEADLINES - len(tails)], *tails])


def best_in(rows: Sequence[MetricRow], labels: Sequence[str]) -> Iterator[str]:
    """`vllm is best in 5 of 8, fixed in 2.`, for those that have a star."""
    judged = [row.best for row in rows if row.metric.better]
    counts = {label: sum(label in best for best in judged) for label in labels}
    best = sorted(filter(counts.__getitem__, labels), key=lambda label: -counts[label])
    if not best:
        yield f"All are alike in these {len(judged)}."
        return
    rest = "".join(f", {label} in {counts[label]}" for label in best[1:])
    yield f"{best[0]} is best in {counts[best[0]]} of {len(judged)}{rest}."


def said(differences: Sequence[Difference], other: str, base: str) -> Iterator[str]:
    """What is better and what is worse, `adaptive against vllm: better in P99 TPOT; worse in P99 TTFT`."""
    by_verdict: dict[str, list[str]] = {}
    for difference in differences:
        by_verdict.setdefault(difference.verdict, []).append(difference.metric.title)
    told = [f"{verdict} in {', '.join(named)}" for verdict, named in sorted(by_verdict.items()) if verdict in CLEAR]
    yield f"{other} against {base}: {'; '.join(told) or 'no difference is shown in any of these'}."


def left_out(num_rows: int) -> Iterator[str]:
    """Where the rows are that are not shown."""
    if num_rows > 0:
        yield f"{num_rows} more rows with --all, and in compare.csv."


def same_notes(same: Mapping[str, str], num_runs: int) -> Iterator[str]:
    """A sentence for each candidate that others are the same as."""
    where = "every run here" if num_runs > 1 else "this run"
    for other in dict.fromkeys(same.values()):
        *names, last = (label for label in same if same[label] == other)
        who = f"{', '.join(names)} and {last} are" if names else f"{last} is"
        yield f"NOTE: {who} the same as {other} in {where}: every request fared alike."


def taken_notes(summaries: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Whose profile is another than it asked for; a summary of each will do."""
    for label, summary in summaries.items():
        profile = summary["simbatch"]["profile"]
        if instead := in_place_of(profile, summary["simbatch"]["engine"]):
            yield f"NOTE: {label} runs on profile {profile['name']}{instead}."
